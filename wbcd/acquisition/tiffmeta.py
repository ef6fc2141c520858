"""What the description of a TIFF file says of its pages: OME-XML, ImageJ's lines, or tifffile's JSON. Pure rules.

Nothing that a description names is ever opened: an OME-TIFF whose planes lie in other files is refused by their names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from wbcd.acquisition.limits import VOXEL_UM
from wbcd.acquisition.units import micrometres_per
from wbcd.errors import BadField, CorruptContent, Forbidden, Incomplete, TooLarge

MAX_DESCRIPTION = 4 * 2**20
MAX_PLANES = 32_768
PLAIN, IMAGEJ, OME, TIFFFILE = "no description", "ImageJ", "OME-XML", "tifffile's JSON"
_RESOLUTION_UNITS_UM = {2: 25_400.0, 3: 10_000.0}
_SAVE_AGAIN = "Save it again with a description that fits its pages, or as OME-TIFF."
_ORDERS = ("XYZCT", "XYZTC", "XYCTZ", "XYCZT", "XYTCZ", "XYTZC")

Pitch = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, slots=True)
class Resolution:
    """The tags XResolution, YResolution (pixels a unit; None where absent) and ResolutionUnit (2: inch, 3: cm, else none)."""

    x: float | None = None
    y: float | None = None
    unit: int = 1


@dataclass(frozen=True, slots=True)
class Described:
    """``planes`` along z (None: as many as there are pages), ``pages``: the page of each, time by time (None: in sequence).

    ``pitch_um`` (z, y, x): None where the file does not say.
    """

    kind: str
    planes: int | None = None
    time_points: int = 1
    pages: tuple[int, ...] | None = None
    pitch_um: Pitch = (None, None, None)
    acquired_at: str | None = None


def described(text: str, resolution: Resolution, where: str) -> Described:
    """Interpret the description of the first page; ``where`` names the file in messages.

    Raises BadField (channels, several images, nonsense), Forbidden (planes in other files, entities), Incomplete (planes
    without a page), CorruptContent, TooLarge.
    """
    if len(text) > MAX_DESCRIPTION:
        raise TooLarge(f"{where}: its description holds {len(text)} characters; the limit is {MAX_DESCRIPTION}.", action="")
    plain = text.strip().lstrip("\ufeff")
    if re.match(r"<\?xml|<!|<(\w+:)?OME\b", plain) and re.search(r"<(\w+:)?OME\b", plain):
        return _of_ome(plain, where)
    if plain.startswith("ImageJ="):
        return _of_imagej(plain, resolution, where)
    if plain.startswith("{"):
        return _of_json(plain, resolution, where)
    return Described(PLAIN)


# --- ImageJ ----------------------------------------------------------------------------------------


def _of_imagej(text: str, resolution: Resolution, where: str) -> Described:
    entries = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    entries = {key.strip(): value.strip() for key, value in entries.items()}
    images = _count(entries, "images", 1, where)
    channels, frames = _count(entries, "channels", 1, where), _count(entries, "frames", 1, where)
    slices = _count(entries, "slices", max(1, images // (channels * frames)), where)
    if channels != 1:
        raise BadField(
            f"{where} has {channels} channels and {slices} slices by its ImageJ description; RI is one channel.",
            action="If they are planes along z, say so in ImageJ (Image > Hyperstacks > Re-order) and save it again.",
        )
    if slices * frames != images and "images" in entries:
        raise BadField(
            f"{where}: ImageJ's `images` is {images}; {slices} slices of {frames} frames are {slices * frames}.",
            action=_SAVE_AGAIN,
        )
    if slices == 1 and frames > 1:
        raise BadField(
            f"{where} has {frames} frames of 1 slice by its ImageJ description; a volume has planes along z.",
            action="If they are planes along z, say so in ImageJ (Image > Hyperstacks > Re-order) and save it again.",
        )
    return Described(IMAGEJ, slices, frames, None, _pitch(entries, resolution, where))


def _count(entries: Mapping[str, Any], key: str, default: int, where: str) -> int:
    text = str(entries.get(key, default))
    if not (re.fullmatch(r"\d{1,9}", text) and 1 <= int(text) <= MAX_PLANES):
        raise BadField(
            f"{where}: `{key}` of its description is {text[:30]!r}; allowed is 1 to {MAX_PLANES}.", action=_SAVE_AGAIN
        )
    return int(text)


def _pitch(entries: Mapping[str, Any], resolution: Resolution, where: str) -> Pitch:
    """ImageJ counts the resolution in its own unit, the vendor and the standard in the tag's: the possible one is taken."""
    per = micrometres_per(str(entries.get("unit", "")))
    spacing = _number(entries.get("spacing"))
    z = None if spacing is None or per is None else abs(spacing) * per
    return z, _lateral(resolution.y, per, resolution.unit, where), _lateral(resolution.x, per, resolution.unit, where)


