"""OME-Zarr 0.4 (zarr 2) and 0.5 (zarr 3) images of RI: float32, or uint16 of RI x 1e4, in a folder or packed into a zip file.

The metadata are read and judged as plain JSON before zarr sees them: only plain numbers, only known codecs (an object codec
would unpickle), bounded sizes. Every file is opened component by component without following links, so nothing outside the
folder is read whatever is swapped in meanwhile.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wbcd.acquisition.candidate import demand_unchanged, folder_state
from wbcd.acquisition.limits import (
    MEDIUM,
    MEDIUM_RI,
    NUMERICAL_APERTURE,
    PROVENANCE,
    SCALE,
    VALUES,
    VOXEL_UM,
    WAVELENGTH_UM,
    ReadDefaults,
    plain_text,
    within,
)
from wbcd.acquisition.members import Members, members_of
from wbcd.acquisition.owntomogram import demand_foreign
from wbcd.acquisition.source import Source
from wbcd.acquisition.units import EXAMPLES, micrometres_per
from wbcd.acquisition.volume import assemble, decode, demand_loadable, slabs
from wbcd.acquisition.zarrfill import Gaps, blank_gaps, fill_of, why_contradicted, why_incomplete
from wbcd.errors import (
    BadField,
    CorruptContent,
    Forbidden,
    Incomplete,
    InputError,
    MissingField,
    TooLarge,
    UnknownFormat,
)
from wbcd.records import Acquisition, Shape3, SourceFormat, Tomogram, Triple

if TYPE_CHECKING:
    from wbcd.acquisition.zarrstore import PlainStore

MAX_METADATA_BYTES = 4 * 2**20
MAX_CHUNKS = 1_000_000
MAX_TIME_POINTS = 100_000
RI_SCALE = 1e4
MAX_NUMBER = 1e300
CHUNK_OVERHEAD = 65_536
"""Bytes that a codec may add to a chunk that does not shrink, beside one in a hundred."""
NAMESPACE = "wbcd"
CODECS = frozenset(
    {"bytes", "gzip", "zstd", "blosc", "crc32c", "transpose", "sharding_indexed", "zlib", "lz4", "shuffle", "numcodecs.zlib"}
)
CHECKING_CODECS = frozenset({"crc32c", "gzip", "zlib", "numcodecs.zlib"})
DTYPES = {"float32": "<f4", "float64": "<f8", "uint16": "<u2"}
_KNOWN_VERSION = re.compile(r"0\.[45](\D.*)?")
_LAYOUT = "bioformats2raw.layout"
MAX_NAMED = 8
_NOT_DONE = (
    "Nothing to do if it is still being written; else copy it again, or write it with all its chunks (write_empty_chunks=True)."
)
_MISSING: Any = object()
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ZarrHeader:
    """One examined image. ``array``: path of the finest level; ``leading``: sizes of the axes before (z, y, x)."""

    array: str
    shape: Shape3
    leading: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    voxel_um: Triple
    origin_um: Triple
    medium_ri: float
    wavelength_um: float | None
    objective_na: float | None
    zarr_format: Literal[2, 3]
    values_checked: bool
    scale_checked: bool
    fill: float | None
    """The fill value as RI; 0 where it says that nothing was measured, None where it cannot stand for anything."""
    fill_is_nan: bool
    inner: Shape3 | None
    """Shape (z, y, x) of the chunks within shards, where there are any."""
    absent: NDArray[np.bool_] | None
    """Of the whole grid of chunks those without a file."""
    metadata: bytes
    """The array's own metadata file, as it was judged: zarr gets these bytes and no others."""

    @property
    def time_points(self) -> int:
        """Number of volumes: the size of the time axis, if there is one."""
        return math.prod(self.leading)


# --- header --------------------------------------------------------------------------------------


