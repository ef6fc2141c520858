"""Pictures for people: a cell in three planes, and one typical cell of each class with its numbers.

Drawn by pillow with its own font, so that the daemon needs no plotting library and no font on the machine. That font has
neither a Greek mu nor a superscript: units are written um and um2, as in the names of the columns.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wbcd.errors import not_written
from wbcd.names import shown
from wbcd.records import Cell

#: Refractive indices shown as the darkest and the brightest colour, the same in every picture so that they compare.
RI_WINDOW = (1.335, 1.400)
SCALE_BAR_UM = 5.0
RESEARCH_ONLY = "Research use only. Not for diagnosis."
SIMULATED = "Simulated cells."
SIMULATED_MODEL = "Model trained on simulated cells."

#: Dark violet to pale yellow, evenly bright steps (the magma map of matplotlib, CC0, at ten places).
COLOURS = ("000004", "180f3d", "440f76", "721f81", "9e2f7f", "cd4071", "f1605d", "fd9668", "feca8d", "fcfdbf")
#: Palette: the first half are RI colours, the second half greys for lettering (whose edges would take RI colours else).
LEVELS = 128

#: What is printed beside a cell: column, name, unit, decimals.
VALUES = (
    ("volume_fl", "Volume", "fL", 1),
    ("surface_area_um2", "Surface area", "um2", 1),
    ("sphericity", "Sphericity", "", 3),
    ("dry_mass_pg", "Dry mass", "pg", 1),
    ("protein_density_g_dl", "Protein density", "g/dL", 2),
    ("mean_ri", "Mean RI", "", 4),
)

Grey = NDArray[np.uint8]


def thumbnail_png(cell: Cell) -> bytes:
    """PNG of the cell's maximum projections: xy, to the right of it yz, below it xz, and in the corner the RI scale.

    8-bit palette, about 300 x 300 pixels for the default crop and 10 to 25 kB. One pixel is one lateral voxel; along z
    the middle of the crop is shown, as much of it as the crop is wide.
    """
    index = _montage(cell)
    lettering = _lettering(cell, index.shape)
    drawn = lettering > 0
    index[drawn] = LEVELS + lettering[drawn] // 2
    image = Image.fromarray(index)
    image.putpalette(_palette())
    return _png(image)


def _montage(cell: Cell) -> Grey:
    """Palette indices uint8 [y, x] of the three projections and the colour scale."""
    nz, ny, nx = cell.ri.shape
    depth = min(nz, round(max(ny, nx) * cell.voxel_um[1] / cell.voxel_um[0]))
    ri = cell.ri[(nz - depth) // 2 : (nz - depth) // 2 + depth]
    tall = round(depth * cell.voxel_um[0] / cell.voxel_um[1])
    gap = _gap(ny)
    canvas = np.zeros((ny + gap + tall, nx + gap + tall), dtype=np.uint8)
    canvas[:ny, :nx] = _levels(ri.max(axis=0))
    canvas[:ny, nx + gap :] = _resized(_levels(ri.max(axis=2)).T, (tall, ny))
    canvas[ny + gap :, :nx] = _resized(_levels(ri.max(axis=1)), (nx, tall))
    top, bottom, left, right = _scale_box(cell, canvas.shape)
    canvas[top:bottom, left:right] = np.linspace(LEVELS - 1, 0, bottom - top).astype(np.uint8)[:, None]
    return canvas


def _gap(ny: int) -> int:
    return max(2, ny // 38)


def _scale_box(cell: Cell, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Where the colour scale lies: top, bottom, left, right, in the corner that no projection uses."""
    _, ny, nx = cell.ri.shape
    gap = _gap(ny)
    height, width = shape[0] - ny - gap, shape[1] - nx - gap
    top, left = ny + gap + round(0.14 * height), nx + gap + round(0.26 * width)
    return top, top + round(0.68 * height), left, left + max(2, round(0.08 * width))


