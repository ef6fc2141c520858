"""The paper's experiments in their quick size, on toy cells: every table, plot and number is there and belongs together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers_training import four_set
from PIL import Image

from wbcd.cli import cli
from wbcd.errors import BadValue
from wbcd.simulation.cells import POPULATIONS
from wbcd.training import dataset as sets
from wbcd.training.baselines import NAMES
from wbcd.training.paper import FIGURES, QUICK, run_experiments
from wbcd.training.paper.images import KINDS, picture_set
from wbcd.training.paper.published import POPULATION


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
    for name in FIGURES:
        with Image.open(out / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5


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


@pytest.mark.slow
def test_features_are_drawn_and_the_seed_decides(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("umap")
    for name in ("a", "b"):
        run_experiments(("fig3",), store, tmp_path / name, size=QUICK, device="cpu")
    one, two = ((tmp_path / name / "fig3-umap-3d-four.csv").read_bytes() for name in ("a", "b"))
    assert one == two
    data = sets.load(store)
    assert len(one.splitlines()) == 1 + sum(len(data.indices(s)) for s in ("test", "test_donor"))
