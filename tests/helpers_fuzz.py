"""Spoiled acquisitions, told by a seed, and what the real line makes of them.

A case is (seed file, mutation): everything follows from one integer, so that a finding can be made again. The mutated file goes
the whole way that a file of the watch folder goes: identified, read by the isolated reader, judged, reconstructed, measured.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import re
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import tifffile
import zarr
from helpers_mie import Rig, holograms
from helpers_ri import packed, x10000
from helpers_spheres import MEDIUM, SIZE, VOXEL_UM, cheap_settings, sphere, tiny_bundle

from wbcd.config import Config
from wbcd.daemon.assembly import make_stages
from wbcd.daemon.line import process
from wbcd.daemon.stages import Stages
from wbcd.errors import WbcdError
from wbcd.records import Acquisition, HologramStack, Optics, Outcome, Payload, RiSeries, Tomogram
from wbcd.simulation.files import write_acquisition, write_ome_zarr_ri, write_tcf
from wbcd.simulation.optics import fields

HANG_S = 30.0
BACKGROUND, NOTES = "bg001.mat", "session.json"
SAME_VOLUME = 0.01
OPTICS = Optics(0.532, 1.2, MEDIUM, 0.0625)
# Crude but quick, and lenient: what is refused for its quality would hide a wrong volume.
LENIENT = {
    "recipe.reconstruction.voxel_um": [0.4, 0.4, 0.4],
    "recipe.reconstruction.shape": [32, 32, 32],
    "recipe.reconstruction.iterations": 3,
    "recipe.quality.max_phase_residue_fraction": 0.2,
    "recipe.quality.max_background_rms_rad": 2.0,
    "recipe.quality.max_residual": 2.0,
    "recipe.quality.max_frame_residual": 5.0,
    "recipe.quality.max_frame_shift_um": 5.0,
    "recipe.quality.min_kept_frames": 4,
    "recipe.quality.max_lobes": 50,
    "recipe.quality.min_volume_fl": 5.0,
    "recipe.quality.min_solidity": 0.1,
}


# --- the corpus ----------------------------------------------------------------------------------


def make_corpus(folder: Path) -> dict[str, Path]:
    """Small valid acquisitions of each format, all of which are measured; as their writers make them."""
    ri = sphere(3.1)
    stack = hologram_stack()
    ticket = {"acquisition_id": "A-1", "acquired_at": "2024-05-06T07:08:09+02:00", "sample_id": "s", "instrument_id": "rig"}
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "sealed": write_acquisition(folder / "sealed.h5", stack, **ticket),
        "plain": write_acquisition(folder / "plain.h5", stack, **ticket),
        "float": write_tcf(folder / "float.TCF", [ri], voxel_um=VOXEL_UM, version="1.2"),
        "uint16": write_tcf(folder / "uint16.TCF", [ri, sphere(2.8)], voxel_um=VOXEL_UM, version="1.3"),
        "tiled": write_tcf(folder / "tiled.TCF", [ri], voxel_um=VOXEL_UM, version="1.6", tile_shape=(32, 20, 20), overlap=2),
        "raw": write_tcf(folder / "raw.TCF", [ri], voxel_um=VOXEL_UM, version="1.3"),
        "zarr5": write_ome_zarr_ri(folder / "zarr5.zarr", ri, VOXEL_UM),
        "zarr4": write_ome_zarr_ri(folder / "zarr4.zarr", ri, VOXEL_UM, version="0.4", encoding="uint16"),
        "sparse": _sparse_zarr(folder / "sparse.zarr"),
        "imagej": folder / "imagej.tif",
        "ome": folder / "ome.tif",
    }
    made["mat7"] = _matlab_7(folder, stack)
    z, _, x = VOXEL_UM
    kept = {"spacing": z, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(made["imagej"], x10000(ri), imagej=True, resolution=(1 / x, 1 / x), metadata=kept)
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", VOXEL_UM, strict=True)}
    tifffile.imwrite(made["ome"], np.stack([ri, ri]), ome=True, compression="zlib", metadata={"axes": "TZYX", **sizes})
    made["stored"] = packed(made["zarr4"], folder / "stored.ozx")
    made["deflated"] = packed(made["sparse"], folder / "deflated.ozx", top="a.zarr/", method=zipfile.ZIP_DEFLATED)
    _without_protection(made["plain"], ["holograms", "reference"], seal=False)
    _without_protection(made["raw"], ["Data/3D/000000"])
    return made


def _matlab_7(folder: Path, stack: HologramStack) -> Path:
    """A packed MATLAB session; what lies beside it is made anew in the folder of the cases."""
    numbers = {"res": OPTICS.pixel_size_um, "NA": OPTICS.objective_na, "lambda": OPTICS.wavelength_um}
    for name, frames in (("sample.mat", stack.holograms), (BACKGROUND, stack.reference)):
        values = np.asfortranarray(frames.transpose(1, 2, 0))
        scipy.io.savemat(folder / name, {"tomogMap": values, **numbers}, do_compression=True)
    (folder / NOTES).write_text(json.dumps({"background": BACKGROUND, "normal_frame": 0, "medium_ri": MEDIUM}))
    return folder / "sample.mat"


def _sparse_zarr(path: Path) -> Path:
    """In the layout of bioformats2raw, the chunks of nothing but medium not written."""
    medium = float(np.float32(MEDIUM))
    root = zarr.open_group(path, mode="w", zarr_format=2, attributes={"bioformats2raw.layout": 3})
    axes = [{"name": axis, "type": "space", "unit": "um"} for axis in "zyx"]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": list(VOXEL_UM)}]}]
    image = root.create_group("0", attributes={"multiscales": [{"version": "0.4", "axes": axes, "datasets": levels}]})
    array = image.create_array("0", shape=(SIZE,) * 3, chunks=(8, 8, 8), dtype="f4", fill_value=medium)
    array[...] = sphere(3.1)
    return path


def hologram_stack(size: int = 224, frames: int = 17) -> HologramStack:
    """A sphere of 2.2 um before a small camera, with its reference; the directions of light are measured.

    The recipe is far too coarse for it: what is measured is ragged, yet always the same.
    """
    rig = Rig(size=size, frames=frames, electrons=None)
    w = fields(sphere(2.2, size=16), VOXEL_UM, OPTICS, rig.k_in(), camera=(size, size)).numpy()
    rng = np.random.default_rng(0)
    return HologramStack(holograms(w, rig, rng), holograms(np.ones_like(w), rig, rng), None, 0, OPTICS)


def _without_protection(path: Path, names: list[str], *, seal: bool = True) -> None:
    """Write the file anew as an old program would: HDF5's oldest format, no filters, contiguous values."""
    old = path.with_name(f"{path.name}.old")
    with h5py.File(path, "r") as source, h5py.File(old, "w", libver="earliest") as target:
        for name in names:
            target.create_dataset(name, data=source[name][()])

        def attributes(name: str, node: h5py.Group | h5py.Dataset) -> None:
            for key, value in node.attrs.items():
                if seal or key != "seal":
                    target.require_group(name) if isinstance(node, h5py.Group) else None
                    target[name].attrs[key] = value

        attributes("/", source["/"])
        source.visititems(attributes)
    old.replace(path)


