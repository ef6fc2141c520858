"""Training on a CUDA device: the recorded update against the same one launched kernel by kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_training import toy_set

from wbcd.training import dataset as sets
from wbcd.training import fit
from wbcd.training.augmentation import PAPER, Augmentation, augment
from wbcd.training.fit import PRESETS, Training
from wbcd.training.graphed import WARM_UPS, GraphedUpdate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BATCH = 8


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> sets.TrainingSet:
    return sets.load(toy_set(tmp_path_factory.mktemp("toys") / "set.zarr", cells=96))


def training(
    data: sets.TrainingSet, out: Path, preset: str = "modern", precision: str = "float32", epochs: int = 2
) -> Training:
    recipe = replace(PRESETS[preset], batch=BATCH)
    return Training(data, out, recipe, epochs=epochs, width=4, device="cuda", precision=precision)


def test_recorded_updates_are_the_launched_ones(toys: sets.TrainingSet, tmp_path: Path) -> None:
    recorded, launched = training(toys, tmp_path / "a"), training(toys, tmp_path / "b")
    launched._full_batch = launched._update
    assert isinstance(recorded._full_batch, GraphedUpdate)
    rng = np.random.default_rng(0)
    for step in range(WARM_UPS + 6):
        # A short batch now and then, which is never recorded, and another rate each time.
        cells = torch.from_numpy(rng.choice(recorded.cells, 3 if step % 4 == 3 else BATCH, replace=False)).cuda()
        answers = []
        for run in (recorded, launched):
            run.network.train()
            run._set_rate(step, 12)
            answers.append(run._step(cells, torch.Generator("cuda").manual_seed(step)).tolist())
        assert answers[0] == pytest.approx(answers[1], rel=2e-3), step
    assert recorded._full_batch._graph is not None
    for name, weight in recorded.network.state_dict().items():
        torch.testing.assert_close(weight, launched.network.state_dict()[name], rtol=0.02, atol=2e-3, msg=name)


def test_each_replay_steps_the_weights_by_the_rate_of_the_moment(toys: sets.TrainingSet, tmp_path: Path) -> None:
    run = training(toys, tmp_path / "a")
    run.network.train()
    cells = torch.from_numpy(run.cells[:BATCH]).cuda()
    for step in range(WARM_UPS + 1):
        run._step(cells, torch.Generator("cuda").manual_seed(step))
    for group in run.optimizer.param_groups:
        group["lr"].fill_(0.0)
    before = [p.detach().clone() for p in run.network.parameters()]
    run._step(cells, torch.Generator("cuda").manual_seed(9))
    assert all(torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True))
    run._set_rate(5, 12)
    run._step(cells, torch.Generator("cuda").manual_seed(10))
    assert not any(torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True) if a.ndim > 1)


@pytest.mark.parametrize("preset", ["modern", "paper"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_there_learns_and_goes_on(toys: sets.TrainingSet, tmp_path: Path, preset: str, precision: str) -> None:
    class Killed(Exception):
        pass

    def kill(epoch: fit.Epoch) -> None:
        if epoch.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        training(toys, tmp_path / "a", preset, precision, epochs=6).fit(kill)
    run = training(toys, tmp_path / "a", preset, precision, epochs=6)
    rows: list[fit.Epoch] = []
    run.fit(rows.append)
    assert [row.epoch for row in rows] == [3, 4, 5, 6]
    assert all(np.isfinite([row.train_loss, row.validation_loss]).all() for row in rows)
    right = (run.logits(run.watched).argmax(1) == toys.label[run.watched]).mean()
    assert right > 0.7


@pytest.mark.parametrize("strength", [Augmentation(), PAPER], ids=["modern", "paper"])
def test_cells_moved_there_are_those_moved_here(strength: Augmentation) -> None:
    """With nothing drawn: what the devices draw differs."""
    still = replace(
        strength, translation_um=0.0, rotate=False, flip=False, elastic_um=0.0, zoom=0.0, noise_ri=0.0, offset_ri=0.0,
        scale=0.0, crop_um=0.0,
    )  # fmt: skip
    cells = torch.rand((8, 9, 11, 11))
    there = augment(cells.cuda(), (0.4, 0.4, 0.4), still, torch.Generator("cuda").manual_seed(0)).cpu()
    here = augment(cells, (0.4, 0.4, 0.4), still, torch.Generator().manual_seed(0))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)
