"""Kept tomograms: one OME-Zarr 0.5 image (zarr format 3) a cell, whole or absent, never half.

    ROOT/ab/<content id>-<recipe id>-<number>.ome.zarr     (-<companions> before the number, where it was read with others)
        zarr.json    attributes.ome: multiscales, omero window; attributes.wbcd: where the numbers come from
        0, 1, 2      refractive index, float32 [z, y, x]; every chunk ends in its CRC-32C
        manifest.json   size and digest of every file (:mod:`wbcd.store.manifest`)

Level 1 is the mean of 1 x 2 x 2 voxels, level 2 of 2 x 4 x 4. Each level has its scale and then its translation in um: the
centre of its first voxel in the instrument's field of view (https://ngff.openmicroscopy.org/0.5/).

An image is written under a temporary name, verified by reading it back, forced to disk and renamed. Missing chunks would
read as NaN, not as zero.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import BaseZarrError
from zarr.storage import MemoryStore

from wbcd import __version__
from wbcd.errors import CorruptContent, StoreError, VolumeGone
from wbcd.records import Acquisition, Cell, Triple
from wbcd.store.failures import from_os_error
from wbcd.store.manifest import has_manifest, manifest_problems, write_manifest
from wbcd.store.rows import clean_json

SUFFIX: Final = ".ome.zarr"
TEMPORARY: Final = ".wbcd-part-"
NAMESPACE: Final = "wbcd"
AXES: Final = ("z", "y", "x")
LEVEL_FACTORS: Final = ((1, 1, 1), (1, 2, 2), (2, 4, 4))
"""Down to nearly isotropic voxels first: 0.2 x 0.1 x 0.1 um becomes 0.2 x 0.2 x 0.2 um."""

DISPLAY_WINDOW_RI: Final = (1.335, 1.365)
CHUNK_Z: Final = 25
"""Slabs of 25 planes: four files of about 2 MB at full size, and a plane costs one of them."""

STALE_AFTER_S: Final = 3600.0
"""Where folders cannot be locked (NFS): a temporary that nobody has touched for so long is what a killed process left."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COMPRESSION_LEVEL: Final = 1  # noise does not compress: 3 gives 1 % less for twice the time


def tomogram_path(
    root: Path, *, content_id: str, recipe_id: str, number: int, companions: Sequence[tuple[str, str | None]] = ()
) -> Path:
    """Where a cell's image lies. Two digits of the content id spread 100,000 images over 256 folders.

    The same file with another background is another image: ``companions`` (name, digest) have a part in the name.
    """
    there = sorted((name, digest) for name, digest in companions if digest is not None)
    beside = f"-{hashlib.blake2b(repr(there).encode(), digest_size=4).hexdigest()}" if there else ""
    return root / content_id[:2] / f"{content_id}-{recipe_id}{beside}-{number:03d}{SUFFIX}"


def write_tomogram(root: Path, cell: Cell, *, acquisition: Acquisition, recipe_id: str) -> Path:
    """Write the refractive index around one cell; gives the folder of the image.

    The same cell again returns the image that is there, if it is whole; a damaged one is replaced.
    Raises :class:`wbcd.errors.NoSpace` when the disk is full, else :class:`wbcd.errors.StoreError`.
    """
    path = tomogram_path(
        root,
        content_id=acquisition.content_id,
        recipe_id=recipe_id,
        number=cell.number,
        companions=acquisition.companions,
    )
    with _store_errors(path):
        if _is_whole(path):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        _sync_folder(root)
        with _temporary(path.parent) as part:
            _write_image(part / "image", cell, _provenance(cell, acquisition, recipe_id))
            _verify(part / "image", cell.ri)
            write_manifest(part / "image")
            _publish(part / "image", path, part)
    return path


def discard_tomograms(root: Path, *, content_id: str, named: Sequence[str]) -> int:
    """Remove those images of a content that no row names; ``named``: the paths that rows of any recipe and model name.

    Gives how many. A removal that a crash cuts short leaves a temporary, which the next start removes.
    Raises :class:`wbcd.errors.StoreError` when the folder refuses.
    """
    kept = {Path(path).name for path in named}
    images = [image for image in (root / content_id[:2]).glob(f"{content_id}-*{SUFFIX}") if image.name not in kept]
    for image in images:
        remove_image(image)
    return len(images)


def demand_volumes(root: Path, paths: Sequence[str]) -> None:
    """Raise :class:`VolumeGone` unless each of these images, which a row is about to name, is there."""
    for path in paths:
        if not (Path(path).is_dir() or (root / path).is_dir()):
            raise VolumeGone(f"{path} was kept and is gone.")


