"""Instruments at the ends of what a model accepts: the same cells by each; an end that is the usual one changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers_classification import toy_bundle

from wbcd.classification import InstrumentRange, load_bundle, save_bundle
from wbcd.cli import cli
from wbcd.errors import BadValue
from wbcd.training.instruments import USUAL_NAME, meet_instruments
from wbcd.training.simulated import INSTRUMENT, OpticsPath, Setup, draw_of, simulate_cell


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shipped = load_bundle("reference")
    accepts = InstrumentRange(objective_na=(INSTRUMENT.objective_na, INSTRUMENT.objective_na), noise_ri=(0, 0.002))
    made = save_bundle(tmp_path_factory.mktemp("model") / "bundle", shipped.network, replace(shipped.model, instrument=accepts))
    return made.path


def test_ends_of_the_ranges_are_met_with_the_same_cells(model: Path) -> None:
    done = CliRunner().invoke(
        cli,
        [
            "model",
            "instruments",
            str(model),
            "--cells",
            "8",
            "--workers",
            "1",
            "--range",
            "noise_ri",
            "--range",
            "objective_na",
            "--json",
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    usual, low, high, noisy = json.loads(done.stdout)
    assert [row["name"] for row in (usual, low, high)] == [USUAL_NAME, "objective_na 1.2", "objective_na 1.2"]
    assert noisy["name"].endswith("of the light")
    assert usual["right"] >= 6
    for row in (low, high):
        assert {key: value for key, value in row.items() if key != "name"} == {k: v for k, v in usual.items() if k != "name"}
        assert row["lost"] == row["won"] == 0
    # Shot noise alone is scaled, and the constraint takes some of it away: in the order of what was asked for.
    assert usual["noise_ri"] < 5e-4
    assert 0.001 < noisy["noise_ri"] < 0.003


@pytest.mark.parametrize("path", ["fast", "exact"])
def test_a_setup_is_what_the_tomogram_says_of_itself(path: OpticsPath) -> None:
    setup = Setup(objective_na=1.15, wavelength_um=0.52, pitch_um=0.16)
    cell = simulate_cell("t_lymphocyte", 3_001, draw_of(0, 0, 0, 3_000), path=path, setup=setup)
    cell = getattr(cell, "cell", cell)
    assert cell is not None
    assert cell.objective_na == 1.15
    assert cell.wavelength_um == 0.52
    assert cell.pitch_um == pytest.approx(0.16, rel=0.01)


def test_models_that_cannot_be_asked_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="cells are simulated of"):
        meet_instruments(toy_bundle(tmp_path / "toy").path)
    shipped = load_bundle("reference")
    aperture = save_bundle(
        tmp_path / "aperture", shipped.network, replace(shipped.model, instrument=InstrumentRange(objective_na=(1.15, 1.25)))
    )
    with pytest.raises(BadValue, match="no range of noise_ri; it has objective_na"):
        meet_instruments(aperture.path, ranges=["noise_ri"])
    bare = save_bundle(tmp_path / "bare", shipped.network, replace(shipped.model, instrument=None))
    with pytest.raises(BadValue, match="accepts no range"):
        meet_instruments(bare.path)
    with pytest.raises(BadValue, match="no range 'colour'"):
        meet_instruments("reference", ranges=["colour"])
    with pytest.raises(BadValue, match="path is 'exakt'"):
        meet_instruments("reference", path="exakt")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(BadValue, match="at least 1"):
        meet_instruments("reference", cells=0)
