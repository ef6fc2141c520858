"""RI volumes as laboratories' own programs write them: TIFF of several kinds, OME-Zarr in layouts, zip files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

MEDIUM, CELL_RI, VOXEL_UM = 1.337, 1.372, (0.4, 0.16, 0.16)
SHAPE = (48, 112, 120)
SEMI_AXES_UM = (3.4, 4.0, 3.7)
VOLUME_FL = 4 / 3 * np.pi * float(np.prod(SEMI_AXES_UM))
DRY_MASS_PG = VOLUME_FL * (CELL_RI - MEDIUM) / 0.2
OME_NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def cell_volume(
    shape: tuple[int, int, int] = SHAPE, *, centre: tuple[float, float, float] | None = None
) -> NDArray[np.float32]:
    """One ellipsoid of known volume, its surface smooth over a few nanometres; RI [z, y, x]."""
    centre = centre or (shape[0] / 2, shape[1] / 2, shape[2] / 2)
    squares = [
        (((np.arange(size) - at) * pitch) / semi) ** 2
        for size, at, pitch, semi in zip(shape, centre, VOXEL_UM, SEMI_AXES_UM, strict=True)
    ]
    r = np.sqrt(squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :])
    with np.errstate(over="ignore"):
        return (MEDIUM + (CELL_RI - MEDIUM) / (1 + np.exp((r - 1) * 3.7 / 0.05))).astype(np.float32)


def x10000(ri: NDArray[np.float32]) -> NDArray[np.uint16]:
    """As the vendor writes it."""
    return np.round(ri * 1e4).astype(np.uint16)


# --- TIFF ------------------------------------------------------------------------------------------


def imagej_tiff(path: Path, ri: NDArray[Any], **options: Any) -> Path:
    """An ImageJ hyperstack [z, y, x] or [t, z, y, x] that states its pitch."""
    z, _, x = VOXEL_UM
    metadata = {"spacing": z, "unit": "um", "axes": "ZYX" if ri.ndim == 3 else "TZYX", **options.pop("metadata", {})}
    tifffile.imwrite(path, ri, imagej=True, **{"resolution": (1 / x, 1 / x), "metadata": metadata, **options})
    return path


def ome_tiff(path: Path, ri: NDArray[Any], **options: Any) -> Path:
    """An OME-TIFF as tifffile writes it."""
    z, y, x = VOXEL_UM
    metadata = {"axes": "ZYX" if ri.ndim == 3 else "TZYX", "PhysicalSizeX": x, "PhysicalSizeY": y, "PhysicalSizeZ": z}
    tifffile.imwrite(path, ri, ome=True, **{"metadata": {**metadata, **options.pop("metadata", {})}, **options})
    return path


def pixels_xml(shape: tuple[int, ...], inner: str = "<TiffData/>", **attributes: Any) -> str:
    """The Pixels element of OME-XML for [z, y, x] or [t, z, y, x]."""
    t, (z, y, x) = (1, shape) if len(shape) == 3 else (shape[0], shape[1:])
    sizes = {"SizeX": x, "SizeY": y, "SizeZ": z, "SizeT": t, "SizeC": 1, "DimensionOrder": "XYZCT", "Type": "uint16"}
    pitch = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", VOXEL_UM, strict=True)}
    text = " ".join(f'{name}="{value}"' for name, value in {**sizes, **pitch, **attributes}.items() if value is not None)
    return f'<Pixels ID="Pixels:0" {text}><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{inner}</Pixels>'


def ome_xml(pixels: str, *, root: str = "", before: str = "", after: str = "") -> str:
    """A whole OME-XML description."""
    image = f'<Image ID="Image:0" Name="RI">{pixels}</Image>'
    return f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{OME_NAMESPACE}"{root}>{before}{image}{after}</OME>'


def described_tiff(path: Path, ri: NDArray[Any], text: str, **options: Any) -> Path:
    """Pages with a description of one's own on the first of them, as Bio-Formats writes them."""
    tifffile.imwrite(path, ri, description=text.encode(), metadata=None, photometric="minisblack", ome=False, **options)
    return path


