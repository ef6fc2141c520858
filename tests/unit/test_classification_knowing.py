"""What a bundle knows of its limits: stored, checked, and told in the flags of each prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_classification import CLASSES, toy_bundle, toy_cell

from wbcd.classification import (
    MAY_BE,
    OUTSIDE_INSTRUMENT_RANGE,
    UNCLASSIFIED,
    UNKNOWN_CELL,
    Bundle,
    Classifier,
    Conformal,
    Gauge,
    InstrumentRange,
    load_bundle,
    save_bundle,
)
from wbcd.classification.bundle import MAX_CLASSES
from wbcd.errors import BundleInvalid
from wbcd.morphology import find_cells
from wbcd.recipe import Recipe
from wbcd.records import Cell, Tomogram

EARLY = 13 * 4


def gauge(threshold: float = 5.0) -> Gauge:
    return Gauge(np.zeros((2, EARLY), np.float32), np.eye(EARLY, 7, dtype=np.float32), threshold, 0.99, 200)


@pytest.fixture
def knowing(tmp_path: Path) -> Bundle:
    """A toy bundle with everything that tells what it does not know."""
    plain = toy_bundle(tmp_path / "plain")
    model = replace(
        plain.model,
        instrument=InstrumentRange((1.15, 1.25), (0.52, 0.545), (0.05, 0.21), (0.0, 0.004)),
        conformal=Conformal("lac", 0.9, (0.4, float("inf"))),
    )
    return save_bundle(tmp_path / "knowing", plain.network, model, gauge())


def test_all_of_it_comes_back(knowing: Bundle) -> None:
    again = load_bundle(knowing.path)
    assert again.model == knowing.model
    assert again.model.conformal == Conformal("lac", 0.9, (0.4, float("inf")))
    assert again.gauge is not None
    np.testing.assert_array_equal(again.gauge.whitening, gauge().whitening)
    assert (again.gauge.threshold, again.gauge.acceptance, again.gauge.cells) == (5.0, 0.99, 200)
    text = (knowing.path / "README.md").read_text()
    assert "unknown_cell" in text
    assert "90%" in text
    assert "objective_na 1.15 to 1.25" in text


def test_what_decides_over_flags_is_part_of_the_models_id(knowing: Bundle, tmp_path: Path) -> None:
    plain = toy_bundle(tmp_path / "plain")
    tighter = save_bundle(tmp_path / "tighter", plain.network, knowing.model, gauge(4.0))
    assert len({plain.model_id, knowing.model_id, tighter.model_id}) == 3


def test_without_a_gauge_the_card_promises_none(knowing: Bundle, tmp_path: Path) -> None:
    bare = save_bundle(tmp_path / "bare", knowing.network, knowing.model)
    assert bare.model.unknown is None
    assert bare.gauge is None


@pytest.mark.parametrize(
    ("cell", "flagged"),
    [
        ({}, False),
        ({"objective_na": 1.2, "wavelength_um": 0.532, "pitch_um": 0.1}, False),
        ({"objective_na": 0.9}, True),
        ({"wavelength_um": 0.633}, True),
        ({"pitch_um": 0.3}, True),
        ({"objective_na": float("nan")}, True),
    ],
)
def test_an_instrument_unlike_the_trainings_is_flagged(knowing: Bundle, cell: dict[str, float], flagged: bool) -> None:
    knowing = replace(knowing, gauge=None)
    (prediction,) = Classifier(knowing, "cpu").predict([replace(toy_cell(), **cell)])
    assert (OUTSIDE_INSTRUMENT_RANGE in prediction.flags) is flagged
    assert (UNCLASSIFIED in prediction.flags) is flagged


@pytest.mark.parametrize(("sd", "flagged"), [(0.001, False), (0.008, True)])
def test_noise_beyond_the_trainings_is_flagged(knowing: Bundle, sd: float, flagged: bool) -> None:
    noise = np.random.default_rng(0).normal(0, sd, toy_cell().ri.shape).astype(np.float32)
    (prediction,) = Classifier(replace(knowing, gauge=None), "cpu").predict([replace(toy_cell(), ri=toy_cell().ri + noise)])
    assert (OUTSIDE_INSTRUMENT_RANGE in prediction.flags) is flagged


def test_a_tomogram_hands_its_instrument_to_its_cells() -> None:
    z, y, x = np.meshgrid(*(np.arange(-20, 20),) * 3, indexing="ij")
    ri = np.where(z**2 + y**2 + x**2 < 144, 1.37, 1.337).astype(np.float32)
    (cell,) = find_cells(Tomogram(ri, (0.3, 0.25, 0.25), 1.337, wavelength_um=0.633, objective_na=1.1), Recipe())
    assert (cell.objective_na, cell.wavelength_um, cell.pitch_um) == (1.1, 0.633, 0.25)


def test_features_far_from_every_class_are_unknown(knowing: Bundle) -> None:
    cells = [toy_cell(1.5 + 0.3 * i, number=i + 1) for i in range(5)]
    blind = Classifier(replace(knowing, gauge=None), "cpu")
    early = blind.outputs_of_cells(cells).early.numpy()
    distances = gauge().distance(early)
    limit = float(np.sort(distances)[2])
    (*predictions,) = Classifier(replace(knowing, gauge=gauge(limit)), "cpu").predict(cells)
    assert [UNKNOWN_CELL in p.flags for p in predictions] == (distances > limit).tolist()
    assert [UNCLASSIFIED in p.flags for p in predictions] == (distances > limit).tolist()
    assert sum(distances > limit) == 2


def test_further_classes_of_the_set_are_named_and_the_cell_is_counted(knowing: Bundle) -> None:
    cells: list[Cell] = [toy_cell(1.5 + 0.3 * i, number=i + 1) for i in range(5)]
    for prediction in Classifier(replace(knowing, gauge=None), "cpu").predict(cells):
        # "large" is in every set; "small" where it is probable enough.
        wanted = {"large"} | ({"small"} if 1 - prediction.probabilities["small"] <= 0.4 else set()) | {prediction.label}
        assert {f.removeprefix(MAY_BE) for f in prediction.flags} == wanted - {prediction.label}
        assert UNCLASSIFIED not in prediction.flags
    assert set(CLASSES) == {"small", "large"}


def _edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "metadata.json"
        card = json.loads(file.read_text())
        change(card["wbcd"])
        file.write_text(json.dumps(card))

    return edit


def _other_gauge(folder: Path) -> None:
    file = folder / "unknown.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_other_gauge, "digest"),
        (lambda folder: (folder / "unknown.safetensors").unlink(), "not there"),
        (_edit(lambda card: card["unknown"].update(threshold=-1)), "threshold"),
        (_edit(lambda card: card["unknown"].update(acceptance="all")), "acceptance"),
        (_edit(lambda card: card["unknown"].pop("digest")), "digest"),
        (_edit(lambda card: card["conformal"].update(method="best")), "method"),
        (_edit(lambda card: card["conformal"].update(thresholds=[0.1])), "thresholds"),
        (_edit(lambda card: card["conformal"].update(thresholds=[0.1, "x"])), "thresholds"),
        (_edit(lambda card: card["conformal"].update(coverage=2)), "coverage"),
        (_edit(lambda card: card["instrument"].update(objective_na=[1.3, 1.2])), "objective_na"),
        (_edit(lambda card: card["instrument"].update(colour=[1, 2])), "colour"),
    ],
)
def test_a_part_that_does_not_hold_is_refused(knowing: Bundle, damage: Callable[[Path], None], what: str) -> None:
    damage(knowing.path)
    with pytest.raises(BundleInvalid, match=what):
        load_bundle(knowing.path)


@pytest.mark.parametrize("shape", [(2, EARLY + 1), (1, EARLY), (MAX_CLASSES + 1, EARLY)])
def test_a_gauge_of_another_shape_is_refused(knowing: Bundle, tmp_path: Path, shape: tuple[int, int]) -> None:
    odd = replace(gauge(), means=np.zeros(shape, np.float32))
    with pytest.raises(BundleInvalid, match="means"):
        save_bundle(tmp_path / "odd", knowing.network, knowing.model, odd)
