"""Tomocube TCF: reconstructed RI as float (before 1.3), uint16, or tiles (docs/reference/formats.md, section 2).

Gathered from several public readers, whose traps are: versions compared as text, attributes that are scalars in one file and
1-element arrays in the next, overlapping tiles added up, values returned unscaled, `RIMin` scaled by 1e4 in some files, and the
condenser's NA given as the objective's on HT-X.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

import h5py
import numpy as np
from numpy.typing import NDArray

from wbcd.acquisition.hdf5 import Node, demand_plain_storage, read_array, translated, unchecked_parts
from wbcd.acquisition.limits import (
    MEDIUM,
    MEDIUM_RI,
    NUMERICAL_APERTURE,
    PHYSICAL_RI,
    PROVENANCE,
    VOXEL_UM,
    WAVELENGTH_UM,
    ReadDefaults,
    within,
)
from wbcd.acquisition.sidecar import (
    MAX_CONFIG_BYTES,
    VendorConfig,
    experiment_medium,
    session_config,
    session_medium,
    vendor_config,
)
from wbcd.acquisition.source import Source
from wbcd.acquisition.volume import Load, assemble, decode, demand_loadable, slabs
from wbcd.errors import BadField, Incomplete, MissingField, TooLarge
from wbcd.records import Acquisition, Shape3, SourceFormat, Tomogram, Triple

Version = tuple[int, ...]
FIRST_UINT16: Version = (1, 3)
RI_SCALE = 1e4
UINT8_SCALE = 1e3
MAX_TIME_POINTS = 100_000
MAX_TILES = 10_000
MAX_SIZE = 65_536
_AXES = ("Z", "Y", "X")
EXPORT_AGAIN = "Export the acquisition again from the instrument's software."
_CONFIG_PATH = "Info/MetaData/RawData"
_TRAILING_NUMBER = re.compile(r"-[0-9]{3,}\Z")


@dataclass(frozen=True, slots=True)
class TcfHeader:
    """What all time points share. ``shape`` and ``voxel_um`` are (z, y, x)."""

    version: Version
    shape: Shape3
    voxel_um: Triple
    names: tuple[str, ...]
    medium_ri: float
    objective_na: float | None
    wavelength_um: float | None
    medium_stated: bool = True


def parse_version(text: str, where: str) -> Version:
    """``"1.10.0"`` -> (1, 10, 0): numbers, for as text it would sort before "1.3". Raises BadField."""
    found = re.match(r"\s*(\d+(?:\.\d+)*)", text)
    if not found:
        raise BadField(f"{where} is {text!r}; a version such as 1.3.0 is expected.", action=EXPORT_AGAIN)
    return tuple(int(part) for part in found[1].split("."))


def unscaled_ri(value: float) -> float:
    """An RI attribute, in whichever of the vendor's two scales: some files hold RI x 1e4."""
    return value / RI_SCALE if value >= 100 else value


def looks_like_tcf(root: Node) -> bool:
    """True when the version or the 3D group is there."""
    return "FormatVersion" in root.group.attrs or root.has("Data")


# --- header --------------------------------------------------------------------------------------


def read_tcf_header(root: Node, source: Source, defaults: ReadDefaults) -> tuple[Acquisition, TcfHeader]:
    """Validate everything but the voxels, for every time point; the ticket comes back completed.

    Raises MissingField, BadField, Incomplete (fewer time points than announced, chunks missing), Forbidden, TooLarge.
    """
    root = root.advised(EXPORT_AGAIN)
    version = parse_version(_version_text(root), f"attribute {root.where('FormatVersion')}")
    group = root.child("Data/3D")
    device = root.child("Info/Device") if root.has("Info") and root.child("Info").has("Device") else None
    config = _config(root, source)
    medium = _medium(device, config)
    header = TcfHeader(
        version=version,
        shape=_shape(group, "Size"),
        voxel_um=_triple(group),
        names=_time_points(group),
        medium_ri=defaults.medium_ri if medium is None else medium,
        objective_na=_objective_na(root, device, config),
        wavelength_um=_wavelength(device, config),
        medium_stated=medium is not None,
    )
    demand_loadable(header.shape, defaults, group.where("SizeZ"))
    for name in header.names:
        _examine(group.child(name), header)
    return _ticket(root, source.acquisition, header, defaults), header