def retag(path: Path, **values: int) -> Path:
    """Set tags of every page to other numbers, the pixels as they are: what tifffile without its codecs cannot write."""
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        places = [(page.tags[name].valueoffset, value) for page in file.pages for name, value in values.items()]
    for at, value in places:
        raw[at : at + 2] = value.to_bytes(2, "little")
    path.write_bytes(raw)
    return path


# --- OME-Zarr --------------------------------------------------------------------------------------


def multiscales(
    axes: str = "zyx", *, unit: Any = "micrometer", scale: tuple[float, ...] = VOXEL_UM, **more: Any
) -> dict[str, Any]:
    """One image of one level, ``0``."""
    kinds = {"t": "time", "c": "channel"}
    made = [{"name": name, "type": kinds.get(name, "space")} | ({"unit": unit} if name in "zyx" else {}) for name in axes]
    full = [1.0] * (len(axes) - 3) + list(scale)
    return {"axes": made, "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": full}]}], **more}


def zarr_image(
    path: Path, ri: NDArray[Any], image: dict[str, Any] | None = None, *, version: str = "0.5", **options: Any
) -> Path:
    """An OME-Zarr image; ``options`` go to the array (chunks, fill_value, config ...)."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    array_in(group, ri, **options)
    image = image or multiscales("zyx" if ri.ndim == 3 else "tzyx")
    if version == "0.4":
        group.attrs["multiscales"] = [{"version": "0.4", **image}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [image]}
    return path


def array_in(group: Any, ri: NDArray[Any], **options: Any) -> None:
    """The array ``0`` of a group."""
    options = {"chunks": (16, 56, 60) if ri.ndim == 3 else (1, 16, 56, 60), **options}
    array = group.create_array("0", shape=ri.shape, dtype=ri.dtype, **options)
    array[...] = ri


def leaving_out(fill: float) -> dict[str, Any]:
    """Options for a writer that leaves out chunks of nothing but ``fill``: zarr-python's default."""
    return {"fill_value": fill, "config": {"write_empty_chunks": False}}


def bioformats2raw(path: Path, images: list[NDArray[Any]], *, listed: bool = True, version: str = "0.4") -> Path:
    """The layout of bioformats2raw: numbered images below a root that says so."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    about = group.create_group("OME")
    if version == "0.4":
        group.attrs["bioformats2raw.layout"] = 3
        about.attrs.update({"series": [str(n) for n in range(len(images))]} if listed else {})
    else:
        group.attrs["ome"] = {"version": version, "bioformats2raw.layout": 3}
        about.attrs["ome"] = {"version": version, **({"series": [str(n) for n in range(len(images))]} if listed else {})}
    for number, ri in enumerate(images):
        inner = group.create_group(str(number))
        array_in(inner, ri[None, None], chunks=(1, 1, 1, 56, 60))
        image = multiscales("tczyx", name=f"image {number}")
        if version == "0.4":
            inner.attrs["multiscales"] = [{"version": "0.4", **image}]
        else:
            inner.attrs["ome"] = {"version": version, "multiscales": [image]}
    (path / "OME" / "METADATA.ome.xml").write_text("<OME/>")
    return path


# --- zip -------------------------------------------------------------------------------------------


def packed(
    folder: Path,
    target: Path,
    *,
    top: str = "",
    method: int = zipfile.ZIP_STORED,
    change: Callable[[str, bytes], tuple[str, bytes] | None] = lambda name, data: (name, data),
    more: tuple[tuple[str | zipfile.ZipInfo, bytes], ...] = (),
    comment: bytes = b"",
) -> Path:
    """The folder as a zip file; ``change`` renames, alters or (None) leaves out a member; ``more`` is put at the end."""
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.comment = comment
        for file in sorted(folder.rglob("*"), key=lambda at: (at.name != "zarr.json", at)):
            if file.is_file() and (kept := change(file.relative_to(folder).as_posix(), file.read_bytes())) is not None:
                archive.writestr(top + kept[0], kept[1])
        for name, data in more:
            archive.writestr(name, data)
    return target


def write_notes(path: Path, **values: Any) -> Path:
    """A JSON file beside an acquisition."""
    path.write_text(json.dumps(values))
    return path
