"""Checkpoints of a training: safetensors and JSON, nothing that executes on loading.

A checkpoint holds the network, the optimizer's moments and the best network so far. Random numbers need no saving: every step
draws from a generator seeded by (seed, epoch, step), so a resumed training sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_save
from torch import Tensor

from wbcd.classification.bundle import write_file
from wbcd.errors import BadValue

PROGRESS = "checkpoint.json"
KEPT = ("epoch", "best_epoch", "best_loss", "history", "step", "loss_sum", "right", "spent_s")


@dataclass(slots=True)
class Progress:
    """``identity``: what the training is of; ``epoch``: epochs done; ``history``: one row an epoch.

    Of an epoch that is begun: ``step`` steps done, the sums of its losses and right answers, the seconds that it took so far.
    """

    identity: dict[str, Any]
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    history: list[dict[str, float]] = field(default_factory=list)
    step: int = 0
    loss_sum: float = 0.0
    right: float = 0.0
    spent_s: float = 0.0


def save(
    folder: Path,
    progress: Progress,
    network: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Both files, the state first and under its epoch's name: the JSON that names it is the commit."""
    tensors = {f"network.{k}": v for k, v in network.items()} | {f"best.{k}": v for k, v in best.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    name = _state_name(progress.epoch, progress.step)
    write_file(folder / name, safetensors_save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}))
    text = {"identity": progress.identity, "state": name, **{key: getattr(progress, key) for key in KEPT}}
    write_file(folder / PROGRESS, json.dumps(text, indent=1).encode())
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def resume(
    folder: Path,
    identity: dict[str, Any],
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Put network and optimizer back where the last checkpoint left them; None when there is none.

    Returns the progress and the best network's tensors. Raises BadValue when the folder holds another training, or a part of
    one.
    """
    file = folder / PROGRESS
    if not file.exists():
        return None
    try:
        stored = json.loads(file.read_bytes())
        found, name = stored["identity"], str(stored["state"])
        progress = Progress(found, **{key: stored[key] for key in KEPT})
        expected = _state_name(int(progress.epoch), int(progress.step))
    except (ValueError, KeyError, TypeError) as error:
        raise BadValue(f"{file}: not a checkpoint: {error}.", action="Remove the folder and train anew.") from error
    _check_identity(folder, found, identity)
    if name != expected:
        raise BadValue(f"{file}: state is {name!r}; it must be {expected!r}.", action="Remove the folder and train anew.")
    try:
        tensors = load_file(folder / name)
        network.load_state_dict(_part(tensors, "network."), strict=True)
        _restore(optimizer, _part(tensors, "optimizer."))
    except (OSError, SafetensorError, RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise BadValue(
            f"{folder / name}: not this training's state: {reason}.", action="Remove the folder and train anew."
        ) from error
    return progress, _part(tensors, "best.")


def _state_name(epoch: int, step: int) -> str:
    return f"checkpoint-{epoch:04d}-{step:06d}.safetensors"


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _restore(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Moments get their weights' own memory layout: the fused kernels walk both by address, whatever their strides."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in moments.items():
        number, key = name.split(".", 1)
        weight = weights[int(number)]
        laid = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
        state.setdefault(int(number), {})[key] = laid
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _check_identity(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise BadValue(
                f"{folder}: holds a training whose {key} is {found.get(key)!r}, not {value!r}.",
                action="Choose another folder, or give the same arguments to go on with this one.",
            )
