"""The loop to one's own model: label samples, review cells, and make a set of what the daemon stored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers_classification import SPEC, toy_cell
from helpers_store import KEY, MODEL_ID, RECIPE, RECIPE_ID, opened

from wbcd.classification.medium import medium_ri, noise_ri
from wbcd.classification.preparation import delta_ri
from wbcd.cli import cli
from wbcd.errors import BadValue
from wbcd.morphology import measure
from wbcd.records import Acquisition, Check, Measured, MeasuredCell, Rejected, Verdict
from wbcd.simulation.microscope import INSTRUMENT_ID
from wbcd.store import Ledger, write_tomogram
from wbcd.store.volumes import tomogram_path
from wbcd.training import dataset as sets
from wbcd.training.fromdb import dataset_from_db, plan, read_donors
from wbcd.training.unknown import instrument_of

REFUSED = Verdict((Check("cell_volume", 1.0, 30.0, "min", "fL"),))
RADII = {"lymph": 2.2, "mono": 3.2, "other": 2.7}


def radius(sample: str, number: int) -> float:
    return RADII[sample.split("-")[0]] + 0.02 * number


def store_cell(
    ledger: Ledger,
    root: Path,
    sample: str,
    number: int,
    *,
    keep: bool = True,
    refused: bool = False,
    instrument: str = INSTRUMENT_ID,
    key: tuple[str, str] = KEY,
    rejected: bool = False,
) -> None:
    """One acquisition of one cell, its tomogram kept or not."""
    content = hashlib.blake2b(f"{sample} {number}".encode(), digest_size=20).hexdigest()
    acquisition = Acquisition(
        content,
        root / f"{sample}-{number}.h5",
        10,
        1,
        sample_id=sample,
        instrument_id=instrument,
        # Every second file says nothing of its wavelength.
        wavelength_um=None if number % 2 else 0.532,
        objective_na=1.2 + 0.01 * number,
    )
    cell = toy_cell(radius(sample, number))
    path = str(write_tomogram(root, cell, acquisition=acquisition, recipe_id=RECIPE_ID)) if keep else None
    verdict = REFUSED if refused else Verdict()
    made = MeasuredCell(
        1, 0, (0.0, 0.0, 0.0), verdict, measure(cell, RECIPE), None, tomogram_path=None if path is None else str(path)
    )
    ledger.begin(acquisition)
    failed = REFUSED.checks[0]
    outcome = (
        Rejected(acquisition, REFUSED, failed.code, "no", (made,)) if rejected else Measured(acquisition, Verdict(), (made,))
    )
    ledger.commit(outcome, *key)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples lymph-1, lymph-2, mono-1, mono-2 of six kept cells each; one refused, one not kept, and an unlabelled sample."""
    root = tmp_path_factory.mktemp("store")
    with opened(str(root / "wbcd.db")) as ledger:
        for sample in ("lymph-1", "lymph-2", "mono-1", "mono-2"):
            for number in range(6):
                store_cell(ledger, root, sample, number)
        store_cell(ledger, root, "mono-1", 6, keep=False)
        store_cell(ledger, root, "mono-1", 7, refused=True)
        store_cell(ledger, root, "other-1", 0)
        for sample, label, purity in (
            ("lymph-1", "t_lymphocyte", 0.9),
            ("lymph-2", "t_lymphocyte", None),
            ("mono-1", "monocyte", 0.95),
            ("mono-2", "monocyte", 0.85),
        ):
            ledger.label_sample(sample, label, purity=purity, by="cytometer")
        first = next(cell for cell in ledger.cells(sample="lymph-1"))
        ledger.review(first.cell_id, "A. Reader", "monocyte", "kidney-shaped nucleus")
    return root


def url(root: Path) -> str:
    return f"sqlite:///{root / 'wbcd.db'}"