def _version_text(root: Node) -> str:
    value = root.attribute("FormatVersion")
    if value is None or value == "":
        raise MissingField(f"attribute {root.where('FormatVersion')} is absent.", action=EXPORT_AGAIN)
    return str(value)


def _shape(node: Node, prefix: str) -> Shape3:
    z, y, x = (node.required_count(f"{prefix}{axis}", (1, MAX_SIZE)) for axis in _AXES)
    return z, y, x


def _triple(group: Node) -> Triple:
    z, y, x = (group.required_number(f"Resolution{axis}", VOXEL_UM, "um") for axis in _AXES)
    return z, y, x


def _time_points(group: Node) -> tuple[str, ...]:
    expected = group.required_count("DataCount", (1, MAX_TIME_POINTS))
    names = sorted((name for name in group.names() if name.isascii() and name.isdigit()), key=int)
    if len(names) != expected:
        raise Incomplete(f"{group.where('DataCount')} announces {expected} volumes; {len(names)} are there.")
    return tuple(names)


def _config(root: Node, source: Source) -> VendorConfig:
    """The ``config.dat`` and ``.experiment`` that HT-X embeds, else those of the session folder."""
    node: Node | None = root
    for part in _CONFIG_PATH.split("/"):
        node = node.child(part) if node is not None and node.has(part) else None
    raw = None if node is None else _raw_bytes(node, "Config")
    config = session_config(source) if node is None or raw is None else vendor_config(raw, node.where("Config"))
    if config.medium_ri is not None:
        return config
    about = None if node is None else _raw_bytes(node, "Experiment")
    if node is None or about is None:
        return config.or_medium(session_medium(source))
    return config.or_medium(experiment_medium(about, node.where("Experiment")))


def _raw_bytes(node: Node, name: str) -> bytes | None:
    if node.has(name):
        child = node.child(name)
        data = child.group
        if not isinstance(data, h5py.Dataset):
            return None
        if h5py.check_string_dtype(data.dtype) is not None and data.dtype.hasobject and data.size == 1:
            return _variable_text(child, data)
        if data.dtype.hasobject or data.dtype.kind not in "uiSV":
            return None
        if data.size is None or data.size * data.dtype.itemsize > MAX_CONFIG_BYTES:
            raise TooLarge(f"{node.where(name)} holds more than {MAX_CONFIG_BYTES} bytes.", action="")
        child.array(dtypes=(data.dtype.newbyteorder("="),), ndim=data.ndim, limits="raw bytes")
        return np.asarray(data[()]).tobytes()
    text = node.stated(name) if name in node.group.attrs else None
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else None


def _variable_text(node: Node, data: h5py.Dataset) -> bytes | None:
    """A text of variable length, which lies in the file's heap. Raises Forbidden where it would not, TooLarge."""
    demand_plain_storage(data, node.where(""))
    with translated(node.path):
        found = np.ravel(data[()])[0]
    raw = found.encode("utf-8", "surrogateescape") if isinstance(found, str) else bytes(found)
    if len(raw) > MAX_CONFIG_BYTES:
        raise TooLarge(f"{node.where('')} holds more than {MAX_CONFIG_BYTES} bytes.", action="")
    return raw


def _medium(device: Node | None, config: VendorConfig) -> float | None:
    stated = device.number("RI") if device is not None else None
    if device is not None and stated:
        return within(unscaled_ri(stated), MEDIUM_RI, where=f"attribute {device.where('RI')}", action=EXPORT_AGAIN)
    return config.medium_ri


def _objective_na(root: Node, device: Node | None, config: VendorConfig) -> float | None:
    model = root.text("DeviceModelType") or ""
    stated = device.number("NA") if device is not None else None
    if model.upper().replace("-", "").startswith("HTX"):
        return config.objective_na  # `Info/Device NA` is the condenser's there; none is better than the wrong one
    if config.objective_na is not None and stated is not None and config.condenser_na == stated:
        return config.objective_na  # the same mistake in a file that does not name its model
    if device is not None and stated:
        return within(stated, NUMERICAL_APERTURE, where=f"attribute {device.where('NA')}", action=EXPORT_AGAIN)
    return config.objective_na


