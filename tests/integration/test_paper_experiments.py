"""The paper's experiments in their quick size, on toy cells: every table, plot and number is there and belongs together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers_classification import SPEC
from helpers_training import FOUR, altered_set, four_set, four_source, toy_set
from PIL import Image

from wbcd.classification import InputSpec
from wbcd.cli import cli
from wbcd.cli.paper import Shares
from wbcd.errors import BadValue
from wbcd.simulation.cells import POPULATIONS, parameters_of
from wbcd.training import dataset as sets
from wbcd.training import make_dataset, plots
from wbcd.training.augmentation import PAPER, Augmentation
from wbcd.training.baselines import NAMES, _model, classical
from wbcd.training.fit import Training
from wbcd.training.oracle import parameters
from wbcd.training.paper import FIGURES, QUICK, Size, run_experiments
from wbcd.training.paper.experiments import TOGETHER
from wbcd.training.paper.images import KINDS, picture_set
from wbcd.training.paper.published import POPULATION
from wbcd.training.simulated import phantom_of
from wbcd.training.splits import warnings_of
from wbcd.training.statistics import wilson


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_set(tmp_path_factory.mktemp("set") / "four.zarr", cells=128)


@pytest.fixture(scope="module")
def made(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("paper")
    words = ["paper", "all", "--data", str(store), "--out", str(out), "--quick", "--no-umap", "--device", "cpu", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return out, json.loads((out / "figures.json").read_text())


def test_every_figure_says_that_the_cells_are_simulated(made: tuple[Path, dict[str, Any]]) -> None:
    out, facts = made
    assert facts["simulated"] is True
    assert set(FIGURES) <= set(facts)
    page = (out / "paper.md").read_text()
    assert "128 simulated cells" in page
    assert "no evidence for the paper" in page.replace("\n", " ")
    assert "**A quick look**" in page
    for name in FIGURES:
        with Image.open(out / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_the_support_vectors_are_six_binary_machines() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    fitted = _model("svm", labels, 0).fit(rng.standard_normal((200, 6)) + labels[:, None], labels)
    machines = fitted.best_estimator_.steps[-1][1].estimators_
    assert [machine.classes_.tolist() for machine in machines] == [[0, 1]] * 6


def test_each_answer_is_given_for_known_and_for_unseen_donors(made: tuple[Path, dict[str, Any]], store: Path) -> None:
    _, facts = made
    data = sets.load(store)
    for rows in (facts["fig3"]["four"], facts["fig3"]["two"], facts["fig3"]["two_by_summing_four"], facts["figS2"]["curve"][0]):
        for split in ("test", "test_donor"):
            assert rows[split]["seeds"][0]["n"] == len(data.indices(split))
    for name in (*NAMES, *KINDS, "3d"):
        for split in ("test", "test_donor"):
            row = facts["fig4"][name][split]
            confusion = np.array(row["seeds"][0]["confusion"])
            assert row["accuracy"]["mean"] == pytest.approx(np.trace(confusion) / confusion.sum())


def test_the_same_network_answers_figures_3_4_and_s2(made: tuple[Path, dict[str, Any]]) -> None:
    _, facts = made
    of_all = facts["figS2"]["curve"][-1]
    assert of_all["share"] == 1
    assert facts["fig3"]["four"]["test"] == facts["fig4"]["3d"]["test"] == of_all["test"]
    assert facts["figS2"]["curve"][0]["train_cells"] < of_all["train_cells"]


def test_the_population_table_is_that_of_the_cells(made: tuple[Path, dict[str, Any]], store: Path) -> None:
    _, facts = made
    data = sets.load(store)
    row = facts["fig2"]["table"]["volume_fl"]["monocyte"]
    values = data.morphology[data.label == data.classes.index("monocyte"), 0].astype(float)
    assert (row["mean"], row["sd"]) == pytest.approx((values.mean(), values.std(ddof=1)))
    assert row["mean_ratio"] == pytest.approx(values.mean() / 498.29)


def test_the_published_table_is_consistent_and_that_of_the_phantoms() -> None:
    """Sphericity and mass follow from volume, surface and density only with the exchange put right."""
    for kind in POPULATION["volume_fl"]:
        volume, surface = POPULATION["volume_fl"][kind][0], POPULATION["surface_area_um2"][kind][0]
        assert np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface == pytest.approx(
            POPULATION["sphericity"][kind][0], abs=0.01
        )
        mass = volume * POPULATION["protein_density_g_dl"][kind][0] / 100
        assert mass == pytest.approx(POPULATION["dry_mass_pg"][kind][0], rel=0.01)
        assert POPULATIONS[kind].volume_fl == POPULATION["volume_fl"][kind]


def test_a_second_run_takes_up_what_is_there(made: tuple[Path, dict[str, Any]], store: Path) -> None:
    out, facts = made
    logs = {path: path.stat().st_mtime_ns for path in out.glob("trainings/*/checkpoint.json")}
    again = run_experiments(("fig2", "figS2"), store, out, size=QUICK, device="cpu")
    assert json.loads(json.dumps(again)) == facts
    assert logs == {path: path.stat().st_mtime_ns for path in logs}


def test_a_networks_answers_are_kept_and_a_torn_file_is_asked_again(
    made: tuple[Path, dict[str, Any]], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(made[0], tmp_path / "again")
    torn = next(out.glob("trainings/3d-four-0/logits-test-*.npy"))
    torn.write_bytes(torn.read_bytes()[:-8])
    whole, asked = Training.logits, []
    monkeypatch.setattr(Training, "logits", lambda run, cells: (asked.append((run.out.name, len(cells))), whole(run, cells))[1])
    run_experiments(["fig4"], store, out, size=QUICK, device="cpu", umap=False)
    assert asked == [("3d-four-0", len(sets.load(store).indices("test")))]
    assert json.loads((out / "figures.json").read_text()) == made[1]


def test_what_could_be_known_is_asked_of_the_same_phantoms_only(tmp_path: Path, store: Path) -> None:
    """The drawn parameters are those of the cells, through the optics and without them; the page has both bounds."""
    spec = InputSpec((20, 32, 32), (0.8, 0.4, 0.4))
    for name, path in (("seen.zarr", "fast"), ("ideal.zarr", "ideal")):
        make_dataset(tmp_path / name, 48, donors=5, seed=4, workers=2, spec=spec, path=path)  # type: ignore[arg-type]
    seen, ideal = (sets.load(tmp_path / name) for name in ("seen.zarr", "ideal.zarr"))
    drawn = parameters(seen)
    volume = list(parameters_of(phantom_of("monocyte", 0, 4, 0))).index("volume_fl")
    assert np.corrcoef(drawn[:, volume], ideal.morphology[:, 0])[0, 1] > 0.999
    assert np.corrcoef(drawn[:, volume], seen.morphology[:, 0])[0, 1] > 0.99

    out = tmp_path / "out"
    words = ["paper", "oracle", "--data", str(seen.path), "--ideal", str(ideal.path), "--out", str(out), "--quick"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "figures.json").read_text())["oracle"]
    assert {"svm", "lda", "tree", "3d on ideal volumes"} == set(found["of"])
    assert found["of"]["lda"]["test"]["accuracy"]["mean"] >= 0.7
    assert "the best" in (out / "paper.md").read_text()

    with pytest.raises(BadValue, match="does not show the phantoms"):
        run_experiments(("oracle",), seen.path, tmp_path / "no", size=QUICK, ideal=seen.path)
    with pytest.raises(BadValue, match="not phantoms"):
        run_experiments(("oracle",), store, tmp_path / "toys", size=QUICK)
    usage = CliRunner().invoke(cli, ["paper", "fig2", *words[2:]])
    assert usage.exit_code == 2
    assert "--ideal goes with oracle" in usage.output


def test_figures_of_another_set_are_kept(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    other = four_set(tmp_path / "other.zarr", cells=24)
    with pytest.raises(BadValue, match="data_hash"):
        run_experiments(("fig2",), other, made[0], size=QUICK)
    with pytest.raises(BadValue, match="fig9"):
        run_experiments(("fig9",), other, tmp_path / "new")


@pytest.mark.parametrize("kind", list(KINDS))
def test_pictures_keep_cells_labels_and_splits(store: Path, kind: str) -> None:
    data = sets.load(store)
    pictures, _ = picture_set(data, kind)
    assert pictures.ri_delta.shape == (len(data.label), 1, *data.input.shape[1:])
    assert (pictures.label == data.label).all()
    for scheme in sets.SCHEMES:
        assert (pictures.split(scheme) == data.split(scheme)).all()
    assert pictures.data_hash != data.data_hash
    size = float(np.abs(pictures.ri_delta.astype(float)).max())
    assert 1e-3 < size < 0.2
    if kind == "mip":
        np.testing.assert_array_equal(pictures.ri_delta[:, 0], data.ri_delta.max(axis=1))


@pytest.mark.parametrize("kind", list(KINDS))
def test_pictures_are_augmented_as_the_volumes_are(store: Path, kind: str) -> None:
    """Only noise and offset have a unit of their own: what the volumes do not undergo, pictures do not either."""
    data = sets.load(store)
    _, paper = picture_set(data, kind, PAPER)
    assert (paper.rotate, paper.flip, paper.zoom, paper.scale, paper.offset_ri) == (False, False, 0, 0, 0)
    assert paper.crop_um == PAPER.crop_um
    noise = {"mip": 6e-4, "phase": 2e-4, "amplitude": 1e-3}[kind]
    assert paper.noise_ri == pytest.approx(noise)
    _, modern = picture_set(data, kind, Augmentation())
    assert modern == Augmentation(noise_ri=modern.noise_ri, offset_ri=modern.offset_ri)
    assert (modern.noise_ri, modern.offset_ri) == pytest.approx((noise, noise / 3))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks as they were initialised: nothing but the book-keeping is looked at."""
    monkeypatch.setattr(Training, "fit", lambda _: None)