def _lateral(pixels: float | None, per: float | None, tag: int, where: str) -> float | None:
    if pixels is None or not (0 < pixels < math.inf) or pixels == 1.0:
        return None  # 1 is what programs write where nobody has set a pitch
    units = [unit for unit in (per, _RESOLUTION_UNITS_UM.get(tag)) if unit is not None]
    found = [unit / pixels for unit in dict.fromkeys(units)]
    possible = [pitch for pitch in found if VOXEL_UM[0] <= pitch <= VOXEL_UM[1]]
    if len(possible) > 1 and max(possible) > 1.001 * min(possible):
        raise BadField(
            f"{where}: its resolution can be read as {possible[0]:g} and as {possible[1]:g} um a pixel.", action=_SAVE_AGAIN
        )
    # What can only be a wrong unit is left to the caller, whose limits name it.
    return possible[0] if possible else found[0] if per is not None else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number != 0 else None


# --- tifffile's JSON -------------------------------------------------------------------------------


def _of_json(text: str, resolution: Resolution, where: str) -> Described:
    """``{"shape": [60, 140, 140], "axes": "ZYX", "spacing": 0.4, "unit": "um"}``; other JSON says nothing of the pages."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return Described(PLAIN)
    shape = found.get("shape") if isinstance(found, dict) else None
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n <= 2**31 for n in shape):
        return Described(PLAIN)
    sizes = [n for n in shape[:-2] if n != 1]
    axes = str(found.get("axes", "")).upper()
    leading = "".join(axis for axis, n in zip(axes[:-2], shape[:-2], strict=False) if n != 1)
    if leading not in ("", "Z", "TZ", "Q", "I") or len(sizes) > max(1, len(leading)):
        raise BadField(
            f"{where} has shape {shape} by its description, axes {axes[:20] or 'unnamed'}; allowed are ZYX and TZYX.",
            action="Save it with its axes named, or as OME-TIFF.",
        )
    if math.prod(sizes) > MAX_PLANES:
        raise TooLarge(f"{where} has {math.prod(sizes)} planes; the limit is {MAX_PLANES}.", action="")
    times, planes = (sizes[0], sizes[1]) if len(sizes) == 2 else (1, sizes[0] if sizes else 1)
    return Described(TIFFFILE, planes, times, None, _pitch(found, resolution, where))


# --- OME-XML ---------------------------------------------------------------------------------------


def _of_ome(text: str, where: str) -> Described:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise Forbidden(f"{where}: its OME-XML declares a document type or entities.", action="Export it as plain OME-TIFF.")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise CorruptContent(f"{where}: its OME-XML makes no sense: {str(error)[:100]}.") from error
    _demand_own_planes(root, where)
    images = [image for image in _children(root, "Image") if _children(image, "Pixels")]
    if len(images) != 1:
        names = ", ".join(repr(str(image.get("Name") or image.get("ID"))[:60]) for image in images[:8]) or "none"
        raise BadField(
            f"{where} holds {len(images)} images by its OME-XML ({names}); one is read.",
            action="Export the RI image alone, as one OME-TIFF file for each image.",
        )
    pixels = _children(images[0], "Pixels")[0]
    sizes = [_count(pixels.attrib, f"Size{axis}", 1, where) for axis in "CZT"]
    if sizes[0] != 1:
        planes = f"{sizes[1]} plane{'s' * (sizes[1] != 1)}"
        raise BadField(
            f"{where} has {sizes[0]} channels of {planes} by its OME-XML; RI is one.",
            action="Export the RI channel alone."
            if sizes[1] > 1
            else "If they are planes along z, write the file again with its axes named (tifffile: metadata={'axes': 'ZYX'}).",
        )
    if sizes[1] * sizes[2] > MAX_PLANES:
        raise TooLarge(f"{where} has {sizes[1] * sizes[2]} planes; the limit is {MAX_PLANES}.", action="")
    pages = _ome_pages(pixels, sizes[1], sizes[2], where)
    dates = _children(images[0], "AcquisitionDate")
    acquired_at = (dates[0].text or "").strip() or None if dates else None
    pitch = (_ome_length(pixels, "Z"), _ome_length(pixels, "Y"), _ome_length(pixels, "X"))
    return Described(OME, sizes[1], sizes[2], pages, pitch, acquired_at)


def _children(node: Any, name: str) -> list[Any]:
    """Child elements of that name in whatever namespace: the schema's has its year in it."""
    return [child for child in node if isinstance(child.tag, str) and child.tag.rpartition("}")[2] == name]


