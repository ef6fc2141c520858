"""Training sets: a Zarr store of cells as the network sees them, made by the simulated microscope or from a database.

    ri_delta     float16 [n, z, y, x]   n - n_m at the network's pitch, not clipped; one cell a chunk
    phase        float32 [n, y, x]      at normal incidence, rad, unwrapped
    amplitude    float32 [n, y, x]      at normal incidence, the medium's is 1
    label        int16 [n]              index into the card's classes
    donor        int16 [n]              index into the card's donor_names, where it has them
    purity       float32 [n]            probability that the label is right, as the sorting states it; NaN where nobody measured
    morphology   float32 [n, 6]         volume fL, surface um2, sphericity, dry mass pg, density g/dL, mean RI
    cell_id      int64 [n]              of the database, or the cell's number in the simulation
    noise_ri     float32 [n]            rms of the medium around it, NaN for simulated cells; not part of the hash
    split_*      int8 [n]               index into SPLITS, one array a scheme (wbcd.training.splits)
    part_done    uint8 [parts]          1 when a part's cells are written

One part is one shard of every array, and one task of one process: nothing is shared while writing, volumes cross no
process boundary, and what a killed run left behind is taken up where it stopped. The card (attributes, and two files beside
the set) states how the set was made and, once complete, the hash of its content.

Version 1 had chunks of 16 cells and neither pictures, purity nor stored splits; it is still read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from wbcd.classification import InputSpec
from wbcd.classification.preparation import fit_centre, resample
from wbcd.errors import BadValue, BundleInvalid
from wbcd.recipe import Recipe
from wbcd.records import LINEAGE, LINEAGES, Morphology, Shape3, Triple
from wbcd.training.pictures import Pictures
from wbcd.training.splits import ALL, SCHEMES, SPLITS, continue_splits, make_splits, split_of

__all__ = ["ALL", "LINEAGE", "LINEAGES", "SCHEMES", "SIX", "SPLITS", "CellSample", "TrainingSet", "load", "split_of"]

FORMAT = "wbcd-training-set"
FORMAT_VERSION = 2
PART = 64
"""Cells in a part: a shard of 10 to 20 MB, half a minute of simulation to lose; 100,000 cells are some 10,000 files."""

MAX_DONOR = 2**15 - 1
"""The highest number of a donor: the array of them is int16."""

SIX = ("volume_fl", "surface_area_um2", "sphericity", "dry_mass_pg", "protein_density_g_dl", "mean_ri")
_COLUMNS = ("label", "donor", "purity", "morphology", "cell_id")
SIMULATED_PATHS = ("fast", "exact", "ideal")
"""Optics by which cells are simulated; such cells follow from seed, donors and their number."""
NOISE = "noise_ri"
"""An array beside those of the hash: of it the card keeps the range, and sets of earlier versions have none."""
_MADE = ("complete", "data_hash", NOISE)
"""Attributes that say how far a set has come, not how it is made."""
_SHARDED = ("phase", "amplitude", "ri_delta")


@dataclass(frozen=True, slots=True)
class CellSample:
    """One cell of a set: ``ri_delta`` float [z, y, x]; ``label`` and ``donor`` are indices; ``six`` as in :data:`SIX`;
    ``noise_ri``: rms of the medium around it, NaN where it was not asked."""

    ri_delta: NDArray[np.float32]
    label: int
    donor: int
    six: tuple[float, ...]
    pictures: Pictures
    purity: float = 1.0
    cell_id: int = -1
    noise_ri: float = math.nan


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """A complete set in memory. ``ri_delta`` float16 [n, z, y, x]; ``card``: the attributes as stored; ``signed``: values
    below the medium's mean something (pictures), so nothing is clipped at 0.

    ``phase`` and ``amplitude`` float32 [n, y, x], or None in a set of version 1. ``splits``: one array a scheme. ``kind``: each
    cell's type where the classes are lineages of types, else None.
    """

    path: Path
    classes: tuple[str, ...]
    input: InputSpec
    ri_delta: NDArray[np.float16]
    label: NDArray[np.int64]
    donor: NDArray[np.int64]
    morphology: NDArray[np.float32]
    card: Mapping[str, Any]
    splits: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    purity: NDArray[np.float32] | None = None
    phase: NDArray[np.float32] | None = None
    amplitude: NDArray[np.float32] | None = None
    cell_id: NDArray[np.int64] | None = None
    noise_ri: NDArray[np.float32] | None = None
    kind: NDArray[np.int64] | None = None
    signed: bool = False

    @property
    def data_hash(self) -> str:
        """BLAKE2b-160 of everything that the arrays hold."""
        return str(self.card["data_hash"])

    @property
    def simulated(self) -> bool:
        """True unless the card says otherwise."""
        return bool(self.card.get("simulated", True))

    def split(self, scheme: str = "both") -> NDArray[np.int8]:
        """Index into :data:`SPLITS` for each cell. Raises BadValue on an unknown scheme."""
        if scheme not in SCHEMES:
            raise BadValue(f"the split scheme is {scheme!r}; it must be one of {', '.join(SCHEMES)}.")
        found = self.splits.get(scheme)
        return make_splits(self.label, self.donor, int(self.card["seed"]))[scheme] if found is None else found

    def indices(self, split: str, scheme: str = "both") -> NDArray[np.intp]:
        """Cells of one of :data:`SPLITS`, or of "all", ascending. Raises BadValue on another name or an empty split."""
        if split == ALL:
            return np.arange(len(self.label), dtype=np.intp)
        if split not in SPLITS:
            raise BadValue(f"split is {split!r}; it must be one of {', '.join((*SPLITS, ALL))}.")
        found = np.flatnonzero(self.split(scheme) == SPLITS.index(split))
        if not len(found):
            raise BadValue(
                f"{self.path}: split {split!r} (by {scheme}) has no cell.", action="Make a larger set, or one of more donors."
            )
        return found

    def groups(self, cells: NDArray[np.intp]) -> NDArray[np.int64]:
        """Number of the group of alike cells that each of ``cells`` is of: its class, or its type where classes are lineages.

        A lineage is two clouds of features, and between them lies what is neither: a distance from its one mean lets it pass.
        """
        if self.kind is None:
            return self.label[cells]
        return np.unique(self.kind[cells], return_inverse=True)[1].astype(np.int64)

    def origins(self) -> list[tuple[str, range]]:
        """What a joined set was joined from and which of its cells each is, in their order; of any other set nothing.

        Raises BadValue where the card's counts are not those of the cells.
        """
        found: list[tuple[str, range]] = []
        for part in self.card.get("joined") or ():
            first = found[-1][1].stop if found else 0
            how = part.get("path", "")
            made = f"simulated ({how}), seed {part['seed']}" if how in SIMULATED_PATHS else f"path {how or 'not stated'}"
            found.append((f"{len(found) + 1}: {made}", range(first, first + int(part["cells"]))))
        if found and found[-1][1].stop != len(self.label):
            raise BadValue(
                f"{self.path}: holds {len(self.label)} cells; the sets it was joined from have {found[-1][1].stop}.",
                action="Join them again.",
            )
        return found

    def has(self, split: str, scheme: str = "both") -> bool:
        """Whether a split holds any cell."""
        return bool((self.split(scheme) == SPLITS.index(split)).any())

    def spec(self, shape: Shape3 | None, voxel_um: Triple | None) -> InputSpec:
        """The set's own input, but for what is given."""
        return replace(self.input, shape=shape or self.input.shape, voxel_um=voxel_um or self.input.voxel_um)

    def at(self, spec: InputSpec) -> TrainingSet:
        """The same cells in a smaller box or at a coarser pitch, by the functions that prepare a cell for a network.

        Middles agree within half a voxel. Raises BadValue where the set does not hold what is asked for.
        """
        if spec == self.input:
            return self
        if not _shows(self.input, spec) or self.signed:
            raise BadValue(
                f"{self.path}: holds {self.input.shape} voxels of {self.input.voxel_um} um a cell;"
                f" {spec.shape} of {spec.voxel_um} cannot be made of them.",
                action="Ask for no finer pitch and no larger box, or make another set.",
            )
        delta = _resampled(self.ri_delta, self.input.voxel_um, spec.voxel_um, spec.shape)
        (_, dy, dx), (_, ny, nx) = spec.voxel_um, spec.shape
        before = (dy, *self.input.voxel_um[1:])
        pictures = {
            name: None if old is None else _resampled(old[:, None], before, (dy, dy, dx), (1, ny, nx))[:, 0]
            for name, old in (("phase", self.phase), ("amplitude", self.amplitude))
        }
        kept = {name: self.split(name) for name in SCHEMES}
        return replace(self, input=spec, ri_delta=delta, splits=kept, phase=pictures["phase"], amplitude=pictures["amplitude"])

    def as_lineages(self) -> TrainingSet:
        """The same cells as lymphoid and myeloid; the splits stay, the types' purity says nothing any more.

        Raises BadValue on a class of unknown lineage.
        """
        if self.classes == LINEAGES:
            return self
        if unknown := [c for c in self.classes if c not in LINEAGE]:
            raise BadValue(
                f"{self.path}: class {unknown[0]!r} has no known lineage; known are {', '.join(sorted(LINEAGE))}.",
                action="Train on the classes as they are (--task four).",
            )
        kept = {name: self.split(name) for name in SCHEMES}
        lineage = np.array([LINEAGES.index(LINEAGE[c]) for c in self.classes])
        # Purity is the type's: an impurity of the same lineage is none, and which lineage the others are of nobody stated.
        return replace(self, classes=LINEAGES, label=lineage[self.label], kind=self.label, splits=kept, purity=None)