def test_a_set_of_labelled_samples(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.zarr"
    digest, chosen = dataset_from_db(url(stored), out, spec=SPEC)
    data = sets.load(out)
    assert data.data_hash == digest
    assert data.classes == ("t_lymphocyte", "monocyte")
    assert chosen.donors == ("lymph-1", "lymph-2", "mono-1", "mono-2")
    assert len(data.label) == 24
    assert chosen.left_out == {"have no kept tomogram": 1, "have no label": 1}
    # The review wins over its sample's label, and is pure.
    assert np.bincount(data.label).tolist() == [11, 13]
    reviewed = (data.donor == 0) & (data.label == 1)
    assert reviewed.sum() == 1
    assert data.purity is not None
    assert data.purity[reviewed] == 1
    np.testing.assert_allclose(data.purity[data.donor == 2], 0.95)
    assert np.isnan(data.purity[data.donor == 1]).all()
    assert data.card["simulated"] is True
    assert data.card["instrument"] == {"objective_na": [1.2, 1.25]}


def test_volumes_and_parameters_are_those_that_the_classifier_saw(stored: Path, tmp_path: Path) -> None:
    dataset_from_db(url(stored), tmp_path / "a.zarr", spec=SPEC)
    data = sets.load(tmp_path / "a.zarr")
    with Ledger.open(url(stored), create=False) as ledger:
        rows = {cell.cell_id: cell for cell in ledger.cells()}
    assert data.cell_id is not None
    for i in (0, 10, 23):
        row = rows[int(data.cell_id[i])]
        cell = toy_cell(radius(row.sample, int(row.path.split("-")[-1].removesuffix(".h5"))))
        np.testing.assert_allclose(data.ri_delta[i].astype(float), delta_ri(cell, SPEC), atol=2e-5)
        np.testing.assert_allclose(data.morphology[i], sets.six_of(measure(cell, RECIPE)), rtol=1e-5)
        assert data.noise_ri is not None
        assert data.noise_ri[i] == pytest.approx(noise_ri(cell, medium_ri(cell)), abs=1e-5)
    assert data.card["noise_ri"] == [data.noise_ri.min(), data.noise_ri.max()]
    # A model's card takes half as much again.
    assert data.card["noise_ri"][1] < 1e-3
    taken = instrument_of(data)
    assert taken is not None
    assert taken.noise_ri == pytest.approx((0, 1.5 * data.card["noise_ri"][1]))
    assert taken.objective_na == pytest.approx((1.2 * 0.96, 1.25 * 1.04))
    assert taken.pitch_um is None


def test_by_review_only_what_a_person_saw_is_taken(stored: Path, tmp_path: Path) -> None:
    _, chosen = dataset_from_db(url(stored), tmp_path / "b.zarr", label_by="review", spec=SPEC)
    assert [s.given.label for s in chosen.sources] == ["monocyte"]
    assert chosen.left_out["were not reviewed"] == 24


def test_one_donor_gave_several_samples(stored: Path, tmp_path: Path) -> None:
    table = tmp_path / "donors.csv"
    table.write_text("sample,donor\nlymph-1,anna\nmono-1,anna\nlymph-2,bert\nmono-2,bert\n")
    _, chosen = dataset_from_db(url(stored), tmp_path / "c.zarr", donors=read_donors(table), spec=SPEC)
    assert chosen.donors == ("anna", "bert")
    table.write_text("sample,donor\nlymph-1,\n")
    with pytest.raises(BadValue, match="line 2"):
        read_donors(table)


def test_a_sample_without_a_donor_is_refused(stored: Path, tmp_path: Path) -> None:
    """As a donor of its own, one person could be in training and in test."""
    with pytest.raises(BadValue, match=r"no row for 2 of 4 samples: 'lymph-2', 'mono-1'\.") as caught:
        dataset_from_db(url(stored), tmp_path / "c.zarr", donors={"lymph-1": "anna", "mono-2": "bert"}, spec=SPEC)
    assert "Add a row" in caught.value.advice
    assert not (tmp_path / "c.zarr").exists()


def test_of_many_samples_without_a_donor_five_are_named(tmp_path: Path) -> None:
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        for i in range(6):
            store_cell(ledger, tmp_path, f"mono-{i}", 0)
            ledger.label_sample(f"mono-{i}", "monocyte", by="me")
    with pytest.raises(BadValue, match=r"6 of 6 samples: 'mono-0', .*'mono-4', \.\.\.\."):
        dataset_from_db(url(tmp_path), tmp_path / "c.zarr", donors={}, spec=SPEC)


def test_rows_of_no_sample_are_told(stored: Path, tmp_path: Path) -> None:
    donors = {"lymph-1": "anna", "lymph-2": "anna", "mono-1": "bert", "mono-2": "bert", "mono-7": "carl"}
    _, chosen = dataset_from_db(url(stored), tmp_path / "c.zarr", donors=donors, spec=SPEC)
    assert chosen.donors == ("anna", "bert")
    assert chosen.left_out["rows of the table of donors are of no sample with a cell in the set"] == 1


def test_a_sample_has_one_row(tmp_path: Path) -> None:
    table = tmp_path / "donors.csv"
    table.write_text("sample,donor\na,anna\nb,bert\na,carl\nc,carl\nb,bert\n")
    with pytest.raises(BadValue, match=r"2 samples have more than one row: 'a', 'b'\."):
        read_donors(table)


def test_a_table_that_excel_wrote_is_read(tmp_path: Path) -> None:
    table = tmp_path / "donors.csv"
    table.write_bytes("sample,donor\r\na,Zoë\r\n".encode("utf-8-sig"))
    assert read_donors(table) == {"a": "Zoë"}


@pytest.mark.parametrize("text", [b"sample,donor\na,\xff\n", b"sample;donor\na;anna\n"])
def test_a_table_that_cannot_be_read_says_what_to_save(tmp_path: Path, text: bytes) -> None:
    table = tmp_path / "donors.csv"
    table.write_bytes(text)
    with pytest.raises(BadValue) as caught:
        read_donors(table)
    assert "environment variable" not in caught.value.advice


def test_simulated_cells_are_never_called_measured(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match=r"24 of 24 cells .*lymph-1-0\.h5 \(sample 'lymph-1'\)") as caught:
        dataset_from_db(url(stored), tmp_path / "m.zarr", spec=SPEC, simulated=False)
    assert "--measured" in caught.value.advice
    assert not (tmp_path / "m.zarr").exists()


def test_one_simulated_cell_among_measured_ones_is_enough(tmp_path: Path) -> None:
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        store_cell(ledger, tmp_path, "mono-1", 0, instrument="HT-2H")
        store_cell(ledger, tmp_path, "mono-2", 0)
        for sample in ("mono-1", "mono-2"):
            ledger.label_sample(sample, "monocyte", by="me")
    with pytest.raises(BadValue, match=r"1 of 2 cells .*mono-2-0\.h5"):
        dataset_from_db(url(tmp_path), tmp_path / "m.zarr", spec=SPEC, simulated=False)


@pytest.mark.parametrize(("said", "simulated"), [(None, False), (False, False), (True, True)])
def test_measured_cells_are_what_one_says(tmp_path: Path, said: bool | None, simulated: bool) -> None:
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        store_cell(ledger, tmp_path, "mono-1", 0, instrument="HT-2H")
        ledger.label_sample("mono-1", "monocyte", by="me")
    dataset_from_db(url(tmp_path), tmp_path / "m.zarr", spec=SPEC, simulated=said)
    assert sets.load(tmp_path / "m.zarr").simulated is simulated


def test_labels_that_change_mean_another_set(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.zarr"
    dataset_from_db(url(stored), out, spec=SPEC, classes=("monocyte",))
    again, _ = dataset_from_db(url(stored), out, spec=SPEC, classes=("monocyte",))
    assert again == sets.load(out).data_hash
    with pytest.raises(BadValue, match="holds a set whose"):
        dataset_from_db(url(stored), out, spec=SPEC)


def test_no_label_and_a_lost_tomogram_are_named(stored: Path, tmp_path: Path) -> None:
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        store_cell(ledger, tmp_path, "mono-9", 0)
    with pytest.raises(BadValue, match="1 have no label"):
        dataset_from_db(url(tmp_path), tmp_path / "e.zarr", spec=SPEC)
    with Ledger.open(url(tmp_path), create=False) as ledger:
        ledger.label_sample("mono-9", "monocyte", by="me")
        content = next(iter(ledger.cells())).content_id
    image = tomogram_path(tmp_path, content_id=content, recipe_id=RECIPE_ID, number=1)
    image.rename(tmp_path / "elsewhere")
    with pytest.raises(BadValue, match="cannot be used"):
        dataset_from_db(url(tmp_path), tmp_path / "f.zarr", spec=SPEC)


NEXT = replace(RECIPE, morphology=replace(RECIPE.morphology, threshold_ri=RECIPE.morphology.threshold_ri + 1e-4))
OTHER = "model@2"


def test_the_cells_of_the_current_result_are_taken(tmp_path: Path) -> None:
    """mono-1: 0 and 1 again under the next recipe, 2 not, 3 rejected there; mono-2: two models, the first one reviewed."""
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        ledger.register(NEXT, OTHER, {})
        for number in range(4):
            store_cell(ledger, tmp_path, "mono-1", number)
        for number in (0, 1):
            store_cell(ledger, tmp_path, "mono-1", number, key=(NEXT.recipe_id, MODEL_ID))
        store_cell(ledger, tmp_path, "mono-1", 3, key=(NEXT.recipe_id, MODEL_ID), rejected=True)
        for number in (0, 1):
            store_cell(ledger, tmp_path, "mono-2", number, key=(NEXT.recipe_id, MODEL_ID))
            store_cell(ledger, tmp_path, "mono-2", number, key=(NEXT.recipe_id, OTHER))
        for sample in ("mono-1", "mono-2"):
            ledger.label_sample(sample, "monocyte", by="me")
        ledger.review(1, "me", "myelocyte")  # of mono-1-0, under the first recipe
        of_2 = [cell.cell_id for cell in ledger.cells(sample="mono-2")]
        ledger.review(of_2[0], "me", "myelocyte")  # of mono-2-0, under the model before

    def taken(recipe_id: str | None) -> tuple[list[tuple[str, str, str]], dict[str, int]]:
        with Ledger.open(url(tmp_path)) as ledger:
            chosen = plan(ledger, "sample", recipe_id=recipe_id)
        return [(s.cell.path.rsplit("/", 1)[1], s.cell.model_id, s.given.label) for s in chosen.sources], dict(chosen.left_out)

    with pytest.raises(BadValue, match="current results of the labelled cells are of 2 recipes") as caught:
        taken(None)
    assert "wbcd reprocess" in caught.value.advice
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        store_cell(ledger, tmp_path, "mono-1", 2, key=(NEXT.recipe_id, MODEL_ID))
    rows, left_out = taken(None)
    assert sorted(rows) == [
        ("mono-1-0.h5", MODEL_ID, "monocyte"),
        ("mono-1-1.h5", MODEL_ID, "monocyte"),
        ("mono-1-2.h5", MODEL_ID, "monocyte"),
        ("mono-2-0.h5", MODEL_ID, "myelocyte"),
        ("mono-2-1.h5", OTHER, "monocyte"),
    ]
    assert left_out["are of a result that is not current"] == 3
    reviewed = "were reviewed in a result that is not current (review them again, or choose its recipe with --recipe)"
    assert left_out[reviewed] == 1
    rows, _ = taken(RECIPE_ID)
    assert [row[0] for row in rows] == [f"mono-1-{number}.h5" for number in range(4)]
    assert rows[0][2] == "myelocyte"


# --- the verbs ------------------------------------------------------------------------------------


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def test_label_review_and_from_db_on_the_command_line(tmp_path: Path) -> None:
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        for number in range(4):
            store_cell(ledger, tmp_path, "mono-1", number)
    db = ("--db", url(tmp_path))
    assert run("label", *db).exit_code == 2
    with opened(str(tmp_path / "wbcd.db")) as ledger:  # the model of the other tests has other classes
        ledger.register(RECIPE, "other@1", {"wbcd": {"classes": ["monocyte", "myelocyte"]}})
    made = run("label", "--sample", "mono-1", "--as", "monocyte", "--purity", "0.95", "--by", "me", *db)
    assert made.exit_code == 0, made.output
    assert "95.0%" in made.output
    slip = run("label", "--sample", "mono-1", "--as", "monocite", *db)
    assert slip.exit_code == 65
    assert "No model here has the class 'monocite'. Did you mean 'monocyte'?" in slip.output
    assert run("label", "--sample", "mono-1", "--as", "monocyte", "--purity", "0.95", "--by", "me", *db).exit_code == 0
    assert run("label", "--sample", "absent", "--as", "monocyte", *db).exit_code == 65
    listed = json.loads(run("label", "--json", *db).output)
    kept = [("mono-1", "monocyte", 0.95), ("mono-1", "monocyte", 0.95)]
    assert [(row["sample"], row["label"], row["purity"]) for row in listed] == kept
    assert "mono-1: monocyte (95.0% pure), by me" in run("label", "--list", *db).output
    assert run("review", "1", "--as", "myelocyte", "--by", "me", *db).exit_code == 0
    assert run("review", "999", "--as", "myelocyte", *db).exit_code == 65
    out = tmp_path / "ours.zarr"
    result = run("dataset", "from-db", "--out", str(out), *db)
    assert result.exit_code == 0, result.output
    assert "4 cells of 1 donors" in result.output
    assert "All cells are of one donor" in result.output
    card = json.loads(run("dataset", "show", str(out), "--json").output)
    assert card["cells_by_donor"]["0"] == {"monocyte": 3, "myelocyte": 1}
    assert card["purity"] == pytest.approx({"monocyte": 0.95, "myelocyte": 1.0})
    assert json.loads((tmp_path / "ours.card.json").read_text())["data_hash"] == card["data_hash"]
    assert "**simulated** cells" in (tmp_path / "ours.card.md").read_text()
    assert "Did you mean 'myelocyte'?" in run("review", "2", "--as", "myelocite", *db).output
    assert run("review", "2", "--as", "monocyte", *db).exit_code == 0
    for words in (("label", "--sample", "mono-1"), ("review", "2")):
        spaced = run(*words, "--as", "T cell", *db)
        assert spaced.exit_code == 65
        assert "Call it 'T_cell', for example." in spaced.output


def test_a_class_without_cells_and_one_given_twice_are_slips(stored: Path, tmp_path: Path) -> None:
    for classes, told in (
        (("monocyte", "monocytte"), "no cell of class 'monocytte' can be taken; there are cells of "),
        (("monocyte", "monocyte"), "the class 'monocyte' is given twice"),
    ):
        with pytest.raises(BadValue, match=told):
            dataset_from_db(url(stored), tmp_path / "s.zarr", spec=SPEC, classes=classes)
    assert not (tmp_path / "s.zarr").exists()