# --- mutations of bytes --------------------------------------------------------------------------


def mutate_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One kind of damage that disks, copies and shares do; the name says which."""
    kind = rng.choice(["flip", "flip", "flip", "flips", "head", "head", "block", "cut", "tail", "hole", "swap", "gap", "more"])
    content = bytearray(data)
    size = len(content)
    at = rng.randrange(size)
    span = min(size - at, rng.choice([1, 4, 64, 512, 4096]))
    if kind in ("flip", "flips", "head"):
        places = 1 if kind == "flip" else rng.choice([1, 2, 16])
        for _ in range(places):
            where = rng.randrange(min(size, 6000)) if kind == "head" else rng.randrange(size)
            content[where] ^= 1 << rng.randrange(8)
    elif kind == "block":
        content[at : at + span] = rng.randbytes(span)
    elif kind == "cut":
        del content[at:]
    elif kind == "tail":
        content[at:] = bytes(size - at)
    elif kind == "hole":
        content[at : at + span] = bytes(span)
    elif kind == "swap":
        other = rng.randrange(size - span + 1)
        content[at : at + span], content[other : other + span] = content[other : other + span], content[at : at + span]
    elif kind == "gap":
        del content[at : at + span]
    else:
        content[at:at] = rng.randbytes(span)
    return f"bytes.{kind}", bytes(content)


# --- mutations of HDF5's structure ---------------------------------------------------------------


def hostile_value(rng: random.Random, old: Any) -> Any:
    """A value for an attribute: of another type, out of range, not finite, or only slightly wrong."""
    number = float(np.asarray(old).reshape(-1)[0]) if np.asarray(old).dtype.kind in "iuf" and np.asarray(old).size else 1.0
    choices: list[Callable[[], Any]] = [
        lambda: number * rng.choice([1e3, 1e-3, -1.0, 1e4, 2.0, 0.5, 1.05, 0.97]),
        lambda: rng.choice([0, -1, 1, 2**31, 2**63 - 1, -(2**63), 1e308, 5e-324]),
        lambda: rng.choice([float("nan"), float("inf"), float("-inf")]),
        lambda: rng.choice(["", "x", "a" * 5000, "7", "nm", "\udcff", "../../etc/passwd", "\x00", "\x01\x7f", "é" * 300]),
        lambda: rng.choice([True, False]),
        lambda: np.array([number, number, number]),
        lambda: np.array([], np.float64),
        lambda: np.bytes_(rng.randbytes(rng.choice([1, 30]))),
        lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        lambda: np.complex128(number),
        lambda: h5py.Empty("f4"),
        lambda: np.array([number], dtype=rng.choice([">f4", "<f2", "u1", ">i2"])) if abs(number) < 200 else number,
        lambda: np.array(["text"], dtype=h5py.string_dtype()),
        lambda: np.zeros(8000, np.float64),
    ]
    return rng.choice(choices)()


def mutate_hdf5(path: Path, rng: random.Random, outside: Path) -> str:
    """Change the structure of the file with h5py: well-formed HDF5, wrong or hostile content."""
    with h5py.File(path, "r+", libver=("earliest", "v110")) as file:
        nodes: list[Any] = [file["/"]]
        file.visititems(lambda _, node: nodes.append(node))
        arrays = [node for node in nodes if isinstance(node, h5py.Dataset)]
        chosen = rng.choice([*_ATTRIBUTE_WAYS, *_ATTRIBUTE_WAYS, *_ARRAY_WAYS, *_LINK_WAYS])
        if chosen in _ATTRIBUTE_WAYS:
            chosen(rng.choice([node for node in nodes if len(node.attrs)]), rng)
        elif chosen in _ARRAY_WAYS and arrays:
            chosen(file, rng.choice(arrays), rng)
        else:
            _LINK_WAYS[rng.randrange(len(_LINK_WAYS))](file, rng.choice(arrays or [file["/"]]), rng, outside)
    return f"hdf5.{chosen.__name__.strip('_')}"


def _change_attribute(node: Any, rng: random.Random) -> None:
    name = rng.choice(list(node.attrs))
    value = hostile_value(rng, node.attrs[name])
    del node.attrs[name]
    node.attrs[name] = value


def _drop_attribute(node: Any, rng: random.Random) -> None:
    del node.attrs[rng.choice(list(node.attrs))]


def _rename_attribute(node: Any, rng: random.Random) -> None:
    name = rng.choice(list(node.attrs))
    node.attrs[name.swapcase() or "x"] = node.attrs[name]
    if name.swapcase() != name:
        del node.attrs[name]


def _refer(node: Any, rng: random.Random) -> None:
    name = rng.choice(list(node.attrs))
    del node.attrs[name]
    if isinstance(node, h5py.Dataset) and rng.random() < 0.5 and node.ndim:
        node.attrs.create(name, node.regionref[:1], dtype=h5py.regionref_dtype)
    else:
        node.attrs.create(name, node.ref, dtype=h5py.ref_dtype)


def _put(file: h5py.File, node: h5py.Dataset, values: Any, **options: Any) -> h5py.Dataset:
    """Replace a data set, its attributes kept."""
    name, held = node.name, dict(node.attrs)
    del file[name]
    made = file.create_dataset(name, data=values, **options)
    for key, value in held.items():
        with suppress(TypeError):
            made.attrs[key] = value
    return made


def _other_type(file: h5py.File, node: h5py.Dataset, rng: random.Random) -> None:
    kind = rng.choice(["f8", "f4", ">u2", "i1", "?", "c8", "u8", "S4", "f2", ">f4"])
    with np.errstate(over="ignore", invalid="ignore"):  # values that the type does not hold are spoilt as intended
        values = np.nan_to_num(node[()]).astype(kind)
    _put(file, node, values, chunks=node.chunks)


def _other_shape(file: h5py.File, node: h5py.Dataset, rng: random.Random) -> None:
    values = node[()]
    ways: list[Callable[[], Any]] = [
        lambda: values.T,
        lambda: values[: max(1, len(values) // 2)],
        lambda: values[..., :-1],
        lambda: np.concatenate([values, values]),
        lambda: values[None],
        lambda: values.reshape(-1),
        lambda: values[:0],
        lambda: values[:1],
        lambda: np.roll(values, 1, axis=0),
        lambda: values[::-1],
    ]
    _put(file, node, rng.choice(ways)())


def _bad_values(file: h5py.File, node: h5py.Dataset, rng: random.Random) -> None:
    values = node[()]
    place = tuple(slice(*sorted((rng.randrange(size + 1), rng.randrange(size + 1)))) for size in values.shape)
    options = [0, values.max() if values.size else 0]
    options += [np.nan, np.inf, -np.inf, 1e30] if values.dtype.kind == "f" else [np.iinfo(values.dtype).max]
    values[place if rng.random() < 0.7 else slice(None)] = rng.choice(options)
    _put(file, node, values, chunks=node.chunks, fletcher32=bool(node.chunks))


def _scaled(file: h5py.File, node: h5py.Dataset, rng: random.Random) -> None:
    values = node[()]
    factor = rng.choice([1e4, 1e-4, 0.5, 2.0, 1.01, -1.0])
    with np.errstate(all="ignore"):
        _put(file, node, (values * factor).astype(values.dtype), chunks=node.chunks)


def _other_storage(file: h5py.File, node: h5py.Dataset, rng: random.Random) -> None:
    values = node[()]
    small = tuple(max(1, size // 5) for size in values.shape)
    options: list[dict[str, Any]] = [
        {"compression": "lzf"},
        {"compression": "gzip", "shuffle": True, "chunks": small},
        {"chunks": small, "fletcher32": True},
        {"scaleoffset": 0} if values.dtype.kind != "f" else {"scaleoffset": 3},
        {"chunks": values.shape},
        {},
    ]
    _put(file, node, values, **rng.choice(options))


def _unwritten(file: h5py.File, node: h5py.Dataset, rng: random.Random) -> None:
    """Declared, and never or only partly written; in the end as large as a bomb."""
    shape, chunks, kind = node.shape, tuple(max(1, size // 3) for size in node.shape), node.dtype
    big = rng.choice([shape, tuple(size * 2 for size in shape), (2**20, 2**20, 2**12)[: len(shape)]])
    name, held = node.name, dict(node.attrs)
    del file[name]
    made = file.create_dataset(name, big, kind, chunks=chunks if rng.random() < 0.7 or big[0] == 2**20 else None)
    if rng.random() < 0.5:
        made[(0,) * (len(big) - 1)] = 1
    made.attrs.update(held)


def _bomb(file: h5py.File, node: h5py.Dataset, rng: random.Random) -> None:
    """A few kB that unpack to far more than the chunk: the deflate stream lies about nothing, the index does."""
    import zlib

    name, held, shape = node.name, dict(node.attrs), node.shape
    kind = node.dtype
    del file[name]
    made = file.create_dataset(name, shape, kind, chunks=(1, *shape[1:]), compression="gzip")
    packed = zlib.compress(bytes(rng.choice([2**22, 2**26])), 9)
    for index in range(shape[0]):
        made.id.write_direct_chunk((index, *[0] * (len(shape) - 1)), packed)
    made.attrs.update(held)


def _soft_link(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    name = node.name if node.name != "/" else "/extra"
    if name in file:
        file.move(name, "/moved")
    file[name] = h5py.SoftLink(rng.choice(["/moved", "/nowhere", name]))


def _external_link(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    name = node.name if node.name != "/" else "/extra"
    if name in file:
        del file[name]
    file[name] = h5py.ExternalLink(str(outside), name)


def _external_storage(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    if not isinstance(node, h5py.Dataset):
        return
    name, shape, kind, held = node.name, node.shape, node.dtype, dict(node.attrs)
    del file[name]
    made = file.create_dataset(name, shape, kind, external=[(str(outside), 0, h5py.h5f.UNLIMITED)])
    made.attrs.update(held)


def _virtual(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    if not isinstance(node, h5py.Dataset):
        return
    name, shape, kind, held = node.name, node.shape, node.dtype, dict(node.attrs)
    layout = h5py.VirtualLayout(shape, kind)
    layout[...] = h5py.VirtualSource(str(outside), name, shape)
    del file[name]
    file.create_virtual_dataset(name, layout).attrs.update(held)


def _cycle(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    file.require_group("/loop")["back"] = file["/"]
    file["/" + rng.choice(["extra", "Data2", "again"])] = file["/loop"]


def _doubled(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    name = rng.choice(["/000009", "/Data/3D/000007", "/reference", "/illumination", "/extra"])
    if name not in file:
        file[name] = node


def _dropped(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    if node.name != "/":
        del file[node.name]


def _named_type(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    name = node.name if node.name != "/" else "/type"
    if name in file:
        del file[name]
    file[name] = h5py.vlen_dtype(np.dtype("f8"))


def _text_array(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    name = node.name if node.name != "/" else "/text"
    if name in file:
        del file[name]
    file.create_dataset(name, data=np.array(["x" * 1000] * 4, dtype=object), dtype=h5py.string_dtype())


def _sibling(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    names = ["..", "../outside.h5", str(outside), "", ".", "a/b", "x\x00y", "n" * 300, Path(file.filename).name, "fifo.wbcdref"]
    if "reference" in file:
        del file["reference"]
    with suppress(ValueError):
        file.attrs["reference_file"] = rng.choice(names)


def _wrong_directions(file: h5py.File, node: Any, rng: random.Random, outside: Path) -> None:
    if "holograms" not in file or file["holograms"].ndim != 3:
        return
    k = Rig(size=224, frames=len(file["holograms"]), electrons=None).k_in()
    way = rng.choice(["scaled", "turned", "mirrored", "one", "nan", "far", "shifted"])
    if way == "scaled":
        k *= rng.choice([0.5, 1.02, 1.2, 1e3])
    elif way == "turned":
        k = k[:, ::-1]
    elif way == "mirrored":
        k = -k
    elif way == "one":
        k[rng.randrange(len(k))] *= -1
    elif way == "shifted":
        k = np.roll(k, 1, axis=0)
    else:
        k[rng.randrange(len(k))] = np.nan if way == "nan" else 1e6
    file.create_dataset("illumination", data=k)


_ATTRIBUTE_WAYS: tuple[Callable[..., None], ...] = (
    _change_attribute,
    _change_attribute,
    _drop_attribute,
    _rename_attribute,
    _refer,
)
_ARRAY_WAYS: tuple[Callable[..., None], ...] = (
    *(_other_type, _other_shape, _bad_values, _scaled, _other_storage, _unwritten, _bomb),
)
_LINK_WAYS: tuple[Callable[..., None], ...] = (
    *(_soft_link, _external_link, _external_storage, _virtual, _cycle, _doubled, _dropped, _named_type, _text_array, _sibling),
    _wrong_directions,
)


# --- mutations of OME-Zarr -----------------------------------------------------------------------

_JSON_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 7, 0.4, 0.5, 10**400, 1e308, [], {}, [[]], [0, 0, 0], [10**9] * 3, [2**40] * 3),
    *("", "x" * 5000, "\ud800", "../..", "..", "0/../..", "/", "|O", "<f8", "float64", "bytes", "meter", "nanometer"),
    *({"name": "pickle"}, {"id": "pickle"}, {"name": "default"}, [{"name": "numcodecs.pickle"}]),
    [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 10**9}}],
)


def mutate_zarr(folder: Path, rng: random.Random, outside: Path) -> str:
    """Spoil the JSON, the members, or the bytes of one file of an OME-Zarr folder."""
    files = sorted(entry for entry in folder.rglob("*") if entry.is_file())
    texts = [entry for entry in files if entry.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup")]
    way = rng.choice(["json", "json", "json", "member", "bytes", "bytes"])
    if way == "json":
        file = rng.choice(texts)
        value = json.loads(file.read_text())
        name = _change_json(value, rng)
        text = json.dumps(value)
        if rng.random() < 0.03:
            name, text = "deep", "[" * 20_000 + "]" * 20_000
        elif rng.random() < 0.03:
            name, text = "endless", text[:-1] + ', "x": "' + "y" * (5 * 2**20) + '"}'
        file.write_text(text)
        return f"zarr.json.{name}"
    if way == "member":
        return f"zarr.{_change_member(folder, rng.choice(files), rng, outside)}"
    file = rng.choice(files)
    kind, data = mutate_bytes(file.read_bytes() or b"\0", rng)
    file.write_bytes(data)
    return f"zarr.{kind}.{'text' if file in texts else 'chunk'}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in members:
        yield value, key
        yield from _places(inner)


def _change_json(value: Any, rng: random.Random) -> str:
    places = list(_places(value))
    if not places:
        return "nothing"
    holder, key = rng.choice(places)
    way = rng.choice(["replace", "replace", "scale", "delete", "double", "wrap"])
    if way == "delete":
        del holder[key]
    elif way == "wrap":
        holder[key] = {"x": [holder[key]]}
    elif way == "double" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif way == "scale" and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * rng.choice([2, 1000, -1, 0.5, 1.1])
    else:
        holder[key] = copy.deepcopy(rng.choice(_JSON_VALUES))
    return way


def _change_member(folder: Path, file: Path, rng: random.Random, outside: Path) -> str:
    way = rng.choice(["absent", "link", "folder", "fifo", "linked folder", "more", "empty"])
    if way == "more":
        (folder / rng.choice(["extra", "0/c.x", ".zgroup", "zarr.json.bak"])).write_bytes(b"{}")
        return way
    if way == "linked folder":
        part = file.parent if file.parent != folder else folder / "0"
        if part.is_dir():
            shutil.rmtree(part)
        part.symlink_to(outside.parent)
        return way
    file.unlink()
    if way == "link":
        file.symlink_to(outside)
    elif way == "folder":
        file.mkdir()
    elif way == "fifo":
        os.mkfifo(file)
    elif way == "empty":
        file.write_bytes(b"")
    return way


# --- mutations of MATLAB's packed elements ----------------------------------------------------------


def mutate_mat5(path: Path, rng: random.Random) -> str:
    """Unpack, change and pack again: a sound stream of wrong or hostile content, which no checksum tells."""
    head, elements = path.read_bytes()[:128], []
    data, at = path.read_bytes(), 128
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        elements.append(zlib.decompress(data[at + 8 : at + 8 + length]))
        at += 8 + length
    kind = rng.choice(
        ["head", "head", "head", "head", "class", "sizes", "length", "cut", "more", "drop", "double", "swap", "bomb", "plain"]
    )
    index = rng.randrange(len(elements))
    content = bytearray(elements[index])
    if kind == "head":
        for _ in range(rng.choice([1, 2, 8])):
            content[rng.randrange(min(len(content), 64))] ^= 1 << rng.randrange(8)
    elif kind == "class":
        content[16] = rng.randrange(20)
    elif kind == "sizes":
        where = 32 + 4 * rng.randrange(3)
        content[where : where + 4] = rng.choice([0, 1, 2, 223, 2**16, 2**31 - 1, 2**31, 2**32 - 1]).to_bytes(4, "little")
    elif kind == "length":
        where = rng.choice([4, 12, 28, 44, 52])
        content[where : where + 4] = rng.choice([0, 3, 8, 2**20, 2**31, 2**32 - 1]).to_bytes(4, "little")
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    elif kind == "more":
        content += rng.randbytes(rng.choice([1, 8, 4096, 200_000]))
    elif kind == "bomb":
        content += bytes(rng.choice([2**20, 2**26]))
    elements[index] = bytes(content)
    if kind == "drop":
        del elements[index]
    elif kind == "double":
        elements.insert(rng.randrange(len(elements)), elements[index])
    elif kind == "swap":
        rng.shuffle(elements)
    packed = [zlib.compress(one, 1) for one in elements]
    parts = [(14, one[8:]) if kind == "plain" else (15, small) for one, small in zip(elements, packed, strict=True)]
    path.write_bytes(head + b"".join(code.to_bytes(4, "little") + len(one).to_bytes(4, "little") + one for code, one in parts))
    return f"mat.{kind}"


# --- mutations of TIFF and of zip files ------------------------------------------------------------

_WHOLE_NUMBERS = (0, 1, 2, 3, 7, 8, 255, 4096, 65_535, 65_536, 2**20, 2**31, 2**32 - 1)


def mutate_tiff(path: Path, rng: random.Random) -> str:
    """Change a tag, the chain of directories, or the description of a little-endian TIFF."""
    raw = bytearray(path.read_bytes())
    places, at = [], struct.unpack_from("<I", raw, 4)[0]
    while at:
        places.append(at)
        (at,) = struct.unpack_from("<I", raw, at + 2 + 12 * struct.unpack_from("<H", raw, at)[0])
    way = rng.choice(["tag", "tag", "tag", "chain", "text", "pages"])
    place = rng.choice([places[0], rng.choice(places)])
    count = struct.unpack_from("<H", raw, place)[0]
    if way == "tag":
        entry = place + 2 + 12 * rng.randrange(count)
        part, size = rng.choice([(0, 2), (2, 2), (4, 4), (8, 4), (8, 4)])
        value = rng.choice([*_WHOLE_NUMBERS, rng.randrange(2**32)]) % 2 ** (8 * size)
        raw[entry + part : entry + part + size] = value.to_bytes(size, "little")
    elif way == "chain":
        target = rng.choice([0, 8, place, places[0], places[-1], len(raw), 2**32 - 2, rng.randrange(len(raw))])
        raw[place + 2 + 12 * count : place + 6 + 12 * count] = struct.pack("<I", target)
    elif way == "pages":  # two directories change places
        first, second = rng.choice(places), rng.choice(places)
        if struct.unpack_from("<H", raw, first) == struct.unpack_from("<H", raw, second):
            a, b = slice(first + 2, first + 2 + 12 * count), slice(second + 2, second + 2 + 12 * count)
            raw[a], raw[b] = raw[b], raw[a]
    else:
        _change_text(raw, rng)
    path.write_bytes(raw)
    return f"tiff.{way}"


def _change_text(raw: bytearray, rng: random.Random) -> None:
    """Other numbers or words in the description, of the same length: nothing else moves."""
    begin = max(raw.find(b"ImageJ="), raw.find(b"<OME"))
    if begin < 0:
        return
    end = raw.find(b"\0", begin)
    found = list(re.finditer(rb"\d+|[A-Za-z]{3,}", raw[begin:end]))
    if not found:
        return
    word = rng.choice(found)
    size = word.end() - word.start()
    other = rng.choice(["9", "0", "1", "x", "\x00", "<", '"', "-", "."]) * size
    raw[begin + word.start() : begin + word.end()] = other.encode()[:size].ljust(size, b" ")


def mutate_zip(path: Path, rng: random.Random, outside: Path) -> str:
    """Spoil what is packed, or the fields of a zip file's directory and headers."""
    if rng.random() < 0.5:
        folder = path.with_name(f"{path.name}.unpacked")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        inner = next((at for at in folder.iterdir() if at.suffix == ".zarr"), folder)
        try:
            kind = mutate_zarr(inner, rng, outside)
            packed(folder, path, method=rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
        finally:
            shutil.rmtree(folder)
        return f"zip.{kind}"
    raw = bytearray(path.read_bytes())
    signature, size = rng.choice([(b"PK\3\4", 30), (b"PK\1\2", 46), (b"PK\1\2", 46), (b"PK\5\6", 22)])
    found = [match.start() for match in re.finditer(re.escape(signature), raw)]
    at = rng.choice(found) + rng.randrange(4, size - 1)
    width = rng.choice([1, 2, 4])
    raw[at : at + width] = (rng.choice([*_WHOLE_NUMBERS, rng.randrange(2**32)]) % 2 ** (8 * width)).to_bytes(width, "little")
    path.write_bytes(raw)
    return f"zip.{signature[2:].hex()}"


def make_case(seed: int, corpus: dict[str, Path], folder: Path) -> tuple[str, str, Path]:
    """The mutated file of ``seed`` in ``folder``: (name of the seed file, kind of mutation, path)."""
    rng = random.Random(seed)
    # Half as often where nothing could tell a change.
    name = rng.choice([*sorted(corpus), *sorted(set(corpus) - {"plain", "imagej", "ome"})])
    source = corpus[name]
    path = folder / f"{'sample' if source.suffix == '.mat' else ''}{seed:08d}{source.suffix}"
    for companion in (BACKGROUND, NOTES):
        if not (folder / companion).exists():
            shutil.copyfile(source.parent / companion, folder / companion)
    outside = folder.parent / "outside.h5"
    if source.is_dir():
        shutil.copytree(source, path)
        return name, mutate_zarr(path, rng, outside), path
    if rng.random() < 0.5:
        kind, data = mutate_bytes(source.read_bytes(), rng)
        path.write_bytes(data)
        return name, kind, path
    shutil.copyfile(source, path)
    if source.suffix == ".mat":
        return name, mutate_mat5(path, rng), path
    if source.suffix == ".tif":
        return name, mutate_tiff(path, rng), path
    if source.suffix == ".ozx":
        return name, mutate_zip(path, rng, outside), path
    try:
        return name, mutate_hdf5(path, rng, outside), path
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, OverflowError):
        # What h5py refuses to write leaves a half-changed file: as good a case as any.
        return name, "hdf5.half", path