def test_the_networks_of_figure_4_are_augmented_as_the_preset_says(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Augmentation] = {}
    monkeypatch.setattr(Training, "fit", lambda run: seen.update({run.out.name: run.preset.augmentation}))
    run_experiments(("fig4",), store, tmp_path, size=QUICK, preset="paper", device="cpu")
    assert seen["3d-four-0"] == PAPER
    for kind in KINDS:
        assert (seen[f"2d-{kind}-0"].rotate, seen[f"2d-{kind}-0"].flip) == (False, False)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(("epochs", "of_a_tenth"), [(10, 10), (3, 4), (1, 3)])
def test_the_epochs_asked_for_are_those_of_all_cells(store: Path, tmp_path: Path, epochs: int, of_a_tenth: int) -> None:
    size = Size(epochs=epochs, width=2, shares=(0.1, 1.0), most_epochs=4)
    few, whole = run_experiments(("figS2",), store, tmp_path, size=size, device="cpu")["figS2"]["curve"]
    assert (few["epochs"], whole["epochs"]) == (of_a_tenth, epochs)
    assert whole["epochs_done"] == [0]


@pytest.mark.usefixtures("untrained")
def test_other_shares_join_the_figures_of_a_folder(store: Path, tmp_path: Path) -> None:
    """Each point says its share, so a curve of others is drawn over the trainings that are there."""
    for shares in ((1.0,), (0.5, 1.0)):
        facts = run_experiments(("figS2",), store, tmp_path, size=Size(2, 2, shares=shares, most_epochs=2), device="cpu")
        assert tuple(point["share"] for point in facts["figS2"]["curve"]) == shares
    with pytest.raises(BadValue, match="size"):
        run_experiments(("figS2",), store, tmp_path, size=Size(3, 2, most_epochs=3), device="cpu")


