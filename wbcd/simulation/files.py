"""Writers of the files that instruments make: wbcd holograms, rigs' TIFF pairs and MATLAB files, Tomocube TCF, OME-Zarr.

Every writer makes the file under a hidden temporary name in the same folder, syncs it and renames it, so that a folder
watcher never meets half a file under its final name. The TCF writer mimics the vendor: 1-element array attributes,
byte strings, uint16 RI x 1e4 from version 1.3 on, tiles from 1.6 on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from wbcd.acquisition.seal import SEAL, seal_of
from wbcd.errors import BadValue
from wbcd.records import HologramStack, Optics, Triple

FORMAT = "wbcd-acquisition"
FORMAT_VERSION = 1
LIBVER = ("v110", "v110")
"""From HDF5 1.10 on headers and chunk indices carry checksums, so that a flipped bit of an attribute is noticed."""
REFERENCE_SUFFIX = ".wbcdref"
"""Extension of a shared reference file; never a candidate for the watcher."""

TileType = Literal["uint16", "uint8"]


# --- wbcd acquisition files ----------------------------------------------------------------------


def write_acquisition(
    path: Path,
    stack: HologramStack,
    *,
    acquisition_id: str,
    acquired_at: str,
    sample_id: str,
    instrument_id: str,
    reference_file: str | None = None,
) -> Path:
    """Write raw holograms as a wbcd acquisition file, version 1; returns ``path``.

    ``acquired_at``: ISO 8601 with zone. ``reference_file``: plain name of a sibling made by :func:`write_reference`; the
    stack's own reference is then left out. ``complete`` is the last attribute written.
    """
    with renamed(path) as hidden, h5py.File(hidden, "x", locking=False, libver=LIBVER) as file:
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "acquisition_id": acquisition_id,
            "acquired_at": acquired_at,
            "sample_id": sample_id,
            "instrument_id": instrument_id,
            "wavelength_um": stack.optics.wavelength_um,
            "objective_na": stack.optics.objective_na,
            "medium_ri": stack.optics.medium_ri,
            "pixel_size_um": stack.optics.pixel_size_um,
            "normal_frame": stack.normal_frame,
        }
        if reference_file is not None:
            attributes["reference_file"] = reference_file
        file.attrs.update(attributes)
        _write_frames(file, "holograms", stack.holograms)
        if stack.reference is not None and reference_file is None:
            _write_frames(file, "reference", stack.reference)
        if stack.illumination_rad_um is not None:
            file.create_dataset("illumination", data=np.asarray(stack.illumination_rad_um, np.float64), fletcher32=True)
        file.attrs[SEAL] = seal_of(attributes, {name: data[()] for name, data in file.items()})
        file.flush()
        file.attrs["complete"] = True
    return path


def write_reference(path: Path, frames: NDArray[np.unsignedinteger[Any]]) -> Path:
    """Write sample-free frames [angle, y, x] that a session shares; returns the path, which ends in ``.wbcdref``."""
    target = path if path.suffix == REFERENCE_SUFFIX else path.with_name(path.name + REFERENCE_SUFFIX)
    with renamed(target) as hidden, h5py.File(hidden, "x", locking=False, libver=LIBVER) as file:
        attributes = {"format": FORMAT, "format_version": FORMAT_VERSION}
        file.attrs.update(attributes)
        _write_frames(file, "reference", frames)
        file.attrs[SEAL] = seal_of(attributes, {"reference": frames})
        file.flush()
        file.attrs["complete"] = True
    return target


def _write_frames(file: h5py.File, name: str, frames: NDArray[np.unsignedinteger[Any]]) -> None:
    file.create_dataset(name, data=frames, chunks=(1, *frames.shape[1:]), fletcher32=True)


# --- rigs' own layouts -----------------------------------------------------------------------------


def write_tiff_stack(path: Path, frames: NDArray[np.unsignedinteger[Any]], *, compression: str | None = None) -> Path:
    """Write frames [angle, y, x] as one page each, the way a camera's software does; returns ``path``.

    BigTIFF from 4 GiB on. ``compression``: a name that tifffile knows ("zlib"), or None.
    """
    import tifffile

    with renamed(path) as hidden:
        tifffile.imwrite(hidden, frames, photometric="minisblack", metadata=None, compression=compression, rowsperstrip=64)
    return path


def write_tiff_pair(folder: Path, name: str, stack: HologramStack, *, own_background: bool = True, **notes: Any) -> Path:
    """Write ``NAME.json``, ``NAME_bg.tif`` (``own_background``; else the session's ``bg.tif``, once) and last ``NAME_sp.tif``.

    ``notes``: more keys for the JSON (``sample_id``, say). Without a reference the notes say that there is none.
    Returns the path of the sample.
    """
    optics = stack.optics
    written = {
        "wavelength_um": optics.wavelength_um,
        "objective_na": optics.objective_na,
        "medium_ri": optics.medium_ri,
        "pixel_size_um": optics.pixel_size_um,
        "normal_frame": stack.normal_frame,
        "frames": len(stack.holograms),
        **({"background": "none"} if stack.reference is None else {}),
        **notes,
    }
    if stack.illumination_rad_um is not None:
        written["illumination_rad_um"] = np.asarray(stack.illumination_rad_um, float).tolist()
    write_json(folder / f"{name}.json", written)
    if stack.reference is not None:
        background = folder / (f"{name}_bg.tif" if own_background else "bg.tif")
        if own_background or not background.exists():
            write_tiff_stack(background, stack.reference)
    return write_tiff_stack(folder / f"{name}_sp.tif", stack.holograms)


MAT_NORMAL = 48
"""Where such a session's scan has its normal frame: the 49th."""
_MAT_HEAD = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Mon Jan 01 08:00:00 2024 HDF5 schema 1.00 ."


def write_mat(
    path: Path, frames: NDArray[np.unsignedinteger[Any]], optics: Optics, *, acquired_at: str = "2024-01-01 08:00:00"
) -> Path:
    """Write frames [angle, y, x] as MATLAB's ``save -v7.3`` does: 512 bytes of text, then HDF5 with axes reversed.

    ``tomogMap`` (y, x, angle), ``res``, ``NA``, ``lambda``, ``dateTimeVal``. Medium and normal frame are not in such files.
    """
    with renamed(path) as hidden:
        with h5py.File(hidden, "x", locking=False, userblock_size=512) as file:
            stored = np.ascontiguousarray(frames.transpose(0, 2, 1))
            data = file.create_dataset("tomogMap", data=stored, chunks=(1, *stored.shape[1:]), compression="gzip")
            data.attrs["MATLAB_class"] = np.bytes_(str(frames.dtype))
            numbers = {"res": optics.pixel_size_um, "NA": optics.objective_na, "lambda": optics.wavelength_um}
            for name, value in numbers.items():
                file.create_dataset(name, data=np.array([[value]])).attrs["MATLAB_class"] = np.bytes_("double")
            letters = np.frombuffer(acquired_at.encode("utf-16-le"), np.uint16)[:, None]
            text = file.create_dataset("dateTimeVal", data=letters)
            text.attrs["MATLAB_class"], text.attrs["MATLAB_int_decode"] = np.bytes_("char"), np.int32(2)
        with hidden.open("r+b") as raw:
            raw.write(_MAT_HEAD.ljust(116, b" ") + bytes(8) + b"\x00\x02IM")
    return path


# --- Tomocube TCF --------------------------------------------------------------------------------


def write_tcf(
    path: Path,
    volumes: Sequence[NDArray[np.floating[Any]]],
    *,
    voxel_um: Triple,
    medium_ri: float = 1.337,
    version: str = "1.3",
    tile_type: TileType = "uint16",
    tile_shape: tuple[int, int, int] = (64, 256, 256),
    overlap: int = 0,
    wavelength_um: float = 0.532,
    objective_na: float = 1.2,
    title: str = "Default-001",
    acquired_at: str = "2024-05-06 07:08:09.123",
    interval_s: float = 60.0,
    device: bool = True,
    unique_id: str | None = None,
) -> Path:
    """Write RI volumes [z, y, x] (one a time point) as the vendor does; returns ``path``.

    ``version`` below 1.3: float32 RI; from 1.3: uint16, RI x 1e4; from 1.6: tiles of ``tile_type`` (``uint8``:
    RI = RIMin + v/1e3), each extended by ``overlap`` voxels over its neighbours. ``device=False`` leaves out ``Info/Device``.
    ``acquired_at``: local time without zone, as in the vendor's ``RecordingTime``. NaN becomes 0, the vendor's fill.
    """
    number = tuple(int(part) for part in version.split("."))
    first = np.asarray(volumes[0])
    stamp = acquired_at
    with renamed(path) as hidden, h5py.File(hidden, "x", locking=False) as file:
        _attributes(
            file,
            FormatVersion=version,
            Title=title,
            CreateDate=stamp,
            RecordingTime=stamp,
            DataID=title,
            UniqueID=unique_id or f"{title}-{stamp}",
            UserID="user",
            Description="",
            DeviceHost="TomoPC",
            DeviceSerial="SIM0001",
            DeviceSoftwareVersion="3.3.3a",
            SoftwareVersion="3.3.3a",
        )
        group = file.create_group("Data/3D")
        low, high = _range(volumes)
        _attributes(group, DataCount=len(volumes), RIMin=low, RIMax=high, TimeInterval=interval_s)
        _attributes(group, **dict(zip(("SizeZ", "SizeY", "SizeX"), first.shape, strict=True)))
        _attributes(group, **dict(zip(("ResolutionZ", "ResolutionY", "ResolutionX"), voxel_um, strict=True)))
        for index, volume in enumerate(volumes):
            node = _write_volume(group, f"{index:06d}", np.asarray(volume), number, tile_type, tile_shape, overlap)
            _attributes(node, PositionX=0.0, PositionY=0.0, PositionZ=0.0, PositionC=0.0)
            _attributes(node, RecordingTime=stamp, Time=index * interval_s)
            if "RIMin" not in node.attrs:
                _attributes(node, **dict(zip(("RIMin", "RIMax"), _range([volume]), strict=True)))
        if device:
            info = file.create_group("Info/Device")
            _attributes(info, Magnification=58.33, NA=objective_na, RI=medium_ri, Wavelength=wavelength_um, Iteration=40)
    return path


def _range(volumes: Sequence[NDArray[np.floating[Any]]]) -> tuple[float, float]:
    return float(min(np.nanmin(v) for v in volumes)), float(max(np.nanmax(v) for v in volumes))


def _attributes(node: h5py.Group | h5py.Dataset, **values: str | float) -> None:
    """The vendor's habit: strings as bytes, numbers as arrays of one element."""
    for name, value in values.items():
        if isinstance(value, str):
            node.attrs[name] = np.bytes_(value or " ")
        else:
            kind = np.float64 if isinstance(value, float) else np.int64
            node.attrs[name] = np.array([value], dtype=kind)


def _write_volume(
    group: h5py.Group,
    name: str,
    ri: NDArray[np.floating[Any]],
    version: tuple[int, ...],
    tile_type: TileType,
    tile_shape: tuple[int, int, int],
    overlap: int,
) -> h5py.Group | h5py.Dataset:
    if version < (1, 3):
        return group.create_dataset(name, data=ri.astype(np.float32), chunks=_chunk(ri.shape), compression="gzip", shuffle=True)
    if version < (1, 6):
        return group.create_dataset(name, data=encode_uint16(ri), chunks=_chunk(ri.shape), compression="gzip", shuffle=True)
    return _write_tiles(group.create_group(name), ri, tile_type, tile_shape, overlap)


def _chunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *shape[1:])