def _levels(ri: NDArray[np.float32]) -> Grey:
    """RI to palette indices 0..LEVELS-1; what is no number is dark."""
    low, high = RI_WINDOW
    share = np.nan_to_num((ri - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    return np.asarray(np.clip(share, 0.0, 1.0) * (LEVELS - 1) + 0.5, dtype=np.uint8)


def _resized(levels: Grey, size: tuple[int, int]) -> Grey:
    """Levels at another (width, height): z is coarser than x and y, and pixels are square."""
    if levels.shape == (size[1], size[0]):
        return levels
    image = Image.fromarray(np.ascontiguousarray(levels))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)).clip(0, LEVELS - 1).astype(np.uint8)


def _lettering(cell: Cell, shape: tuple[int, ...]) -> Grey:
    """White lettering on black, uint8 [y, x]: the planes' names, the scale bar, the RI scale's values."""
    _, ny, nx = cell.ri.shape
    gap, size = _gap(ny), max(8, round(0.075 * ny))
    image = Image.new("L", (shape[1], shape[0]))
    draw = ImageDraw.Draw(image)
    for name, at in (("xy", (0, 0)), ("yz", (nx + gap, 0)), ("xz", (0, ny + gap))):
        draw.text((at[0] + size // 2, at[1] + size // 3), name, fill=190, font=_font(size))
    length = round(SCALE_BAR_UM / cell.voxel_um[2])
    left, below = nx - length - size // 2, ny - size // 2
    draw.rectangle((left, below - max(1, ny // 75), left + length - 1, below), fill=255)
    draw.text((left + length / 2, below - ny // 40), f"{SCALE_BAR_UM:g} um", fill=255, font=_font(size), anchor="mb")
    _label_scale(draw, _scale_box(cell, shape), size)
    return np.asarray(image)


def _label_scale(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], size: int) -> None:
    top, bottom, _, right = box
    low, high = RI_WINDOW
    for value in (1.34, 1.36, 1.38, 1.40):
        y = bottom - (value - low) / (high - low) * (bottom - top)
        draw.line((right + 1, y, right + size // 3, y), fill=190)
        draw.text((right + size // 2 + 2, y), f"{value:.2f}", fill=220, font=_font(size), anchor="lm")
    draw.text((box[2], bottom + size), "RI, maximum", fill=190, font=_font(size), anchor="lm")


@lru_cache(maxsize=1)
def _palette() -> bytes:
    """RGB of the 256 palette entries."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in COLOURS], dtype=float)
    place = np.linspace(0, len(stops) - 1, LEVELS)
    ramp = np.stack([np.interp(place, np.arange(len(stops)), stops[:, channel]) for channel in range(3)], axis=1)
    greys = np.repeat(np.linspace(0, 255, 256 - LEVELS)[:, None], 3, axis=1)
    return bytes(np.concatenate([ramp, greys]).round().astype(np.uint8).tobytes())


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def labelled_picture(png: bytes, path: Path, *, cell_id: int, sample: str, said: str) -> Path:
    """Write a stored thumbnail with the cell's id below it, which `wbcd review` wants, its sample and what it was counted as.

    Bytes that are no picture give a frame with the words alone. Raises StoreError when ``path`` cannot be written.
    """
    try:
        with Image.open(io.BytesIO(png)) as picture:
            colours = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError):  # pillow's words for bytes that are no PNG
        colours = Image.new("RGB", (300, 300), CARD)
    width = max(colours.width, 300)
    sheet = Image.new("RGB", (width, colours.height + 44), BACKGROUND)
    sheet.paste(colours, ((width - colours.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    draw.text((8, colours.height + 6), f"cell id {cell_id}", fill=INK, font=_font(16))
    draw.text((width - 8, colours.height + 8), _drawn(said, 22), fill=ACCENT, font=_font(14), anchor="ra")
    draw.text((8, colours.height + 26), f"sample {_drawn(sample, 36)}", fill=MUTED, font=_font(13))
    _write(path, _png(sheet))
    return path


# --- representative cells ----------------------------------------------------------------------

BACKGROUND, CARD, INK, MUTED, ACCENT = "#0b0a12", "#15131f", "#f4f1ea", "#9a95a8", "#fd9668"
CARD_WIDTH, PICTURE, MARGIN, LINE = 400, 368, 16, 27
COLUMNS = 4


@dataclass(frozen=True, slots=True)
class _Typical:
    """The cell shown for a class, and what it stands for."""

    label: str
    row: Mapping[str, Any]
    medians: Mapping[str, float]
    count: int


def representative_cells(
    rows: Iterable[Mapping[str, Any]], path: Path, *, simulated: bool = False, simulated_model: bool = False
) -> Path:
    """Write a PNG that shows, for each class, the cell nearest to the class's medians, with the six values beside them.

    ``rows``: one mapping a cell with the columns of the database: ``label``, ``probability``, ``thumbnail_png`` and the six
    parameters; ``cell_id``, ``sample``, ``number``, ``counted_as`` where known. Rows without a label or a thumbnail, counted as
    something else, or with a value that is not finite, are passed over. ``simulated``, ``simulated_model``: say in the
    picture that the cells are, or that the model learnt from such.

    Raises StoreError (NoSpace on a full disk) when ``path`` cannot be written.
    """
    said = [text for text, holds in ((SIMULATED, simulated), (SIMULATED_MODEL, simulated_model)) if holds]
    image = _sheet(typical_rows(rows), " ".join(said))
    _write(path, _png(image))
    return path


def typical_rows(rows: Iterable[Mapping[str, Any]]) -> list[_Typical]:
    """The cell nearest to the medians of each label, labels in alphabetical order.

    Distance: the six values, each over its median absolute deviation within the class, so that none outweighs another.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        label = row.get("label")
        counted = row.get("counted_as", label) == label
        if label and counted and row.get("thumbnail_png") and all(_finite(row.get(name)) for name, *_ in VALUES):
            groups.setdefault(str(label), []).append(row)
    return [_typical(label, groups[label]) for label in sorted(groups)]


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _typical(label: str, rows: Sequence[Mapping[str, Any]]) -> _Typical:
    table = np.array([[float(row[name]) for name, *_ in VALUES] for row in rows])
    medians = np.median(table, axis=0)
    spread = np.median(np.abs(table - medians), axis=0)
    distance = (((table - medians) / np.where(spread > 0, spread, 1.0)) ** 2).sum(axis=1)
    named = {name: float(median) for (name, *_), median in zip(VALUES, medians, strict=True)}
    return _Typical(label, rows[int(distance.argmin())], named, len(rows))


def _sheet(shown: Sequence[_Typical], caution: str) -> Image.Image:
    columns = max(1, min(COLUMNS, len(shown)))
    lines = max(1, math.ceil(len(shown) / columns))
    height = _card_height()
    width = max(columns * (CARD_WIDTH + MARGIN) + MARGIN, 2 * (CARD_WIDTH + MARGIN))
    sheet = Image.new("RGB", (width, 78 + lines * (height + MARGIN) + 44), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN + 4, 20), "Representative cells", fill=INK, font=_font(28))
    draw.text((MARGIN + 4, 54), "the cell nearest to its class's medians", fill=MUTED, font=_font(15))
    draw.text((width - MARGIN - 4, 24), caution, fill=ACCENT, font=_font(17), anchor="ra")
    draw.text((width - MARGIN - 4, 52), RESEARCH_ONLY, fill=ACCENT, font=_font(17), anchor="ra")
    if not shown:
        draw.text((width / 2, 78 + height / 2), "No classified cells yet.", fill=MUTED, font=_font(20), anchor="mm")
    for number, typical in enumerate(shown):
        line, column = divmod(number, columns)
        _card(sheet, draw, typical, MARGIN + column * (CARD_WIDTH + MARGIN), 84 + line * (height + MARGIN))
    note = "Maximum projections of the refractive index in three planes; the same colours in each."
    draw.text((MARGIN + 4, sheet.height - 26), note, fill=MUTED, font=_font(14), anchor="lm")
    return sheet


def _card_height() -> int:
    return 74 + PICTURE + 16 + LINE * (len(VALUES) + 1) + 14


def _card(sheet: Image.Image, draw: ImageDraw.ImageDraw, typical: _Typical, left: int, top: int) -> None:
    draw.rounded_rectangle((left, top, left + CARD_WIDTH, top + _card_height()), 10, fill=CARD)
    inner, right = left + MARGIN, left + CARD_WIDTH - MARGIN
    draw.text((inner, top + 14), typical.label, fill=INK, font=_font(24))
    probability = typical.row.get("probability")
    if _finite(probability):
        draw.text((right, top + 18), f"p = {_probability(float(str(probability)))}", fill=ACCENT, font=_font(18), anchor="ra")
    draw.text((inner, top + 46), _source(typical), fill=MUTED, font=_font(14))
    _paste(sheet, typical.row["thumbnail_png"], inner, top + 74)
    _table(draw, typical, inner, right, top + 74 + PICTURE + 16)


def _probability(value: float) -> str:
    """Two decimals, but never rounded up to certainty."""
    return f"{min(value, 0.99):.2f}" if value < 1.0 else "1.00"


def _source(typical: _Typical) -> str:
    sample, number, cell_id = (typical.row.get(name) for name in ("sample", "number", "cell_id"))
    parts = [f"one of {typical.count} cells" if typical.count > 1 else "the only cell"]
    if sample:
        parts.append(f"sample {_drawn(str(sample), 22)}")
    if cell_id is not None:  # the id in the database, which `wbcd review` wants
        parts.append(f"cell id {cell_id}")
    elif number is not None:
        parts.append(f"cell {number} of its file")
    return ", ".join(parts)


def _drawn(name: str, length: int) -> str:
    """The name in letters that the font has, others as escapes; of one that is too long four digits tell it from its like."""
    text = "".join(letter if _has(letter) else letter.encode("unicode_escape").decode() for letter in shown(name))
    if len(text) <= length:
        return text
    return f"{text[: length - 8]}... {hashlib.blake2b(name.encode(errors='surrogatepass'), digest_size=2).hexdigest()}"


@lru_cache(maxsize=4096)
def _has(letter: str) -> bool:
    """Whether the pictures' font can draw it: what it cannot, it draws as it draws a letter that nobody has."""
    if letter.isascii():
        return True
    font = _font(14)
    try:
        return bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))
    except UnicodeError:  # the font of a pillow without FreeType
        return False


def _paste(sheet: Image.Image, png: bytes, left: int, top: int) -> None:
    """The thumbnail, as large as its place allows, in the middle of it."""
    with Image.open(io.BytesIO(png)) as picture:
        colours = picture.convert("RGB")
    scale = PICTURE / max(colours.size)
    size = (max(1, round(colours.width * scale)), max(1, round(colours.height * scale)))
    sheet.paste(
        colours.resize(size, Image.Resampling.LANCZOS), (left + (PICTURE - size[0]) // 2, top + (PICTURE - size[1]) // 2)
    )


def _table(draw: ImageDraw.ImageDraw, typical: _Typical, left: int, right: int, top: int) -> None:
    median_at = right
    value_at = right - 92
    draw.text((value_at, top + LINE / 2), "this cell", fill=MUTED, font=_font(14), anchor="rm")
    draw.text((median_at, top + LINE / 2), "median", fill=MUTED, font=_font(14), anchor="rm")
    for line, (name, title, unit, decimals) in enumerate(VALUES, start=1):
        y = top + LINE * line + LINE / 2
        draw.text((left, y), f"{title} ({unit})" if unit else title, fill=MUTED, font=_font(16), anchor="lm")
        draw.text((value_at, y), f"{float(typical.row[name]):.{decimals}f}", fill=INK, font=_font(18), anchor="rm")
        draw.text((median_at, y), f"{typical.medians[name]:.{decimals}f}", fill=MUTED, font=_font(16), anchor="rm")


def _write(path: Path, content: bytes) -> None:
    """Write beside, then rename: a reader never sees half a picture."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise not_written(f"The picture {path}", error) from error