def _resampled(stored: NDArray[Any], voxel_um: Triple, target_um: Triple, shape: Shape3) -> NDArray[Any]:
    """Volumes [n, z, y, x] at another pitch, their middles cut out; of the same type, for a set is gigabytes."""
    out = np.empty((len(stored), *shape), stored.dtype)
    for i, volume in enumerate(stored):
        found = torch.from_numpy(volume)
        if voxel_um != target_um:
            found = resample(found.float(), voxel_um, target_um)
        out[i] = fit_centre(found, shape).numpy()
    return out


def six_of(morphology: Morphology) -> tuple[float, ...]:
    """The six parameters in the order of :data:`SIX`."""
    return tuple(float(getattr(morphology, name)) for name in SIX)


def volume_and_contrast(morphology: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Volume in fL and mean n - n_m, [n] each, from [n, 6] in the order of :data:`SIX`.

    The contrast comes from the protein density, which does not depend on the medium: n - n_m = alpha C.
    """
    volume, density = (morphology[:, SIX.index(name)].astype(np.float64) for name in ("volume_fl", "protein_density_g_dl"))
    return volume, density * Recipe().morphology.ri_increment_ml_g / 100


def create(path: Path, cells: int, card: Mapping[str, Any]) -> None:
    """An empty store of ``cells`` cells, or the one that is there when its card says the same (then it is resumed).

    Raises BadValue when the folder holds a set made another way, or something else.
    """
    card = {"format": FORMAT, "format_version": FORMAT_VERSION, "cells": cells, **card}
    if path.exists():
        _check_same(path, card)
        return
    z, y, x = card["input"]["shape"]
    group = zarr.create_group(path, zarr_format=3)
    _sharded(group, "ri_delta", (cells, z, y, x), "float16")
    _sharded(group, "phase", (cells, y, x), "float32")
    _sharded(group, "amplitude", (cells, y, x), "float32")
    for name, kind in (("label", "int16"), ("donor", "int16"), ("cell_id", "int64"), ("purity", "float32"), (NOISE, "float32")):
        group.create_array(name, shape=(cells,), chunks=(PART,), dtype=kind)
    group.create_array("morphology", shape=(cells, len(SIX)), chunks=(PART, len(SIX)), dtype="float32")
    for scheme in SCHEMES:
        group.create_array(f"split_{scheme}", shape=(cells,), chunks=(cells,), dtype="int8")
    group.create_array("part_done", shape=(part_count(cells),), chunks=(1,), dtype="uint8")
    # The attributes come last: a store without them was never begun and may be made again.
    group.attrs.update({**card, "complete": False})


def _sharded(group: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    """A chunk a cell, a file a part; every chunk ends in its CRC-32C."""
    group.create_array(
        name,
        shape=shape,
        chunks=(1, *shape[1:]),
        shards=(PART, *shape[1:]),
        dtype=kind,
        compressors=(ZstdCodec(level=1), Crc32cCodec()),
    )


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
    group["phase"][here] = np.stack([s.pictures.phase for s in samples])
    group["amplitude"][here] = np.stack([s.pictures.amplitude for s in samples])
    group["label"][here] = np.array([s.label for s in samples], dtype=np.int16)
    group["donor"][here] = np.array([s.donor for s in samples], dtype=np.int16)
    group["purity"][here] = np.array([s.purity for s in samples], dtype=np.float32)
    group["cell_id"][here] = np.array([s.cell_id for s in samples], dtype=np.int64)
    group["morphology"][here] = np.array([s.six for s in samples], dtype=np.float32)
    if NOISE in group:
        group[NOISE][here] = np.array([s.noise_ri for s in samples], dtype=np.float32)
    group["part_done"][part] = 1


def finish(path: Path, kept: Mapping[str, NDArray[np.int8]] | None = None) -> str:
    """Store the splits and mark a set complete; returns its hash. Raises BadValue while parts miss.

    ``kept``: splits that its first cells have already, by scheme.
    """
    if missing := missing_parts(path):
        raise BadValue(f"{path}: {len(missing)} parts are not written, the first is {missing[0]}.", action="Run it again.")
    group = _open(path, "r+")
    label, donor = (np.asarray(group[name][:]).astype(np.int64) for name in ("label", "donor"))
    seed = int(group.attrs["seed"])
    splits = make_splits(label, donor, seed) if kept is None else continue_splits(label, donor, seed, kept)
    for scheme, part in splits.items():
        group[f"split_{scheme}"][:] = part
    digest = _digest(_arrays(group, FORMAT_VERSION))
    noise = np.asarray(group[NOISE][:]) if NOISE in group else np.array([math.nan])
    known = {NOISE: [float(noise.min()), float(noise.max())]} if np.isfinite(noise).all() else {}
    group.attrs.update({"complete": True, "data_hash": digest, **known})
    return digest


def splits_of(path: Path) -> dict[str, NDArray[np.int8]]:
    """The splits of a complete set, by scheme, without its volumes."""
    group = _open(path, "r")
    return {scheme: np.asarray(group[f"split_{scheme}"][:]) for scheme in SCHEMES}


def load(path: Path) -> TrainingSet:
    """The whole set into memory, checked against its own card. Raises BadValue naming what does not hold."""
    group = _open(path, "r")
    card = dict(group.attrs)
    version = card.get("format_version")
    if card.get("format") != FORMAT or version not in (1, FORMAT_VERSION):
        raise BadValue(f"{path}: format is {card.get('format')!r}; it must be {FORMAT!r} version 1 or {FORMAT_VERSION}.")
    if card.get("complete") is not True:
        raise BadValue(f"{path}: the set is not complete.", action="Run the command that makes it again; it goes on.")
    arrays = _read(path, group, int(version))
    if _digest(arrays.items()) != card.get("data_hash"):
        raise BadValue(f"{path}: the content is not what its card's data_hash says.", action="Make or copy the set again.")
    spec, classes = _spec(path, card), tuple(str(c) for c in card["classes"])
    ri_delta = arrays["ri_delta"]
    if ri_delta.shape[1:] != spec.shape:
        raise BadValue(f"{path}: ri_delta holds {ri_delta.shape[1:]} voxels a cell; its card says {spec.shape}.")
    label, donor = arrays["label"].astype(np.int64), arrays["donor"].astype(np.int64)
    if len(label) and not 0 <= label.min() <= label.max() < len(classes):
        raise BadValue(f"{path}: label runs to {label.max()}; the card has {len(classes)} classes.")
    return TrainingSet(
        path=path,
        classes=classes,
        input=spec,
        ri_delta=ri_delta,
        label=label,
        donor=donor,
        morphology=arrays["morphology"],
        card=card,
        splits={s: arrays[f"split_{s}"] for s in SCHEMES if f"split_{s}" in arrays},
        purity=arrays.get("purity"),
        phase=arrays.get("phase"),
        amplitude=arrays.get("amplitude"),
        cell_id=arrays.get("cell_id"),
        noise_ri=np.asarray(group[NOISE][:]) if NOISE in group else None,
    )


def read_attributes(path: Path) -> dict[str, Any]:
    """The card as stored, without reading a cell. Raises BadValue when it is no set."""
    card = dict(_open(path, "r").attrs)
    if card.get("format") != FORMAT:
        raise BadValue(f"{path}: format is {card.get('format')!r}; it must be {FORMAT!r}.")
    return card


def _names(version: int) -> tuple[str, ...]:
    if version == 1:
        return ("label", "donor", "morphology", "ri_delta")
    return (*_COLUMNS, *(f"split_{s}" for s in SCHEMES), *_SHARDED)


def _arrays(group: Any, version: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and blocks of each array in the order of the hash, a part at a time."""
    for name in _names(version):
        array = group[name]
        for start in range(0, array.shape[0], PART):
            yield name, np.asarray(array[start : start + PART])


def _read(path: Path, group: Any, version: int) -> dict[str, NDArray[Any]]:
    try:
        return {name: np.asarray(group[name][:]) for name in _names(version)}
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        raise BadValue(f"{path}: an array cannot be read: {error}.", action="Make or copy the set again.") from error


def _digest(arrays: Any) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for _, values in arrays:
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def input_spec(shape: Shape3 | None, voxel_um: Triple | None) -> InputSpec:
    """The usual input, but for what is given."""
    usual = InputSpec()
    return replace(usual, shape=shape or usual.shape, voxel_um=voxel_um or usual.voxel_um)


def check_window(spec: InputSpec, shape: Shape3, voxel_um: Triple, what: str) -> None:
    """Raises BadValue where ``spec`` asks for a finer pitch or a larger box than ``what`` shows: it would be made up."""
    whole = InputSpec(shape, voxel_um)
    if not _shows(whole, spec):
        asked, at, shown, by = (
            " x ".join(f"{v:g}" for v in of) for of in (spec.extent_um, spec.voxel_um, whole.extent_um, whole.voxel_um)
        )
        raise BadValue(
            f"a box of {asked} um at a pitch of {at} um is asked for; {what} shows {shown} um at {by} um (z, y, x).",
            action="Give a smaller --shape or a coarser --pitch.",
        )


def _shows(whole: InputSpec, part: InputSpec) -> bool:
    """Whether ``part`` is neither finer nor larger than ``whole``."""
    coarser = all(new >= 0.999 * old for new, old in zip(part.voxel_um, whole.voxel_um, strict=True))
    return coarser and all(new <= old + 1e-6 for new, old in zip(part.extent_um, whole.extent_um, strict=True))


def spec_to_card(spec: InputSpec) -> dict[str, Any]:
    """JSON-ready input specification."""
    return {"shape": list(spec.shape), "voxel_um": list(spec.voxel_um), "scale": spec.scale}


def check_matches(data: TrainingSet, classes: tuple[str, ...], spec: InputSpec, model: Path) -> TrainingSet:
    """The set as the model takes it: as lineages where those are its classes, in its box and at its pitch.

    Raises BundleInvalid where the set's cells cannot be made into the model's input.
    """
    if data.input != spec:
        try:
            data = data.at(spec)
        except BadValue as error:
            raise BundleInvalid(f"{model}: {error.message}", action=error.advice) from error
    if classes == LINEAGES and data.classes != LINEAGES and all(c in LINEAGE for c in data.classes):
        data = data.as_lineages()
    if data.classes != classes:
        raise BundleInvalid(
            f"{model}: tells the classes {classes}; {data.path} holds {data.classes}.",
            action="Make a set of the model's classes, or train a model on this set.",
        )
    return data


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
        raise BadValue(
            f"{path}: not a training set: {error}.", action="Make one with `wbcd dataset make` or `wbcd dataset from-db`."
        ) from error


def _check_same(path: Path, card: Mapping[str, Any]) -> None:
    found = dict(_open(path, "r").attrs)
    wanted = json.loads(json.dumps(card))
    stored = {key: value for key, value in found.items() if key not in _MADE}
    differing = [key for key in sorted(wanted.keys() | stored.keys()) if stored.get(key) != wanted.get(key)]
    if differing:
        key = differing[0]
        raise BadValue(
            f"{path}: holds a set whose {key} is {stored.get(key)!r}, not {wanted.get(key)!r}.",
            action="Choose another folder, or give the same arguments to go on with this one.",
        )