def _demand_own_planes(root: Any, where: str) -> None:
    binary_only = _children(root, "BinaryOnly")
    if binary_only:
        named = str(binary_only[0].get("MetadataFile"))[:100]
        raise Forbidden(
            f"{where}: its OME-XML lies in another file, {named!r}, which is not opened.",
            action="Export the image as one OME-TIFF file, its metadata in it.",
        )
    own, seen = root.get("UUID"), set()
    for node in root.iter():
        if isinstance(node.tag, str) and node.tag.rpartition("}")[2] == "UUID":
            seen.add(((node.text or "").strip(), str(node.get("FileName") or "")))
    # A file that was renamed since keeps its identifier; without one of its own a second name means a second file.
    others = sorted(name or uuid for uuid, name in seen if own is None or uuid != own.strip())
    if others and (own is not None or len(seen) > 1):
        raise Forbidden(
            f"{where}: by its OME-XML {len(others)} other files hold planes of it, {others[0][:100]!r} first; none is opened.",
            action="Export the image as one OME-TIFF file.",
        )


def _ome_pages(pixels: Any, planes: int, times: int, where: str) -> tuple[int, ...]:
    """The page of each plane, time by time, by the TiffData elements (OME model: defaults of IFD and PlaneCount)."""
    order = str(pixels.get("DimensionOrder", "XYZCT"))
    if order not in _ORDERS:
        raise BadField(
            f"{where}: `DimensionOrder` of its OME-XML is {order[:20]!r}; allowed are {', '.join(_ORDERS)}.", action=_SAVE_AGAIN
        )
    z_first = order.index("Z") < order.index("T")
    count = planes * times
    found = [-1] * count
    for block in _children(pixels, "TiffData") or [ElementTree.Element("TiffData")]:
        z, t, page = (_index(block, name, where) for name in ("FirstZ", "FirstT", "IFD"))
        many = 1 if block.get("IFD") is not None else count
        many = _count(block.attrib, "PlaneCount", many, where) if block.get("PlaneCount") != "0" else 0
        start = z + planes * t if z_first else t + times * z
        if z >= planes or t >= times or (start + many > count and block.get("PlaneCount") is not None):
            raise BadField(
                f"{where}: a TiffData element names plane z {z}, t {t} and {many} more of {planes} x {times}.",
                action=_SAVE_AGAIN,
            )
        for step in range(min(many, count - start)):
            at = start + step
            at_z, at_t = (at % planes, at // planes) if z_first else (at // times, at % times)
            found[at_t * planes + at_z] = page + step
    return _once_each(found, planes, where)


def _once_each(found: Sequence[int], planes: int, where: str) -> tuple[int, ...]:
    if -1 in found:
        t, z = divmod(found.index(-1), planes)
        raise Incomplete(f"{where}: its OME-XML names no page for plane z {z}, t {t}.")
    if len(set(found)) != len(found):
        raise BadField(f"{where}: its OME-XML names one page for several planes.", action=_SAVE_AGAIN)
    return tuple(found)


def _index(block: Any, name: str, where: str) -> int:
    text = str(block.get(name, "0"))
    if not re.fullmatch(r"\d{1,9}", text):
        raise BadField(
            f"{where}: `{name}` of its OME-XML is {text[:30]!r}; allowed is a whole number from 0.", action=_SAVE_AGAIN
        )
    return int(text)


def _ome_length(pixels: Any, axis: str) -> float | None:
    size = _number(pixels.get(f"PhysicalSize{axis}"))
    per = micrometres_per(str(pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")))
    return None if size is None or per is None else abs(size) * per