def remove_image(image: Path) -> None:
    """Remove one kept image: first its name, so that a removal cut short leaves a temporary and no half image.

    Raises :class:`wbcd.errors.StoreError` when the folder refuses.
    """
    with _store_errors(image):
        part = image.with_name(f"{TEMPORARY}{image.name}")
        image.rename(part)
        shutil.rmtree(part)


def read_tomogram(path: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Refractive index at full resolution, float32 [z, y, x], and our attributes. Raises :class:`CorruptContent`."""
    try:
        attributes = zarr.open_group(str(path), mode="r", zarr_format=3).attrs.asdict()
        levels = [_whole_array(path / str(dataset["path"])) for dataset in _multiscale(attributes)["datasets"]]
        ri = np.asarray(levels[0][...], dtype=np.float32)
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, BaseZarrError) as error:
        raise CorruptContent(
            f"{path}: is not a whole tomogram of ours: {error}.", action="Process the acquisition again."
        ) from error
    return ri, _ours(attributes)


def image_problems(path: Path) -> list[str]:
    """What does not hold of a kept image, one clause each; [] when it is whole. Never follows a link.

    By its manifest; an image of a version that wrote none is read instead, and its chunks' own checksums compared.
    """
    try:
        if path.is_symlink():
            return ["is a symbolic link"]
        if not path.is_dir():
            return ["is missing"]
        if has_manifest(path):
            return manifest_problems(path)
        read_tomogram(path)
    except CorruptContent as error:
        return [error.message]
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]
    return []


def images_under(root: Path) -> Iterator[Path]:
    """Every kept image of an output folder, in no order; links are passed over."""
    for folder in _real_folders(root):
        if len(folder.name) == 2:
            yield from (image for image in _real_folders(folder) if image.name.endswith(SUFFIX))


def clean_stale(root: Path, *, older_than_s: float = STALE_AFTER_S, now_s: float | None = None) -> int:
    """Remove what killed writers left under ``root``; gives how many. What a living writer holds is left alone.

    ``older_than_s`` and ``now_s`` (wall time) matter only where folders cannot be locked.
    """
    limit = (time.time() if now_s is None else now_s) - older_than_s
    removed = 0
    for part in root.glob(f"??/{TEMPORARY}*"):
        if part.is_symlink():
            continue
        try:
            removed += _clean_one(part, limit)
        except FileNotFoundError:  # its writer has just finished
            continue
    return removed


def _clean_one(part: Path, limit: float) -> bool:
    handle = os.open(part, _FOLDER)
    try:
        locked = _lock(handle)
        if locked is False or (locked is None and part.stat().st_mtime > limit):
            return False
        shutil.rmtree(part, ignore_errors=True)
        return True
    finally:
        os.close(handle)


# --- content ------------------------------------------------------------------------------------------


def _provenance(cell: Cell, acquisition: Acquisition, recipe_id: str) -> dict[str, Any]:
    provenance = {
        "wbcd_version": __version__,
        "source_content_id": acquisition.content_id,
        "recipe_id": recipe_id,
        "cell_number": int(cell.number),
        "time_index": int(cell.time_index),
        "centre_um": [float(v) for v in cell.centre_um],
        "medium_ri": float(cell.medium_ri),
        "wavelength_um": acquisition.wavelength_um,
        "objective_na": acquisition.objective_na,
        "sample_id": acquisition.sample_id,
        "quantity": "refractive_index",
    }
    return {name: clean_json(value) for name, value in provenance.items()}


def _multiscale(attributes: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = attributes["ome"]["multiscales"][0]
    return found


def _ours(attributes: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = attributes.get(NAMESPACE, {})
    return found


def _whole_array(path: Path) -> zarr.Array[Any]:
    array = zarr.open_array(str(path), mode="r", zarr_format=3)
    if array.nchunks_initialized != array.nchunks:
        raise ValueError(f"level {path.name} holds {array.nchunks_initialized} of its {array.nchunks} chunks")
    return array


def _write_image(path: Path, cell: Cell, provenance: dict[str, Any]) -> None:
    levels = [_reduced(cell.ri, factors) for factors in LEVEL_FACTORS if _fits(cell.ri.shape, factors)]
    attributes = {"ome": _ome_attributes(cell, len(levels)), NAMESPACE: provenance}
    # Encoded in memory, written here one file after another: a folder store writes from threads, and on a full disk those
    # still under way would make the temporary anew while it is being removed.
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(files), zarr_format=3, attributes=attributes)
    for number, level in enumerate(levels):
        array = group.create_array(
            str(number),
            shape=level.shape,
            dtype=level.dtype,
            chunks=(min(CHUNK_Z, level.shape[0]), *level.shape[1:]),
            compressors=[ZstdCodec(level=_COMPRESSION_LEVEL), Crc32cCodec()],
            fill_value=math.nan,
            dimension_names=list(AXES),
            config={"write_empty_chunks": True},
        )
        array[...] = level
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.as_buffer_like())


def _ome_attributes(cell: Cell, levels: int) -> dict[str, Any]:
    low, high = DISPLAY_WINDOW_RI
    channel = {
        "label": "refractive index",
        "color": "FFFFFF",
        "active": True,
        "window": {"min": 1.33, "max": 1.5, "start": low, "end": high},
    }
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": f"cell {cell.number}",
                "axes": [{"name": name, "type": "space", "unit": "micrometer"} for name in AXES],
                "datasets": [_dataset(cell, number) for number in range(levels)],
                "type": "mean",
            }
        ],
        "omero": {"channels": [channel]},
    }


def _dataset(cell: Cell, number: int) -> dict[str, Any]:
    """Scale, then translation, as the specification orders them."""
    factors = LEVEL_FACTORS[number]
    scale = [factor * pitch for factor, pitch in zip(factors, cell.voxel_um, strict=True)]
    origin = _first_voxel_um(cell)
    # A mean of f voxels is centred (f - 1)/2 voxels behind the first of them.
    shift = [o + (f - 1) / 2 * p for o, f, p in zip(origin, factors, cell.voxel_um, strict=True)]
    transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
    return {"path": str(number), "coordinateTransformations": transformations}


def _first_voxel_um(cell: Cell) -> Triple:
    """Centre of voxel (0, 0, 0): the crop is centred on the cell."""
    z, y, x = (
        centre - (size - 1) / 2 * pitch
        for centre, size, pitch in zip(cell.centre_um, cell.ri.shape, cell.voxel_um, strict=True)
    )
    return z, y, x


def _fits(shape: tuple[int, ...], factors: tuple[int, ...]) -> bool:
    return all(size >= 2 * factor or factor == 1 for size, factor in zip(shape, factors, strict=True))


def _reduced(ri: NDArray[np.float32], factors: tuple[int, ...]) -> NDArray[np.float32]:
    """Mean of blocks; an odd plane at the end is left out."""
    whole = ri[tuple(slice(size // factor * factor) for size, factor in zip(ri.shape, factors, strict=True))]
    split = itertools.chain.from_iterable((size // factor, factor) for size, factor in zip(whole.shape, factors, strict=True))
    means: NDArray[np.float32] = whole.reshape(tuple(split)).mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32)
    return means


def _real_folders(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


# --- durability ---------------------------------------------------------------------------------------


def _verify(path: Path, ri: NDArray[np.float32]) -> None:
    found, _ = read_tomogram(path)
    if found.shape != ri.shape or not np.array_equal(found, ri, equal_nan=True):
        raise StoreError(f"{path}: what was written reads back otherwise.", action="Check the disk of the output folder.")


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        read_tomogram(path)
    except CorruptContent:
        return False
    return True


def _publish(image: Path, path: Path, part: Path) -> None:
    for folder, _, files in os.walk(image, topdown=False):
        for name in files:
            _sync_file(Path(folder) / name)
        _sync_folder(Path(folder))
    if path.exists():
        path.rename(part / "damaged")  # a folder cannot be renamed over one that is not empty
    image.rename(path)
    _sync_folder(path.parent)


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A folder for one image in the making, locked while its writer lives: so a dead writer's is told from a living one's."""
    part, handle = _locked_folder(folder)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(handle)


def _locked_folder(folder: Path) -> tuple[Path, int]:
    while True:
        part = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
        try:
            handle = os.open(part, _FOLDER)
        except FileNotFoundError:  # another process cleaned it away before it was locked
            continue
        if _lock(handle) is not False and os.fstat(handle).st_nlink > 0:
            return part, handle
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """True when the lock is ours now, False when another process holds it, None where folders cannot be locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_sync_folder = _sync_file  # on Linux a folder is opened and forced to disk the same way


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except CorruptContent as error:
        raise StoreError(
            f"{path}: cannot be read back: {error.message}", action="Check the disk of the output folder."
        ) from error
    except OSError as error:
        raise from_os_error(error, str(path)) from error