def _wavelength(device: Node | None, config: VendorConfig) -> float | None:
    stated = device.number("Wavelength") if device is not None else None
    if device is not None and stated:
        in_um = stated / 1000 if stated > 100 else stated
        return within(in_um, WAVELENGTH_UM, where=f"attribute {device.where('Wavelength')}", unit="um", action=EXPORT_AGAIN)
    return config.wavelength_um


def _ticket(root: Node, acquisition: Acquisition, header: TcfHeader, defaults: ReadDefaults) -> Acquisition:
    title = root.text("Title") or ""
    return replace(
        acquisition,
        format=SourceFormat.TCF,
        acquisition_id=root.text("UniqueID") or root.text("DataID") or acquisition.path.stem,
        acquired_at=_local_time(root.text("RecordingTime") or root.text("CreateDate")),
        sample_id=sample_of_title(title) or defaults.sample_id or acquisition.sample_id,
        instrument_id=root.text("DeviceSerial") or root.text("DeviceHost"),
        medium_ri=header.medium_ri,
        wavelength_um=header.wavelength_um,
        objective_na=header.objective_na,
        pixel_size_um=header.voxel_um[2],
        time_points=len(header.names),
        unprotected=_unprotected(root, header),
        assumed=() if header.medium_stated else (MEDIUM,),
    )


def _unprotected(root: Node, header: TcfHeader) -> tuple[str, ...]:
    group = root.child("Data/3D")
    held = [root.group, group.group, *(group.child(name).group for name in header.names)]
    if root.has("Info") and root.child("Info").has("Device"):
        held.append(root.child("Info/Device").group)
    tiles = [tile.data for node in map(group.child, header.names) if node.is_group for tile in _tiles(node, header)[0]]
    parts = unchecked_parts(held, [*tiles, *(item for item in held if isinstance(item, h5py.Dataset))])
    return (*parts, PROVENANCE)


def sample_of_title(title: str) -> str | None:
    """The vendor numbers an experiment's files ``<title>-NNN``; "Default" is what the software proposes, and names nothing."""
    name = _TRAILING_NUMBER.sub("", title.strip(" "))
    return None if name in ("", "Default") else name


def _local_time(text: str | None) -> str | None:
    """The vendor's local time as ISO 8601 without a zone (none is recorded); text of another form is kept as it is."""
    if text:
        with suppress(ValueError):
            return datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f").isoformat()
    return text or None


# --- volumes -------------------------------------------------------------------------------------


def _examine(node: Node, header: TcfHeader) -> None:
    """All checks of one time point that need no voxel."""
    if node.is_group:
        _tiles(node, header)
    else:
        _plain(node, header)


def read_tcf_volume(root: Node, header: TcfHeader, index: int) -> Tomogram:
    """Load one time point as float32 RI [z, y, x], fill set to the medium; raises CorruptContent or BadField."""
    node = root.advised(EXPORT_AGAIN).child("Data/3D").child(header.names[index])
    load = _tiled_loader(node, header) if node.is_group else _plain_loader(node, header)
    ri, fill = assemble(header.shape, header.medium_ri, load, node.where(""))
    return Tomogram(
        ri=ri,
        voxel_um=header.voxel_um,
        medium_ri=header.medium_ri,
        time_index=index,
        wavelength_um=header.wavelength_um,
        objective_na=header.objective_na,
        fill=fill,
    )


def _plain_loader(node: Node, header: TcfHeader) -> Load:
    data = _plain(node, header)

    def load(out: NDArray[np.float32]) -> None:
        for planes in slabs(header.shape, data.chunks[0] if data.chunks else 1):
            decode(read_array(data, (planes,), node.path), RI_SCALE, 0.0, out[planes])

    return load


def _plain(node: Node, header: TcfHeader) -> h5py.Dataset:
    data = node.array(dtypes=(np.float32, np.float64, np.uint16), ndim=3, limits="float32 or uint16 [z, y, x]")
    here = node.where("")
    if data.shape != header.shape:
        raise BadField(f"{here} has shape {data.shape}; `Data/3D` SizeZ, SizeY, SizeX say {header.shape}.", action=EXPORT_AGAIN)
    if data.dtype.kind == "u" and header.version < FIRST_UINT16:
        version = ".".join(map(str, header.version))
        raise BadField(
            f"{here} is {data.dtype} in a file of version {version}; before 1.3 only float is defined.", action=EXPORT_AGAIN
        )
    return data


