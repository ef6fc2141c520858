"""Training sets: a Zarr store of cells as the network sees them, made by the simulated microscope or by anything else.

    ri_delta    float16 [n, z, y, x]   n - n_m at the network's pitch, not clipped
    label       int16 [n]              index into the card's classes
    donor       int16 [n]
    morphology  float32 [n, 6]         volume fL, surface um2, sphericity, dry mass pg, density g/dL, mean RI
    part_done   uint8 [parts]          1 when a part's cells are written

One part is one chunk along n in every array, and one task of one process: nothing is shared while writing, volumes cross no
process boundary, and what a killed run left behind is taken up where it stopped. The card (attributes) states how the
set was made and, once complete, the hash of its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from wbcd.classification import InputSpec
from wbcd.errors import BadValue, BundleInvalid
from wbcd.records import Morphology

FORMAT = "wbcd-training-set"
FORMAT_VERSION = 1
PART = 16
"""Cells in a part: about a second or two of work, and 5 MB to write."""

SIX = ("volume_fl", "surface_area_um2", "sphericity", "dry_mass_pg", "protein_density_g_dl", "mean_ri")
SPLITS = ("train", "validation", "test", "test_donor")
HELD_OUT_DONORS = 0.1
MIN_DONORS_TO_HOLD_OUT = 5


@dataclass(frozen=True, slots=True)
class CellSample:
    """One cell of a set: ``ri_delta`` float [z, y, x]; ``label`` and ``donor`` are indices; ``six`` as in :data:`SIX`."""

    ri_delta: NDArray[np.float32]
    label: int
    donor: int
    six: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """A complete set in memory. ``ri_delta`` float16 [n, z, y, x]; ``card``: the attributes as stored."""

    path: Path
    classes: tuple[str, ...]
    input: InputSpec
    ri_delta: NDArray[np.float16]
    label: NDArray[np.int64]
    donor: NDArray[np.int64]
    morphology: NDArray[np.float32]
    card: Mapping[str, Any]

    @property
    def data_hash(self) -> str:
        """BLAKE2b-160 of labels, donors, morphology and volumes."""
        return str(self.card["data_hash"])

    def indices(self, split: str) -> NDArray[np.intp]:
        """Cells of one of :data:`SPLITS`, ascending. Raises BadValue on another name or an empty split."""
        if split not in SPLITS:
            raise BadValue(f"split is {split!r}; it must be one of {', '.join(SPLITS)}.")
        found = np.flatnonzero(split_of(self.label, self.donor, int(self.card["seed"])) == SPLITS.index(split))
        if not len(found):
            raise BadValue(f"{self.path}: split {split!r} has no cell.", action="Make a larger set, or one of more donors.")
        return found


def six_of(morphology: Morphology) -> tuple[float, ...]:
    """The six parameters in the order of :data:`SIX`."""
    return tuple(float(getattr(morphology, name)) for name in SIX)


def split_of(label: NDArray[np.integer[Any]], donor: NDArray[np.integer[Any]], seed: int) -> NDArray[np.int8]:
    """Index into :data:`SPLITS` for each cell.

    Whole donors are held out first (a tenth, at least one, when there are five or more): "test_donor" is the honest figure,
    since shuffling cells lets a network recognise a donor. The rest is shuffled 7:1:2 within each class, as in the paper.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    out = np.full(len(label), -1, dtype=np.int8)
    donors = np.unique(donor)
    if len(donors) >= MIN_DONORS_TO_HOLD_OUT:
        held = rng.permutation(donors)[: max(1, round(HELD_OUT_DONORS * len(donors)))]
        out[np.isin(donor, held)] = SPLITS.index("test_donor")
    for kind in np.unique(label):
        cells = rng.permutation(np.flatnonzero((label == kind) & (out < 0)))
        train, validation = round(0.7 * len(cells)), round(0.8 * len(cells))
        out[cells[:train]] = 0
        out[cells[train:validation]] = 1
        out[cells[validation:]] = 2
    return out


def create(path: Path, cells: int, card: Mapping[str, Any]) -> None:
    """An empty store of ``cells`` cells, or the one that is there when its card says the same (then it is resumed).

    Raises BadValue when the folder holds a set made another way, or something else.
    """
    card = {"format": FORMAT, "format_version": FORMAT_VERSION, "cells": cells, **card}
    if path.exists():
        _check_same(path, card)
        return
    shape = tuple(card["input"]["shape"])
    # The attributes come last: a store without them was never begun and may be made again.
    group = zarr.create_group(path, zarr_format=3)
    group.create_array("ri_delta", shape=(cells, *shape), chunks=(PART, *shape), dtype="float16")
    group.create_array("label", shape=(cells,), chunks=(PART,), dtype="int16")
    group.create_array("donor", shape=(cells,), chunks=(PART,), dtype="int16")
    group.create_array("morphology", shape=(cells, len(SIX)), chunks=(PART, len(SIX)), dtype="float32")
    group.create_array("part_done", shape=(part_count(cells),), chunks=(1,), dtype="uint8")
    group.attrs.update({**card, "complete": False})


