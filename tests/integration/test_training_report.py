"""The judge's report and the comparison of two models, through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers_training import four_set
from PIL import Image
from scipy.stats import binomtest

from wbcd.classification import Classifier, Envelope, fit_gauge, load_bundle, save_bundle
from wbcd.cli import cli
from wbcd.errors import BadValue
from wbcd.training import dataset as sets
from wbcd.training import judge, train
from wbcd.training.calibration import expected_calibration_error
from wbcd.training.evaluation import probabilities_of
from wbcd.training.judge import compare_models, judge_models


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_set(tmp_path_factory.mktemp("set") / "four.zarr")


@pytest.fixture(scope="module")
def models(store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of the four classes, and one of the lineages."""
    folder = tmp_path_factory.mktemp("models")
    made = [
        train(store, folder / f"four-{seed}", width=3, epochs=2, seed=seed, device="cpu", name="four").bundle for seed in (0, 1)
    ]
    return [*made, train(store, folder / "two", width=3, epochs=2, device="cpu", task="two", name="two").bundle]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(w) for w in words])


def test_the_report_of_two_seeds(store: Path, models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report"
    result = run("evaluate", models[0], store, "--also", models[1], "--split", "test_donor", "--out", out)
    assert result.exit_code == 0, result.output
    assert "over 2 models" in result.output
    facts = json.loads((out / "report.json").read_text())
    accuracies = [m["accuracy"] for m in facts["models"]]
    assert facts["summary"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert facts["summary"]["accuracy"]["sd"] == pytest.approx(np.std(accuracies, ddof=1))
    assert facts["simulated"] is True
    assert sum(row["n"] for row in facts["per_donor"]) == facts["data"]["cells"]
    page = (out / "report.md").read_text()
    assert "simulated" in page
    assert facts["data"]["hash"] in page
    for name in ("overview.png", "failures.png"):
        with Image.open(out / name) as picture:
            assert picture.size[0] > 300
            assert np.asarray(picture.convert("L")).std() > 5


def test_a_report_without_a_mistake_has_no_picture_of_mistakes(
    store: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an earlier report in the same folder had one."""
    judge_models([models[0]], store, device="cpu", out=tmp_path)
    assert "failures.png" in (tmp_path / "report.md").read_text()
    data = sets.load(store)

    answers_of = judge.answers_of

    def all_right(classifier: Classifier, ri: Any, cells: Any) -> Any:
        _, early = answers_of(classifier, ri, cells)
        return 0.96 * np.eye(len(data.classes))[data.label[cells]] + 0.01, early

    monkeypatch.setattr(judge, "answers_of", all_right)
    judge_models([models[0]], store, device="cpu", out=tmp_path)
    assert not (tmp_path / "failures.png").exists()
    page = (tmp_path / "report.md").read_text()
    assert "failures.png" not in page
    assert page.rstrip().endswith("No cell was labelled wrongly.")


def test_calibration_before_scaling_is_that_of_the_bare_logits(store: Path, models: list[Path]) -> None:
    facts = judge_models([models[0]], store, device="cpu").facts
    data, bundle = sets.load(store), load_bundle(models[0])
    cells = data.indices("test")
    scaled = probabilities_of(Classifier(bundle, "cpu"), data.ri_delta, cells)
    powers = scaled**bundle.model.temperature
    bare = powers / powers.sum(axis=1, keepdims=True)
    assert facts["calibration"]["ece_before"] == pytest.approx(expected_calibration_error(bare, data.label[cells]), abs=1e-9)
    assert facts["calibration"]["ece_after"] == pytest.approx(expected_calibration_error(scaled, data.label[cells]), abs=1e-9)


def test_the_four_are_summed_to_the_two(store: Path, models: list[Path]) -> None:
    facts = judge_models([models[0]], store, device="cpu").facts
    data, bundle = sets.load(store), load_bundle(models[0])
    cells = data.indices("test")
    scaled = probabilities_of(Classifier(bundle, "cpu"), data.ri_delta, cells)
    right = (scaled[:, 2:].sum(1) > 0.5) == (data.label[cells] >= 2)
    assert facts["summed_to_lineages"]["accuracy"]["mean"] == pytest.approx(right.mean())


def test_what_the_daemon_would_not_count_is_said(store: Path, models: list[Path], tmp_path: Path) -> None:
    """By the model's own distance and range, and what is right of the rest."""
    bundle, data = load_bundle(models[0]), sets.load(store)
    cells = data.indices("test")
    out = Classifier(bundle, "cpu").outputs(torch.from_numpy(data.ri_delta[cells].astype(np.float32)))
    gauge = bundle.gauge or fit_gauge(out.early.numpy(), data.label[cells], out.early.numpy(), acceptance=0.5)
    distance = gauge.distance(out.early.numpy())
    # A limit that a third of the cells lies beyond, and a range that leaves out a few more.
    gauge = replace(gauge, threshold=float(np.quantile(distance, 2 / 3)))
    volume = data.morphology[cells, 0]
    envelope = Envelope((float(np.quantile(volume, 0.1)), 1e6), (-0.5, 0.5))
    strict = save_bundle(tmp_path / "strict", bundle.network, replace(bundle.model, envelope=envelope), gauge)
    facts = judge_models([strict.path], store, device="cpu", out=tmp_path / "report").facts["counted"]
    counted = (distance <= gauge.threshold) & (volume >= envelope.volume_fl[0])
    right = out.logits.numpy().argmax(1) == data.label[cells]
    assert 0.3 < facts["unclassified"] == pytest.approx(1 - counted.mean())
    assert facts["accuracy"] == pytest.approx(right[counted].mean())
    assert f"{facts['unclassified']:.1%} of them unclassified" in " ".join(
        (tmp_path / "report" / "report.md").read_text().split()
    )


def test_a_model_that_cannot_tell_unknown_cells_says_so(store: Path, models: list[Path], tmp_path: Path) -> None:
    bundle = load_bundle(models[0])
    blind = save_bundle(tmp_path / "blind", bundle.network, replace(bundle.model, envelope=None, conformal=None), None)
    result = run("evaluate", blind.path, store)
    assert result.exit_code == 0, result.output
    assert "cannot tell unknown cells" in result.output
    nowhere = replace(bundle.model, envelope=Envelope((1e5, 1e6), (-0.5, 0.5)))
    none = save_bundle(tmp_path / "none", bundle.network, nowhere, bundle.gauge)
    assert "leaves 100.0% of them unclassified." in run("evaluate", none.path, store).output


def test_two_models_are_compared_on_the_same_cells(store: Path, models: list[Path]) -> None:
    result = run("model", "compare", models[0], models[1], store, "--json", "--split", "train")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    data = sets.load(store)
    cells = data.indices("train")
    right = [
        probabilities_of(Classifier(load_bundle(m), "cpu"), data.ri_delta, cells).argmax(1) == data.label[cells]
        for m in models[:2]
    ]
    only = [int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())]
    assert [found["only_a"], found["only_b"]] == only
    expected = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    assert found["p_value"] == pytest.approx(expected)


def test_a_model_of_types_is_compared_with_one_of_lineages(store: Path, models: list[Path]) -> None:
    found, what, warnings = compare_models(models[0], models[2], store, device="cpu")
    assert not warnings
    assert what == "lymphoid and myeloid"
    assert found.n == len(sets.load(store).indices("test"))
    assert found.correct_a / found.n == pytest.approx(
        judge_models([models[0]], store, device="cpu").facts["summed_to_lineages"]["accuracy"]["mean"]
    )


def test_what_cannot_be_put_side_by_side_is_refused(store: Path, models: list[Path]) -> None:
    with pytest.raises(BadValue, match="classes"):
        judge_models([models[0], models[2]], store, device="cpu")
    with pytest.raises(BadValue, match="no model"):
        judge_models([], store)


def test_cells_that_trained_the_model_are_no_held_out_figure(store: Path, models: list[Path]) -> None:
    result = run("evaluate", models[0], store, "--split", "train")
    assert "no held-out figure" in result.output


def test_another_split_of_the_same_set_shows_cells_of_the_training(store: Path, models: list[Path]) -> None:
    data = sets.load(store)
    fitted = np.concatenate([data.indices("train"), data.indices("validation")])
    known = int(np.isin(data.indices("test", "cell"), fitted).sum())
    assert known
    facts = judge_models([models[0]], store, split_by="cell", device="cpu").facts
    assert any(f"{known} of the" in text for text in facts["warnings"])
    result = run("model", "compare", models[0], models[1], store, "--split-by", "cell")
    assert result.output.count("no held-out figure") == 2
    assert "no held-out figure" not in run("model", "compare", models[0], models[1], store).output


def test_another_set_of_the_same_simulated_people_says_nothing_of_unseen_donors(
    store: Path, models: list[Path], tmp_path: Path
) -> None:
    twin = four_set(tmp_path / "twin.zarr", seed=77)
    facts = judge_models([models[0]], twin, split="all", device="cpu").facts
    assert any("has seen" in text and "judged donors" in text for text in facts["warnings"])
    assert not any("has seen" in text for text in judge_models([models[0]], store, device="cpu").facts["warnings"])