def encode_uint16(ri: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """RI x 1e4 rounded to uint16; NaN becomes 0, the vendor's fill of unmeasured voxels."""
    return np.round(np.nan_to_num(np.asarray(ri, np.float64), nan=0.0) * 1e4).astype(np.uint16)


def _write_tiles(
    group: h5py.Group, ri: NDArray[np.floating[Any]], tile_type: TileType, tile_shape: tuple[int, int, int], overlap: int
) -> h5py.Group:
    low, high = _range([ri])
    if tile_type == "uint8":
        if high - low > 0.255:
            raise BadValue(
                f"uint8 tiles hold an RI range of 0.255; this volume spans {high - low:.3f} ({low:.3f}..{high:.3f})."
            )
        coded: NDArray[Any] = np.round((np.nan_to_num(ri, nan=low) - low) * 1e3).astype(np.uint8)
    else:
        coded = encode_uint16(ri)
    starts = [range(0, size, tile) for size, tile in zip(ri.shape, tile_shape, strict=True)]
    corners = list(product(*starts))
    _attributes(group, ScalarType=int(tile_type == "uint8"), NumberOfTiles=len(corners), RIMin=low, RIMax=high)
    _attributes(group, **dict(zip(("DataSizeZ", "DataSizeY", "DataSizeX"), ri.shape, strict=True)))
    for index, corner in enumerate(corners):
        begin = [max(0, at - overlap) for at in corner]
        end = [min(size, at + tile + overlap) for size, at, tile in zip(ri.shape, corner, tile_shape, strict=True)]
        block = coded[tuple(slice(a, b) for a, b in zip(begin, end, strict=True))]
        tile = group.create_dataset(f"TILE_{index:02d}", data=block, chunks=_chunk(block.shape), compression="gzip")
        _attributes(tile, SamplingStep=1)
        for axis, a, b in zip("ZYX", begin, end, strict=True):
            _attributes(tile, **{f"DataIndexOffsetPoint{axis}": a, f"DataIndexLastPoint{axis}": b - 1})
    return group


# --- OME-Zarr ------------------------------------------------------------------------------------


def write_ome_zarr_ri(
    path: Path,
    ri: NDArray[np.floating[Any]],
    voxel_um: Triple,
    medium_ri: float | None = 1.337,
    version: Literal["0.4", "0.5"] = "0.5",
    *,
    encoding: Literal["float32", "uint16"] = "float32",
) -> Path:
    """Write one RI volume [z, y, x] as an OME-Zarr image of one level; returns ``path`` (a folder ending in ``.zarr``).

    ``encoding="uint16"``: RI x 1e4. ``medium_ri`` goes to the namespace ``wbcd``; None leaves it out.
    """
    import zarr

    data = encode_uint16(ri) if encoding == "uint16" else np.asarray(ri, np.float32)
    multiscales: dict[str, Any] = {
        "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": list(voxel_um)}]}],
    }
    if version == "0.4":
        multiscales["version"] = "0.4"
        attributes: dict[str, Any] = {"multiscales": [multiscales]}
    else:
        attributes = {"ome": {"version": version, "multiscales": [multiscales]}}
    if medium_ri is not None:
        attributes["wbcd"] = {"medium_ri": medium_ri}
    with renamed(path) as hidden:
        group = zarr.open_group(hidden, mode="w", zarr_format=2 if version == "0.4" else 3, attributes=attributes)
        options: dict[str, Any] = {} if version == "0.4" else {"dimension_names": ["z", "y", "x"]}
        array = group.create_array("0", shape=data.shape, chunks=_blocks(data.shape), dtype=data.dtype, **options)
        array[...] = data
    return path


def _blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(size, 64) for size in shape)


# --- whole or absent -----------------------------------------------------------------------------


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Give a hidden name beside ``path``; on success sync it and rename it to ``path``, on failure remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield hidden
        _sync(hidden)
        if path.is_dir():
            shutil.rmtree(path)
        hidden.replace(path)
    finally:
        if hidden.is_dir():
            shutil.rmtree(hidden, ignore_errors=True)
        hidden.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    for entry in [*(path.rglob("*") if path.is_dir() else []), path]:
        handle = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> Path:
    """Write a sidecar (the truth of a simulated sample, say), whole or not at all."""
    with renamed(path) as hidden:
        hidden.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path