def part_count(cells: int) -> int:
    """Parts of a set; the last one may be short."""
    return -(-cells // PART)


def part_range(part: int, cells: int) -> range:
    """Cell indices of a part."""
    return range(part * PART, min((part + 1) * PART, cells))


def missing_parts(path: Path) -> list[int]:
    """Parts not yet written."""
    done = np.asarray(_open(path, "r")["part_done"][:])
    return [int(i) for i in np.flatnonzero(done == 0)]


def write_part(path: Path, part: int, samples: Sequence[CellSample]) -> None:
    """Write one part and only then mark it: a killed process leaves it to be made again."""
    group = _open(path, "r+")
    cells = part_range(part, group["label"].shape[0])
    if len(samples) != len(cells):
        raise BadValue(f"{path}: part {part} has {len(samples)} cells; it must have {len(cells)}.")
    here = slice(cells.start, cells.stop)
    group["ri_delta"][here] = np.stack([s.ri_delta for s in samples]).astype(np.float16)
    group["label"][here] = np.array([s.label for s in samples], dtype=np.int16)
    group["donor"][here] = np.array([s.donor for s in samples], dtype=np.int16)
    group["morphology"][here] = np.array([s.six for s in samples], dtype=np.float32)
    group["part_done"][part] = 1


def finish(path: Path) -> str:
    """Mark a set complete and return its hash. Raises BadValue while parts are missing."""
    if missing := missing_parts(path):
        raise BadValue(f"{path}: {len(missing)} parts are not written, the first is {missing[0]}.", action="Run it again.")
    group = _open(path, "r+")
    digest = _content_hash(group)
    group.attrs.update({"complete": True, "data_hash": digest})
    return digest


def load(path: Path) -> TrainingSet:
    """The whole set into memory, checked against its own card. Raises BadValue naming what does not hold."""
    group = _open(path, "r")
    card = dict(group.attrs)
    if card.get("format") != FORMAT or card.get("format_version") != FORMAT_VERSION:
        raise BadValue(f"{path}: format is {card.get('format')!r}; it must be {FORMAT!r} version {FORMAT_VERSION}.")
    if card.get("complete") is not True:
        raise BadValue(f"{path}: the set is not complete.", action="Run the command that makes it again; it goes on.")
    if _content_hash(group) != card.get("data_hash"):
        raise BadValue(f"{path}: the content is not what its card's data_hash says.", action="Make or copy the set again.")
    spec = _spec(path, card)
    ri_delta = np.asarray(group["ri_delta"][:])
    if ri_delta.shape[1:] != spec.shape:
        raise BadValue(f"{path}: ri_delta holds {ri_delta.shape[1:]} voxels a cell; its card says {spec.shape}.")
    label, donor = (np.asarray(group[name][:]).astype(np.int64) for name in ("label", "donor"))
    classes = tuple(str(c) for c in card["classes"])
    if len(label) and not 0 <= label.min() <= label.max() < len(classes):
        raise BadValue(f"{path}: label runs to {label.max()}; the card has {len(classes)} classes.")
    return TrainingSet(path, classes, spec, ri_delta, label, donor, np.asarray(group["morphology"][:]), card)


def spec_to_card(spec: InputSpec) -> dict[str, Any]:
    """JSON-ready input specification."""
    return {"shape": list(spec.shape), "voxel_um": list(spec.voxel_um), "scale": spec.scale}


def check_matches(data: TrainingSet, classes: tuple[str, ...], spec: InputSpec, model: Path) -> None:
    """A model can be measured only on cells prepared for it. Raises BundleInvalid."""
    if data.classes != classes or data.input != spec:
        raise BundleInvalid(
            f"{model}: takes {spec.shape} voxels of {spec.voxel_um} um in classes {classes};"
            f" {data.path} holds {data.input.shape} of {data.input.voxel_um} in {data.classes}.",
            action="Make a set with the model's input, or train a model on this set.",
        )


def _spec(path: Path, card: Mapping[str, Any]) -> InputSpec:
    try:
        given = card["input"]
        z, y, x = (int(n) for n in given["shape"])
        dz, dy, dx = (float(v) for v in given["voxel_um"])
        return InputSpec((z, y, x), (dz, dy, dx), float(given["scale"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadValue(f"{path}: the card's input is {card.get('input')!r}; shape, voxel_um and scale are needed.") from error


def _open(path: Path, mode: Any) -> Any:
    try:
        return zarr.open_group(path, mode=mode, zarr_format=3)
    except (OSError, KeyError, ValueError) as error:
        raise BadValue(f"{path}: not a training set: {error}.", action="Make one with `wbcd dataset make`.") from error


def _check_same(path: Path, card: Mapping[str, Any]) -> None:
    found = dict(_open(path, "r").attrs)
    wanted = json.loads(json.dumps(card))
    differing = [key for key, value in wanted.items() if found.get(key) != value]
    if differing:
        key = differing[0]
        raise BadValue(
            f"{path}: holds a set whose {key} is {found.get(key)!r}, not {wanted[key]!r}.",
            action="Choose another folder, or give the same arguments to go on with this one.",
        )


def _content_hash(group: Any) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name in ("label", "donor", "morphology"):
        digest.update(np.ascontiguousarray(group[name][:]).tobytes())
    cells = group["label"].shape[0]
    for part in range(part_count(cells)):
        here = part_range(part, cells)
        digest.update(np.ascontiguousarray(group["ri_delta"][here.start : here.stop]).tobytes())
    return digest.hexdigest()
