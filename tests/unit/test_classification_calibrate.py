"""`wbcd model calibrate | bench | export | import`, as a person would, on a toy model and set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers_classification import SPEC, toy_bundle
from helpers_training import toy_set

from wbcd.classification import Bundle, load_bundle
from wbcd.classification.backends import probe
from wbcd.classification.bench import Cells, bench_inputs, smaller_inputs
from wbcd.cli import cli
from wbcd.errors import BadValue
from wbcd.training.unknown import calibrate


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_set(tmp_path_factory.mktemp("set") / "toy.zarr")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_set(tmp_path_factory.mktemp("others") / "toy.zarr", seed=9)


def wbcd(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["model", *map(str, words)], catch_exceptions=False)


def test_calibrate_writes_a_bundle_that_knows_its_limits(bundle: Bundle, cells: Path, others: Path, tmp_path: Path) -> None:
    done = wbcd("calibrate", bundle.path, cells, tmp_path / "out", "--held-out", others, "--objective-na", 1.1, 1.3, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    made = load_bundle(tmp_path / "out")
    assert made.model_id == report["model_id"] != bundle.model_id
    assert (made.path / "model.safetensors").read_bytes() == (bundle.path / "model.safetensors").read_bytes()
    assert made.gauge is not None
    assert made.gauge.cells == 144
    assert made.model.instrument is not None
    assert made.model.instrument.objective_na == (1.1, 1.3)
    assert made.model.conformal is not None
    assert set(report["figures"]) == {"test", "test_donor"}
    for row in report["figures"].values():
        assert row["accepted"] >= 0.9
        assert row["coverage"] >= 0.75
        assert 1 <= row["mean_set_size"] <= 2
    assert made.model.measured["knowing"]["test"]["cells"] == report["figures"]["test"]["cells"]


def test_too_few_validation_cells_promise_nothing(bundle: Bundle, cells: Path, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="needs 99"):
        calibrate(bundle.path, cells, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = calibrate(bundle.path, cells, tmp_path / "out", acceptance=0.8, coverage=0.6, method="aps")
    assert report.figures["test"].cells > 0


def test_bench_prints_each_backend_and_what_changes(bundle: Bundle, cells: Path) -> None:
    done = wbcd("bench", bundle.path, "--data", cells, "--cells", 6, "--batch", 2, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.output)
    # The first rows are the backends on the model's own input; the rest are smaller or coarser inputs, some of the same shape.
    own = rows[:3]
    assert [row["backend"] for row in own] == ["eager", "onnxruntime", "openvino"]
    assert all(row["shape"] == list(SPEC.shape) for row in own)
    assert all(row["largest_change"] < 1e-3 and row["ms_a_cell"] > 0 and row["labels_changed"] == 0 for row in own)
    assert len({row["accuracy"] for row in own}) == 1
    assert len(rows) == 3 + len(smaller_inputs(SPEC))
    table = wbcd("bench", bundle.path, "--batch", 1, "--no-inputs").output.splitlines()
    assert len(table) == 2 + 3
    assert "ms a cell" in table[1]


def test_a_crop_that_cuts_nothing_off_changes_nothing_and_a_small_one_does(bundle: Bundle) -> None:
    cells = Cells(probe(bundle, 4))
    same, tiny = bench_inputs(bundle, cells, [SPEC, replace(SPEC, shape=(8, 8, 8))], batch=1)
    assert same.largest_change < 1e-6
    assert tiny.largest_change > 1e-3
    assert np.isnan(same.accuracy)


def test_smaller_inputs_lie_within_the_models_box() -> None:
    for spec in smaller_inputs(SPEC):
        assert all(a <= b + 1e-9 for a, b in zip(spec.extent_um, SPEC.extent_um, strict=True))


@pytest.mark.parametrize("kind", ["onnx", "bioimageio"])
def test_export_prints_the_digest_that_import_asks_for(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    done = wbcd("export", bundle.path, tmp_path / "out", "--format", kind)
    assert done.exit_code == 0, done.output
    digest = done.output.split()[0]
    back = wbcd("import", tmp_path / "out", tmp_path / "back", "--digest", digest)
    assert back.exit_code == 0, back.output
    assert load_bundle(tmp_path / "back").model_id == bundle.model_id
    assert wbcd("import", tmp_path / "out", tmp_path / "back").exit_code == 2
    refused = wbcd("import", tmp_path / "out", tmp_path / "other", "--digest", "0" * 64)
    assert refused.exit_code == 78
    assert "SHA-256" in refused.output
    assert torch.equal(load_bundle(tmp_path / "back").network.stem[0].weight, bundle.network.stem[0].weight)