def read_zarr_header(source: Source, defaults: ReadDefaults) -> tuple[Acquisition, ZarrHeader]:
    """Validate metadata and the presence of every chunk; the ticket comes back completed.

    Raises UnknownFormat, MissingField, BadField, Forbidden, TooLarge, Incomplete (chunks missing), NotARegularFile, and
    OwnTomogram for what wbcd wrote itself, unless the defaults accept it.
    """
    path = source.path
    with members_of(source) as members:
        names = members.names
        demand_unchanged_folder(source)
        version, group, place = _image_group(members, names, path)
        if not defaults.accept_own_tomograms:
            demand_foreign(group, path)
        image = _multiscale(group, path)
        dataset = place + _first_dataset(image, path)
        meta = _json(members, f"{dataset}/{'zarr.json' if version == 3 else '.zarray'}", path)
        if not defaults.accept_own_tomograms:
            demand_foreign(meta, path)
        checked = members.checked
    try:
        header = _header(version, group, image, dataset, meta, path, defaults)
    except RecursionError as error:
        raise CorruptContent(f"{path / dataset}: the metadata are nested too deeply.") from error
    absent = _absent_chunks(header, meta, names, path)
    header = replace(header, absent=absent, values_checked=checked or header.values_checked, scale_checked=checked)
    return _ticket(source.acquisition, group, header, defaults), header


def demand_unchanged_folder(source: Source) -> None:
    """Raise Incomplete when the folder, or the zip file, is not as it was when it was identified."""
    state = source.stat()  # the name is still there
    if not source.is_folder:
        demand_unchanged(source.acquisition, state.st_size, state.st_mtime_ns)
        return
    with source.opened() as folder:
        now = folder_state(folder, source.path)
    demand_unchanged(source.acquisition, now.size, now.mtime_ns)