def remove_case(path: Path) -> None:
    """The file or folder of a case, whatever it has become."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- the line ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one case. ``verdict``: "same" numbers, "refused" (with the reason), "unnoticed" other ones in a file that
    carries ``unprotected_parts`` from the start (nothing can tell: a ceiling holds them), "changed" ones that are flagged
    (unprotected content), or a fault: "silent", "escape" (a foreign exception), "hang"."""

    verdict: str
    reason: str = ""
    seconds: float = 0.0


FAULTS = ("silent", "escape", "hang")

MOST_UNNOTICED = 0.02
"""Share of all cases that may give other numbers because nothing in their file could have told: 1.3 % in 20,000."""


@dataclass
class Judge:
    """The real stages over one folder, and the truth of each seed file."""

    folder: Path
    corpus: dict[str, Path]
    stages: Stages = field(init=False)
    config: Config = field(init=False)
    unprotected: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder.parent / "outside.h5").write_bytes(next(iter(self.corpus.values())).read_bytes()[:5000])
        bundle = tiny_bundle(self.folder.parent / "bundle")
        overrides = {"watch.dir": self.folder, "limits.isolate": True, **LENIENT}
        settings = cheap_settings(self.folder.parent, bundle, **overrides)
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
        self.config = Config.load(None, {}, plain)
        self.stages = make_stages(self.config)
        self.truth = {name: self._truth(name, path) for name, path in self.corpus.items()}

    def close(self) -> None:
        """End the reader processes."""
        self.stages.close()

    def _truth(self, name: str, source: Path) -> tuple[str, list[float]]:
        path = self.folder / f"truth-{source.name}"
        for companion in (BACKGROUND, NOTES):
            shutil.copyfile(source.parent / companion, self.folder / companion)
        shutil.copytree(source, path) if source.is_dir() else shutil.copyfile(source, path)
        ticket, payload = self.stages.read(self.stages.identify(path))
        known, payload = known_by(payload)
        outcome = self._processed(ticket, payload)
        volumes = volumes_of(outcome)
        if volumes and unprotected(outcome):
            self.unprotected.add(name)
        if not volumes:
            raise ValueError(f"the seed file {name} is not measured: {outcome}")
        remove_case(path)
        return known, volumes

    def _processed(self, ticket: Acquisition, payload: Payload) -> Outcome:
        stages = replace(self.stages, read=lambda _: (ticket, payload))
        return process(ticket, stages, self.config.recipe)

    def __call__(self, name: str, path: Path) -> Found:
        """Take the file the whole way; never raises. What takes too long is tried again: a busy machine is no hang."""
        found = self._timed(name, path)
        return self._timed(name, path) if found.verdict == "hang" else found

    def _timed(self, name: str, path: Path) -> Found:
        begin = time.monotonic()
        try:
            verdict, reason = self._judged(name, path)
        except Exception as error:  # noqa: BLE001 - this is what the fuzz looks for
            verdict, reason = "escape", f"{type(error).__name__}: {str(error)[:300]}"
        seconds = time.monotonic() - begin
        return Found("hang", reason, seconds) if seconds > HANG_S else Found(verdict, reason, seconds)

    def _judged(self, name: str, path: Path) -> tuple[str, str]:
        try:
            ticket, payload = self.stages.read(self.stages.identify(path))
            known, payload = known_by(payload)
        except WbcdError as error:
            return "refused", error.code
        truth, volumes = self.truth[name]
        if known == truth:
            return "same", ""
        outcome = self._processed(ticket, payload)
        if outcome.kind == "set_aside":
            if outcome.error.code == "unforeseen":
                return "escape", outcome.error.message[:300]
            return "refused", outcome.error.code
        if outcome.kind == "rejected":
            return "refused", outcome.reason
        found = volumes_of(outcome)
        if len(found) == len(volumes) and all(abs(a - b) <= SAME_VOLUME * b for a, b in zip(found, volumes, strict=True)):
            return "same", "other values, same volume"
        verdict = "silent" if not unprotected(outcome) else "unnoticed" if name in self.unprotected else "changed"
        return verdict, f"{found} for {volumes}"