@pytest.mark.parametrize(
    ("given", "taken"), [("1,0.1", (0.1, 1.0)), ("0.5", (0.5,)), ("0", None), ("2", None), ("x", None), ("", None)]
)
def test_shares_are_parts_of_the_training_cells(given: str, taken: tuple[float, ...] | None) -> None:
    if taken is None:
        with pytest.raises(click.BadParameter, match="at most 1"):
            Shares().convert(given, None, None)
    else:
        assert Shares().convert(given, None, None) == taken


@pytest.mark.usefixtures("untrained")
def test_limits_belong_to_the_mean_over_seeds(tmp_path: Path) -> None:
    """Not to the first seed; and on unseen donors there are others, of the donors."""
    path = tmp_path / "many.zarr"
    make_dataset(path, 240, donors=30, workers=1, spec=SPEC, classes=FOUR, source=four_source)
    size = Size(width=2, seeds=4, shares=(1.0,))
    facts = run_experiments(("fig3", "figS2"), path, tmp_path / "out", size=size, device="cpu", umap=False)
    page = (tmp_path / "out" / "paper.md").read_text()
    for row in (facts["fig3"]["two"], facts["figS2"]["curve"][0]):
        for split in ("test", "test_donor"):
            mean, n = row[split]["accuracy"]["mean"], row[split]["seeds"][0]["n"]
            low, high = row[split]["ci_low"], row[split]["ci_high"]
            assert row[split]["accuracy"]["sd"] > 0
            assert (low, high) == pytest.approx(wilson(mean * n, n))
            assert low <= mean <= high
            assert (
                f"{mean:.1%} (SD {100 * row[split]['accuracy']['sd']:.2f} points of 4 seeds) | {low:.1%} to {high:.1%}" in page
            )
        over = row["test_donor"]
        assert over["donors"] == 6
        assert over["donor_ci_low"] < over["accuracy"]["mean"] < over["donor_ci_high"]
        assert f"by cell; over 6 donors {over['donor_ci_low']:.1%} to {over['donor_ci_high']:.1%}" in page


