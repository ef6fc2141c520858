"""Training on a CUDA device: the recorded update against the same one launched kernel by kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wbcd.training import dataset as sets
from wbcd.training import fit
from wbcd.training.augmentation import PAPER, Augmentation, augment
from wbcd.training.fit import PRESETS, Training
from wbcd.training.graphed import WARM_UPS, GraphedUpdate
from wbcd.training.pictures import Pictures

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BATCH = 8


SHAPE, PITCH = (12, 16, 16), (0.8, 0.8, 0.8)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> sets.TrainingSet:
    """Small and large balls in noise, written as they are: nothing is simulated or measured, so that any machine can."""
    path, cells = tmp_path_factory.mktemp("toys") / "set.zarr", 192
    card = {
        "classes": ["small", "large"],
        "seed": 0,
        "donors": 6,
        "path": "custom",
        "simulated": True,
        "input": {"shape": list(SHAPE), "voxel_um": list(PITCH), "scale": 9.0},
        "recipe_id": "none",
        "pictures": "none",
    }
    sets.create(path, cells, card)
    rng = np.random.default_rng(0)
    z, y, x = (((np.arange(n) - n // 2) * d) ** 2 for n, d in zip(SHAPE, PITCH, strict=True))
    distance = np.sqrt(z[:, None, None] + y[None, :, None] + x)
    plane = Pictures(np.zeros(SHAPE[1:], np.float32), np.ones(SHAPE[1:], np.float32))
    for part in sets.missing_parts(path):
        samples = []
        for number in sets.part_range(part, cells):
            radius = (2.0, 3.5)[number % 2] + rng.normal(0, 0.2)
            ri_delta = 0.03 * (distance < radius) + rng.normal(0, 3e-4, SHAPE)
            six = (4.19 * radius**3, 1.0, 1.0, 1.0, 15.0, 1.36)
            samples.append(sets.CellSample(ri_delta.astype(np.float32), number % 2, number % 6, six, plane))
        sets.write_part(path, part, samples)
    sets.finish(path)
    return sets.load(path)


def training(
    data: sets.TrainingSet, out: Path, preset: str = "modern", precision: str = "float32", epochs: int = 2
) -> Training:
    recipe = replace(PRESETS[preset], batch=BATCH)
    return Training(data, out, recipe, epochs=epochs, width=4, device="cuda", precision=precision)


def test_recorded_updates_are_the_launched_ones(toys: sets.TrainingSet, tmp_path: Path) -> None:
    recorded, launched = training(toys, tmp_path / "a"), training(toys, tmp_path / "b")
    recorded._graphed = GraphedUpdate()
    rng = np.random.default_rng(0)
    losses = []
    for step in range(WARM_UPS + 6):
        # A short batch now and then, which is never recorded, and another rate each time.
        cells = torch.from_numpy(rng.choice(recorded.cells, 3 if step % 4 == 3 else BATCH, replace=False)).cuda()
        for run in (recorded, launched):
            run.network.train()
            run._set_rate(step, 12)
        losses.append([float(r._step(cells, torch.Generator("cuda").manual_seed(step))[0]) for r in (recorded, launched)])
    assert recorded._graphed.recorded
    # Kernels of no fixed order, and Adam's first steps are of the rate's size whatever the gradient's: alike, not equal.
    ours, theirs = np.array(losses).T
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-3)
    np.testing.assert_allclose(ours, theirs, rtol=0.1)
    moved = [torch.cat([p.detach().ravel() for p in r.network.parameters()]) for r in (recorded, launched)]
    start = torch.cat([p.detach().ravel() for p in training(toys, tmp_path / "c").network.parameters()])
    ways = [m - start for m in moved]
    assert torch.nn.functional.cosine_similarity(ways[0], ways[1], dim=0) > 0.9
    norms = [{k: v for k, v in r.network.state_dict().items() if "num_batches" in k} for r in (recorded, launched)]
    assert all(torch.equal(v, norms[1][k]) for k, v in norms[0].items())


def test_each_replay_steps_the_weights_by_the_rate_of_the_moment(toys: sets.TrainingSet, tmp_path: Path) -> None:
    run = training(toys, tmp_path / "a")
    run._graphed = GraphedUpdate()
    run.network.train()
    cells = torch.from_numpy(run.cells[:BATCH]).cuda()
    for step in range(WARM_UPS + 1):
        run._step(cells, torch.Generator("cuda").manual_seed(step))
    assert run._graphed.recorded
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
    assert right > 0.8
    assert run._graphed is None  # its memory is given back


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