def unprotected(outcome: Any) -> bool:
    """True when the measured file is flagged for having parts that nothing protects."""
    return any(check.code == "unprotected_parts" for check in outcome.verdict.checks)


def volumes_of(outcome: Outcome) -> list[float]:
    """Volumes in fL of the cells that count."""
    cells = outcome.cells if outcome.kind == "measured" else ()
    return sorted(cell.morphology.volume_fl for cell in cells if cell.verdict.accepted)


def known_by(payload: Payload) -> tuple[str, Payload]:
    """A digest of all that numbers are made from, and the payload to make them from. Same digest, same numbers."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(payload, HologramStack):
        for values in (payload.holograms, payload.reference, payload.illumination_rad_um):
            digest.update(b"-" if values is None else repr(values.shape).encode() + np.ascontiguousarray(values).tobytes())
        digest.update(repr((payload.normal_frame, payload.optics)).encode())
        return digest.hexdigest(), payload
    volumes: list[Tomogram] = list(payload)
    for volume in volumes:
        digest.update(repr((volume.ri.shape, volume.voxel_um, volume.medium_ri, volume.origin_um)).encode())
        digest.update(np.ascontiguousarray(volume.ri).tobytes())
        digest.update(b"-" if volume.fill is None else volume.fill.tobytes())
    return digest.hexdigest(), RiSeries(len(volumes), iter(volumes))