@pytest.mark.usefixtures("untrained")
def test_the_seeds_together_are_the_mean_of_their_answers(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds that contradict each other: the surer one decides, cell by cell."""
    labels = sets.load(store).label

    def sure_of_half(self: Training, cells: np.ndarray) -> np.ndarray:
        right, k = labels[cells], len(FOUR)
        named = np.where(right % 2 == self.seed % 2, right, (right + 1) % k)
        surely = np.where(right % 2 == self.seed % 2, 4.0, 1.0)
        return np.eye(k)[named] * surely[:, None]

    monkeypatch.setattr(Training, "logits", sure_of_half)
    facts = run_experiments(("fig4",), store, tmp_path, size=Size(width=2, seeds=2), device="cpu", umap=False)["fig4"]
    for split in ("test", "test_donor"):
        assert facts["3d"][split]["accuracy"]["mean"] < 0.8
        assert facts[TOGETHER][split]["accuracy"]["mean"] == 1.0
    assert TOGETHER in (tmp_path / "paper.md").read_text()


def test_without_a_set_one_is_made_beside_the_figures(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []

    def copied(path: Path, cells: int, *, donors: int, **_: object) -> str:
        made.append((cells, donors))
        shutil.copytree(store, path, dirs_exist_ok=True)
        return "hash"

    monkeypatch.setattr("wbcd.training.make.make_dataset", copied)
    result = CliRunner().invoke(cli, ["paper", "fig2", "--out", str(tmp_path / "p"), "--quick"])
    assert result.exit_code == 0, result.output
    assert made == [(320, 8)]
    facts = json.loads((tmp_path / "p" / "figures.json").read_text())
    assert facts["data_hash"] == sets.load(store).data_hash
    # A table of populations trains nothing: trainings of any size go beside it, but not two sizes.
    size = Size(epochs=1, width=2, shares=(1.0,))
    facts = run_experiments(("figS2",), store, tmp_path / "p", size=size, device="cpu")
    assert {"fig2", "figS2"} <= set(facts)
    assert facts["preset"] == "modern"
    with pytest.raises(BadValue, match="preset"):
        run_experiments(("figS2",), store, tmp_path / "p", size=size, device="cpu", preset="paper")
    run_experiments(("fig2",), store, tmp_path / "p", size=QUICK, device="cpu")


@pytest.mark.slow
def test_features_are_drawn_and_the_seed_decides(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("umap")
    threads = torch.get_num_threads()
    for name in ("a", "b"):
        run_experiments(("fig3",), store, tmp_path / name, size=QUICK, device="cpu")
        assert torch.get_num_threads() == threads
    one, two = ((tmp_path / name / "fig3-umap-3d-four.csv").read_bytes() for name in ("a", "b"))
    assert one == two
    data = sets.load(store)
    assert len(one.splitlines()) == 1 + sum(len(data.indices(s)) for s in ("test", "test_donor"))


def test_a_set_with_nothing_to_judge_by_or_a_class_without_cells_is_refused_at_once(store: Path, tmp_path: Path) -> None:
    few = four_set(tmp_path / "few.zarr", cells=4)
    with pytest.raises(BadValue, match="none is held out to judge by"):
        run_experiments(["fig3"], few, tmp_path / "a", size=QUICK, device="cpu")
    assert run_experiments(["fig2"], few, tmp_path / "a", size=QUICK, device="cpu")["warnings"] == warnings_of_few(few)
    named = altered_set(store, tmp_path / "named.zarr", card={"classes": [*FOUR, "monocytte"]})
    with pytest.raises(BadValue, match="has no cell of class 'monocytte'"):
        run_experiments(["fig2"], named, tmp_path / "b", size=QUICK, device="cpu")


def warnings_of_few(path: Path) -> list[str]:
    data = sets.load(path)
    return warnings_of(data.label, data.donor, data.classes)


def test_figures_of_other_classes_are_not_put_beside_the_papers_without_a_word(tmp_path: Path) -> None:
    run_experiments(["fig2"], toy_set(tmp_path / "two.zarr", cells=20), tmp_path / "a", size=QUICK, device="cpu")
    assert "> The classes here are small, large; the paper's figures" in (tmp_path / "a" / "paper.md").read_text()


def test_too_few_cells_for_classifiers_are_named(store: Path) -> None:
    data = sets.load(store)
    part = np.full(len(data.label), sets.SPLITS.index("test"), np.int8)
    part[:4] = sets.SPLITS.index("train")
    with pytest.raises(BadValue, match="4 training cells of"):
        classical(replace(data, splits={**data.splits, "both": part}), ["test"])


def test_a_ninth_class_has_a_curve_too() -> None:
    made = plots.figure(4, 4)
    axes = made.subplots()
    line = np.array([0.0, 1.0])
    plots.roc_curves(axes, {f"c{k}": (line, line) for k in range(9)}, {f"c{k}": 0.5 for k in range(9)})
    assert len(axes.get_legend().get_texts()) == 9