@dataclass(frozen=True, slots=True)
class _Tile:
    data: h5py.Dataset
    begin: Shape3
    end: Shape3


def _tiles(node: Node, header: TcfHeader) -> tuple[list[_Tile], int]:
    """The full-resolution tiles of one time point, and their scalar type (0: uint16, 1: uint8)."""
    shape = _shape(node, "DataSize")
    if shape != header.shape:
        raise BadField(
            f"{node.where('DataSize')} is {shape}; `Data/3D` SizeZ, SizeY, SizeX say {header.shape}.", action=EXPORT_AGAIN
        )
    scalar = node.required_count("ScalarType", (0, 1))
    count = node.required_count("NumberOfTiles", (1, MAX_TILES))
    if scalar == 1:
        _ri_min(node)
    tiles = [tile for tile in (_tile(node.child(name), header, scalar) for name in _tile_names(node, count)) if tile]
    if not tiles:
        raise BadField(f"{node.where('')} has no tile of SamplingStep 1 among its {count}.", action=EXPORT_AGAIN)
    return tiles, scalar


def _tile_names(node: Node, count: int) -> list[str]:
    """``TILE_00`` ...: two digits in most files, more in some; sorted by number. Raises Incomplete when some are absent."""
    names = sorted((n for n in node.names() if re.fullmatch(r"TILE_\d+", n)), key=lambda name: int(name[5:]))
    if len(names) != count:
        raise Incomplete(f"{node.where('NumberOfTiles')} announces {count} tiles; {len(names)} are there.")
    return names


def _tile(node: Node, header: TcfHeader, scalar: int) -> _Tile | None:
    if node.required_count("SamplingStep", (1, 1024)) != 1:
        return None
    data = node.array(
        dtypes=(np.uint8,) if scalar else (np.uint16,), ndim=3, limits="uint8 [z, y, x]" if scalar else "uint16 [z, y, x]"
    )
    begin = [
        node.required_count(f"DataIndexOffsetPoint{axis}", (0, size - 1))
        for axis, size in zip(_AXES, header.shape, strict=True)
    ]
    last = [
        node.required_count(f"DataIndexLastPoint{axis}", (0, size - 1)) for axis, size in zip(_AXES, header.shape, strict=True)
    ]
    extent = tuple(b - a + 1 for a, b in zip(begin, last, strict=True))
    if any(size < 1 or size > held for size, held in zip(extent, data.shape, strict=True)):
        raise BadField(f"{node.where('')} has shape {data.shape}; its data index points demand {extent}.", action=EXPORT_AGAIN)
    return _Tile(data, (begin[0], begin[1], begin[2]), (last[0] + 1, last[1] + 1, last[2] + 1))


def _ri_min(node: Node) -> float:
    value = node.number("RIMin")
    if value is None:
        raise MissingField(f"attribute {node.where('RIMin')} is absent; 8-bit tiles count from it.", action=EXPORT_AGAIN)
    return within(unscaled_ri(value), PHYSICAL_RI, where=f"attribute {node.where('RIMin')}", action=EXPORT_AGAIN)


def _tiled_loader(node: Node, header: TcfHeader) -> Load:
    """Where tiles overlap the later one is taken, never the sum; where none lies stays fill."""
    tiles, scalar = _tiles(node, header)
    scale, offset = (UINT8_SCALE, _ri_min(node)) if scalar else (RI_SCALE, 0.0)

    def load(out: NDArray[np.float32]) -> None:
        for tile in tiles:
            inside = tuple(slice(end - begin) for begin, end in zip(tile.begin, tile.end, strict=True))
            place = tuple(slice(begin, end) for begin, end in zip(tile.begin, tile.end, strict=True))
            decode(read_array(tile.data, inside, node.path), scale, offset, out[place])

    return load


def tcf_volumes(root: Node, header: TcfHeader, start: int = 0) -> Iterator[Tomogram]:
    """Every time point from ``start`` on, each loaded when it is asked for."""
    for index in range(start, len(header.names)):
        yield read_tcf_volume(root, header, index)