def _json(members: Members, name: str, path: Path) -> Json:
    try:
        value = json.loads(members.read(name, MAX_METADATA_BYTES))
    except FileNotFoundError as error:
        raise Incomplete(f"{path / name} is absent.") from error
    except (ValueError, RecursionError) as error:
        raise CorruptContent(f"{path / name} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BadField(f"{path / name} holds {type(value).__name__}; an object is expected.")
    return value


def _image_group(members: Members, names: set[str], path: Path) -> tuple[Literal[2, 3], Json, str]:
    """Zarr format and attributes of the group that is the image, and where it lies: at the root, or alone in its layout."""
    version, group = _group(members, names, "", path)
    ome = _get(group, "ome", dict, path, group)
    if "multiscales" in ome or _LAYOUT not in {*ome, *group}:
        for kind in ("plate", "well"):
            if kind in ome:
                raise UnknownFormat(f"{path} is a {kind} of many images.", action="Move its images out, one .zarr folder each.")
        return version, group, ""
    places = _series(members, names, path)
    if not places:
        raise Incomplete(f"{path} has the layout of bioformats2raw, and no image yet.")
    if len(places) > 1:
        shown = [f"{place!r} {_image_name(members, names, place, path)}".strip() for place in places[:MAX_NAMED]]
        more = f" and {len(places) - MAX_NAMED} more" if len(places) > MAX_NAMED else ""
        raise BadField(
            f"{path} holds {len(places)} images in the layout of bioformats2raw: {', '.join(shown)}{more}; one is read.",
            action=f"Copy the one of RI out as a folder of its own, such as {path.name}/{places[0]} to NAME.zarr, or convert"
            " again with --series.",
        )
    version, group = _group(members, names, f"{places[0]}/", path)
    return version, group, f"{places[0]}/"


def _series(members: Members, names: set[str], path: Path) -> list[str]:
    """Paths of the images in the layout of bioformats2raw: those listed, else the numbered groups (NGFF 0.4, section 3.2)."""
    for name in ("OME/zarr.json", "OME/.zattrs"):
        if name not in names:
            continue
        found = _json(members, name, path)
        found = _get(found, "attributes", dict, path, {}) if name.endswith("zarr.json") else found
        listed = _get(_get(found, "ome", dict, path, found), "series", list, path, None)
        if listed is not None:
            if not all(isinstance(item, str) and not _leaves(item) for item in listed):
                raise Forbidden(f"{path}: `series` is {str(listed)[:100]}, which leaves the folder.")
            return list(listed)
    groups = {name.partition("/")[0] for name in names if name.endswith(("/zarr.json", "/.zgroup")) and name.count("/") == 1}
    return sorted((name for name in groups if name.isascii() and name.isdigit()), key=int)


def _image_name(members: Members, names: set[str], place: str, path: Path) -> str:
    """Its own name in brackets, for a message; empty where it has none that can be read."""
    try:
        image = _multiscale(_group(members, names, f"{place}/", path)[1], path)
    except InputError:
        return ""
    name = image.get("name")
    return f"({plain_text(name[:60], where='name')})" if isinstance(name, str) and name else ""


def _group(members: Members, names: set[str], place: str, path: Path) -> tuple[Literal[2, 3], Json]:
    """The zarr format and the attributes of the group at ``place`` (empty, or ending in a slash)."""
    if f"{place}zarr.json" in names:
        root = _json(members, f"{place}zarr.json", path)
        if not place and root.get("node_type") == "array":
            raise _plain_array(path)
        return 3, _get(_get(root, "attributes", dict, path), "", dict, path)
    if f"{place}.zgroup" in names:
        return 2, _json(members, f"{place}.zattrs", path) if f"{place}.zattrs" in names else {}
    if not names:
        raise Incomplete(f"{path} is empty.")
    if not place and ".zarray" in names:
        raise _plain_array(path)
    raise UnknownFormat(f"{path / place} holds neither `zarr.json` nor `.zgroup`.")


def _plain_array(path: Path) -> UnknownFormat:
    return UnknownFormat(
        f"{path} is a plain Zarr array: nothing says what its axes are, and how large its voxels.",
        action="Write it as OME-Zarr 0.4 or 0.5, with axes, units and scale.",
    )


def _leaves(name: str) -> bool:
    return any(part in ("", ".", "..") for part in name.split("/"))


def _get(data: Json, name: str, kind: type[Any] | tuple[type[Any], ...], path: Path, default: Any = _MISSING) -> Any:
    """One member of a JSON object, of the demanded kind; the empty name is the object itself."""
    value = data.get(name, default) if name else data
    if value is _MISSING:
        raise MissingField(f"{path}: `{name}` is absent.")
    if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
        raise BadField(f"{path}: `{name}` is {str(value)[:100]!r}, of the wrong type.")
    return value


def _multiscale(group: Json, path: Path) -> Json:
    ome = _get(group, "ome", dict, path, group)
    images = _get(ome, "multiscales", list, path)
    if not images or not isinstance(images[0], dict):
        raise BadField(f"{path}: `multiscales` is empty; one image is expected.")
    image: Json = images[0]
    stated = ome.get("version", image.get("version"))
    if stated is not None and not _KNOWN_VERSION.fullmatch(str(stated)):
        raise UnknownFormat(
            f"{path} is OME-Zarr {str(stated)[:20]!r}; versions 0.4 and 0.5 are read.", action="Write it as OME-Zarr 0.5."
        )
    return image


def _first_dataset(image: Json, path: Path) -> str:
    datasets = _get(image, "datasets", list, path)
    if not datasets or not isinstance(datasets[0], dict):
        raise BadField(f"{path}: `datasets` is empty; one level is expected.")
    name: str = _get(datasets[0], "path", str, path)
    if _leaves(name):
        raise Forbidden(f"{path}: `datasets[0].path` is {name!r}, which leaves the folder.")
    return name


def _header(
    version: Literal[2, 3], group: Json, image: Json, dataset: str, meta: Json, path: Path, defaults: ReadDefaults
) -> ZarrHeader:
    shape = _sizes(_get(meta, "shape", list, path), "shape", path)
    dtype = _dtype(_get(meta, "data_type" if version == 3 else "dtype", str, path), path)
    _demand_known_codecs(meta, path)
    units = _axes(image, shape, path)
    volume = (shape[-3], shape[-2], shape[-1])
    demand_loadable(volume, defaults, f"{path / dataset}: `shape`")
    scale, translation = _transforms(image, len(shape), path)
    _demand_pitch(scale[-3:], units[-3:], path)
    voxel = [within(scale[i] * units[i], VOXEL_UM, where=f"{path}: `scale[{i}]`", unit="um") for i in range(-3, 0)]
    origin = [translation[i] * units[i] for i in range(-3, 0)]
    own = _get(group, NAMESPACE, dict, path, {})
    fill, fill_is_nan = fill_of(meta.get("fill_value"), dtype, RI_SCALE)
    chunks = _chunks(version, meta, shape, dtype.itemsize, defaults.max_logical_bytes, path)
    inner = list(_inner_chunks(meta, chunks, path))
    return ZarrHeader(
        array=dataset,
        shape=volume,
        leading=shape[:-3],
        chunks=chunks,
        dtype=dtype,
        voxel_um=(voxel[0], voxel[1], voxel[2]),
        origin_um=(origin[0], origin[1], origin[2]),
        medium_ri=_own(own, "medium_ri", MEDIUM_RI, path) or defaults.medium_ri,
        wavelength_um=_own(own, "wavelength_um", WAVELENGTH_UM, path),
        objective_na=_own(own, "objective_na", NUMERICAL_APERTURE, path),
        zarr_format=version,
        values_checked=any(_checks(codec) for codec in _codecs(meta, path)),
        scale_checked=False,
        fill=fill,
        fill_is_nan=fill_is_nan,
        inner=(inner[-1][-3], inner[-1][-2], inner[-1][-1]) if inner else None,
        absent=None,
        metadata=json.dumps(meta).encode(),
    )


def _own(own: Json, name: str, bounds: tuple[float, float], path: Path) -> float | None:
    value = _get(own, name, (int, float), path, None)
    if value is not None and not _is_number(value):
        raise BadField(f"{path}: `{NAMESPACE}.{name}` is {str(value)[:40]}; a finite number is expected.")
    return None if value is None else within(float(value), bounds, where=f"{path}: `{NAMESPACE}.{name}`")


def _sizes(values: Sequence[Any], name: str, path: Path) -> tuple[int, ...]:
    if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
        raise BadField(f"{path}: `{name}` is {str(values)[:100]}; positive whole numbers are expected.")
    return tuple(values)


def _dtype(name: str, path: Path) -> np.dtype[Any]:
    known = {np.dtype(code): kind for kind, code in DTYPES.items()}
    plain = DTYPES.get(name, name)
    if plain not in ("<f4", "<f8", "<u2", ">f4", ">f8", ">u2"):
        raise BadField(
            f"{path}: the array has type {name[:40]!r}; allowed are {', '.join(known.values())}.",
            action="Write RI as float32, or RI x 10,000 as uint16.",
        )
    return np.dtype(plain).newbyteorder("=")


def _demand_known_codecs(meta: Json, path: Path) -> None:
    for name in _codec_names(meta, path):
        if not isinstance(name, str) or name not in CODECS:
            raise Forbidden(
                f"{path}: codec {str(name)[:60]!r} is not allowed; known are {', '.join(sorted(CODECS))}.",
                action="Write the image again with a usual compressor.",
            )


def _codec_names(meta: Json, path: Path) -> Iterator[Any]:
    """Names of all codecs, those inside shards too."""
    for codec in _codecs(meta, path):
        yield codec.get("name", codec.get("id")) if isinstance(codec, dict) else codec


def _codecs(meta: Json, path: Path) -> Iterator[Any]:
    """All codecs as they are written, those inside shards too; raises BadField where lists are none."""
    listed = [meta.get("compressor")]
    for key in ("filters", "storage_transformers", "codecs", "index_codecs"):
        members = meta.get(key) or []
        if not isinstance(members, list):
            raise BadField(f"{path}: the array's `{key}` is {str(members)[:60]!r}; a list is expected.")
        listed += members
    for codec in listed:
        if codec is not None:
            yield codec
        if isinstance(codec, dict) and isinstance(codec.get("configuration"), dict):
            yield from _codecs(codec["configuration"], path)


def _checks(codec: Any) -> bool:
    """True for a codec that notices a flipped bit of the values."""
    if not isinstance(codec, dict):
        return bool(codec == "crc32c")
    name, options = codec.get("name", codec.get("id")), codec.get("configuration", codec)
    return bool(name in CHECKING_CODECS or (name == "zstd" and isinstance(options, dict) and options.get("checksum") is True))


def _chunks(version: int, meta: Json, shape: tuple[int, ...], itemsize: int, max_bytes: int, path: Path) -> tuple[int, ...]:
    if version == 2:
        values = _get(meta, "chunks", list, path)
    else:
        grid = _get(_get(meta, "chunk_grid", dict, path), "configuration", dict, path)
        values = _get(grid, "chunk_shape", list, path)
    chunks = _sizes(values, "chunk_shape", path)
    if len(chunks) != len(shape):
        raise BadField(f"{path}: `chunk_shape` is {chunks}; the shape {shape} demands {len(shape)} sizes.")
    if (size := math.prod(chunks) * itemsize) > max_bytes:
        raise TooLarge(f"{path}: the array has chunks of {size} bytes; the limit is {max_bytes}.")
    return chunks


def _axes(image: Json, shape: tuple[int, ...], path: Path) -> list[float]:
    """Micrometres per unit of each axis; the axes must be [t] [c] z y x, with one channel."""
    axes = _get(image, "axes", list, path)
    names = "".join(str(axis.get("name")).lower() if isinstance(axis, dict) else "?" for axis in axes)
    if names not in ("zyx", "tzyx", "czyx", "tczyx") or len(axes) != len(shape):
        raise BadField(
            f"{path}: `axes` are {names[:20]!r} for shape {shape}; allowed are zyx, tzyx, czyx and tczyx.",
            action="Write the image with its axes in that order.",
        )
    if "c" in names and shape[names.index("c")] != 1:
        raise BadField(
            f"{path}: the image has {shape[names.index('c')]} channels; RI is one.", action="Write the RI channel alone."
        )
    if math.prod(shape[:-3]) > MAX_TIME_POINTS:
        raise TooLarge(f"{path}: the image has {math.prod(shape[:-3])} time points; the limit is {MAX_TIME_POINTS}.", action="")
    return [_micrometres(axis, path) if axis["name"].lower() in "zyx" else 1.0 for axis in axes]


def _micrometres(axis: Json, path: Path) -> float:
    advice = f'Write the unit into `axes`: "unit": "micrometer" for each of z, y and x. Known are {EXAMPLES}.'
    unit = axis.get("unit")
    if unit is None or (isinstance(unit, str) and not unit.strip()):
        raise MissingField(f"{path}: axis {axis['name']!r} has no `unit`: the voxel size is unknown.", action=advice)
    per = micrometres_per(unit) if isinstance(unit, str) else None
    if per is None:
        raise BadField(f"{path}: axis {axis['name']!r} has unit {str(unit)[:30]!r}, which is no known length.", action=advice)
    return per


def _demand_pitch(scale: Sequence[float], units: Sequence[float], path: Path) -> None:
    if list(scale) == [1.0] * 3 and list(units) == [1.0] * 3:
        raise BadField(
            f"{path}: `scale` is 1, 1, 1 micrometer, as writers put it where nobody has set a voxel size.",
            action="Write the voxel size into `coordinateTransformations`, in the order of the axes.",
        )


def _transforms(image: Json, count: int, path: Path) -> tuple[list[float], list[float]]:
    """Scale and translation of the finest level, the image's own applied after the level's (OME-NGFF 0.4, section 3.4)."""
    scale, translation = [1.0] * count, [0.0] * count
    level = _get(_get(image, "datasets", list, path)[0], "coordinateTransformations", list, path)
    for step in [*level, *_get(image, "coordinateTransformations", list, path, [])]:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "scale":
            factors = _floats(step, "scale", count, path)
            scale = [a * b for a, b in zip(scale, factors, strict=True)]
            translation = [a * b for a, b in zip(translation, factors, strict=True)]
        elif kind == "translation":
            translation = [a + b for a, b in zip(translation, _floats(step, "translation", count, path), strict=True)]
        elif kind != "identity":
            raise BadField(f"{path}: `coordinateTransformations` holds {str(kind)[:30]!r}; allowed are scale and translation.")
    if not any(step["type"] == "scale" for step in level):
        raise MissingField(
            f"{path}: `coordinateTransformations` of the finest level holds no scale: the voxel size is unknown."
        )
    return scale, translation


def _floats(step: Json, name: str, count: int, path: Path) -> list[float]:
    values = _get(step, name, list, path)
    if len(values) != count or not all(_is_number(v) for v in values):
        raise BadField(
            f"{path}: `{name}` is {str(values)[:100]}; {count} numbers are expected.",
            action="Correct `coordinateTransformations`.",
        )
    return [float(v) for v in values]


def _is_number(value: Any) -> bool:
    """True for a finite number; an integer beyond the range of floats is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _absent_chunks(header: ZarrHeader, meta: Json, names: set[str], path: Path) -> NDArray[np.bool_] | None:
    """Which chunks have no file, or None; raises Incomplete where they cannot be the fill value by all that names can tell."""
    full = (*header.leading, *header.shape)
    counts = [-(-size // chunk) for size, chunk in zip(full, header.chunks, strict=True)]
    expected = math.prod(counts)
    inner = expected * math.prod(_inner_counts(meta, header.chunks, path))
    if inner > MAX_CHUNKS:
        raise TooLarge(f"{path}: the array has {inner} chunks; the limit is {MAX_CHUNKS}.", action="")
    prefix, separator = _chunk_key(header.zarr_format, meta, path)
    absent = np.array([f"{header.array}/{prefix}{key}" not in names for key in _keys(counts, separator)]).reshape(counts)
    if not absent.any():
        return None
    for volume in absent.reshape(-1, *counts[-3:]):
        if why := why_incomplete(volume, header.fill):
            key = separator.join(map(str, np.argwhere(absent)[0]))
            raise Incomplete(
                f"{path / header.array} holds {expected - int(absent.sum())} of {expected} chunks; {key!r} is absent: {why}.",
                action=_NOT_DONE,
            )
    return absent


def _inner_chunks(meta: Json, chunks: tuple[int, ...], path: Path) -> Iterator[tuple[int, ...]]:
    """Shape of the chunks within shards, for each level of nesting."""
    for codec in _codecs(meta, path):
        if isinstance(codec, dict) and codec.get("name") == "sharding_indexed":
            options = _get(codec, "configuration", dict, path)
            inner = _sizes(_get(options, "chunk_shape", list, path), "chunk_shape", path)
            if len(inner) != len(chunks):
                raise BadField(f"{path}: the shards' `chunk_shape` is {inner}; {len(chunks)} sizes are expected.")
            yield inner


def _inner_counts(meta: Json, chunks: tuple[int, ...], path: Path) -> Iterator[int]:
    """For each nested shard the number of chunks in one of its own."""
    outer = chunks
    for inner in _inner_chunks(meta, chunks, path):
        yield math.prod(-(-whole // part) for whole, part in zip(outer, inner, strict=True))
        outer = inner


def _chunk_key(version: int, meta: Json, path: Path) -> tuple[str, str]:
    if version == 2:
        return "", _separator(_get(meta, "dimension_separator", str, path, "."), path)
    encoding = _get(meta, "chunk_key_encoding", dict, path)
    kind = encoding.get("name")
    options = _get(encoding, "configuration", dict, path, {})
    if kind == "default":
        separator = _separator(options.get("separator", "/"), path)
        return f"c{separator}", separator
    return "", _separator(options.get("separator", "."), path)


def _separator(value: Any, path: Path) -> str:
    if value not in ("/", "."):
        raise BadField(f"{path}: the chunk separator is {str(value)[:10]!r}; allowed are '/' and '.'.")
    return str(value)


def _keys(counts: Sequence[int], separator: str) -> Iterator[str]:
    for index in np.ndindex(*counts):
        yield separator.join(map(str, index))


def _ticket(acquisition: Acquisition, group: Json, header: ZarrHeader, defaults: ReadDefaults) -> Acquisition:
    own = _get(group, NAMESPACE, dict, acquisition.path, {})

    def text(name: str) -> str | None:
        value = own.get(name)
        if not isinstance(value, str) or not value:
            return None
        return plain_text(value, where=f"{acquisition.path}: `{NAMESPACE}.{name}`")

    return replace(
        acquisition,
        format=SourceFormat.OME_ZARR,
        acquisition_id=text("acquisition_id") or acquisition.path.stem,
        acquired_at=text("acquired_at"),
        sample_id=text("sample_id") or defaults.sample_id or acquisition.sample_id,
        instrument_id=text("instrument_id"),
        medium_ri=header.medium_ri,
        wavelength_um=header.wavelength_um,
        objective_na=header.objective_na,
        pixel_size_um=header.voxel_um[2],
        time_points=header.time_points,
        assumed=() if own.get("medium_ri") else (MEDIUM,),
        # JSON has no checksum; of the codecs only some do. In a zip file every member has one.
        unprotected=tuple(
            part
            for part, checked in ((SCALE, header.scale_checked), (VALUES, header.values_checked), (PROVENANCE, False))
            if not checked
        ),
    )


# --- volumes -------------------------------------------------------------------------------------


def read_zarr_volume(source: Source, header: ZarrHeader, index: int) -> Tomogram:
    """Load one time point as float32 RI [z, y, x]; raises CorruptContent or BadField."""
    place = [int(at) for at in np.unravel_index(index, header.leading)] if header.leading else []
    path = source.path
    gaps = _gaps(header, place)
    with _opened(source, header) as array:

        def load(out: NDArray[np.float32]) -> None:
            for planes in slabs(header.shape, header.chunks[-3]):
                decode(np.asarray(array[(*place, planes)]), RI_SCALE, 0.0, out[planes])
            blank_gaps(out, gaps)
            if why := why_contradicted(out, gaps, header.voxel_um):
                raise Incomplete(
                    f"{path / header.array}: chunks are absent that cannot be the fill value: {why}.", action=_NOT_DONE
                )

        ri, fill = assemble(header.shape, header.medium_ri, load, f"{path / header.array}")
    return Tomogram(
        ri=ri,
        voxel_um=header.voxel_um,
        medium_ri=header.medium_ri,
        time_index=index,
        wavelength_um=header.wavelength_um,
        objective_na=header.objective_na,
        fill=fill,
    )


def _gaps(header: ZarrHeader, place: Sequence[int]) -> Gaps:
    """What is absent of one volume."""
    chunk = (header.chunks[-3], header.chunks[-2], header.chunks[-1])
    leading = tuple(at // size for at, size in zip(place, header.chunks, strict=False))
    absent = None if header.absent is None else header.absent[leading]
    absent = None if absent is None or not absent.any() else absent
    shared = math.prod(header.chunks[:-3]) > 1
    return Gaps(chunk, header.fill, header.fill_is_nan, absent, header.inner, shared)


@contextmanager
def _opened(source: Source, header: ZarrHeader) -> Iterator[Any]:
    import zarr  # half a second: only when an OME-Zarr is met

    path = source.path
    with members_of(source) as members:
        try:
            yield zarr.open_array(_store(source, members, header), path=header.array, mode="r", zarr_format=header.zarr_format)
        except InputError:
            raise
        except MemoryError as error:
            raise TooLarge(f"{path} needs more memory than the reader may use.") from error
        except Exception as error:
            # zarr and its codecs (several C libraries) raise whatever they like on damaged bytes; none of it is our own code.
            raise CorruptContent(f"{path} is damaged: {type(error).__name__}: {str(error)[:200]}.") from error


def _store(source: Source, members: Members, header: ZarrHeader) -> PlainStore:
    from wbcd.acquisition.zarrstore import PlainStore

    name = f"{header.array}/{'zarr.json' if header.zarr_format == 3 else '.zarray'}"
    chunk_bytes = math.prod(header.chunks) * header.dtype.itemsize
    return PlainStore(source.path, members, {name: header.metadata}, int(chunk_bytes * 1.01) + CHUNK_OVERHEAD)


def zarr_volumes(source: Source, header: ZarrHeader) -> Iterator[Tomogram]:
    """Every time point, each loaded when it is asked for."""
    for index in range(header.time_points):
        yield read_zarr_volume(source, header, index)
