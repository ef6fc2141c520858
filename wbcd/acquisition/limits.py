"""What a reader assumes where a file is silent, and how much it may unpack."""

from __future__ import annotations

from dataclasses import dataclass

from wbcd.acquisition.names import plain_text as plain_text  # readers take it from here
from wbcd.errors import BadField

MIB, GIB = 2**20, 2**30

WAVELENGTH_UM = (0.3, 1.2)
NUMERICAL_APERTURE = (0.05, 1.7)
MEDIUM_RI = (1.0, 1.8)
PIXEL_UM = (0.005, 2.0)
VOXEL_UM = (0.01, 5.0)
PHYSICAL_RI = (1.0, 2.0)
MAX_NON_PHYSICAL_FRACTION = 0.01
"""Above it a volume is on a wrong scale or damaged; below it the voxels stay as they are and the cell's verdict judges."""
FRAME_PIXELS = (32, 8192)
ANGLES = (2, 1024)
MAX_FILE_BYTES = 32 * GIB
"""Unless the configuration says otherwise: judged by the length, before a byte is read. A sparse file of 1 TB takes no room on
the disk, but the better part of an hour to hash."""
SCALE, VALUES, PROVENANCE = "scale", "values", "seal"
"""What a file can lack (:attr:`wbcd.records.Acquisition.unprotected`): a checksum of shape, pitch and medium; one of its pixels
or voxels; the writer's seal over the whole, which a later rewriting breaks."""

MEDIUM = "medium"
"""What a file may leave unsaid (:attr:`wbcd.records.Acquisition.assumed`); the recipe's default stands in for it."""

MAX_ARRAY_BYTES = 768 * MIB
"""Unless the configuration says otherwise: 300 frames of 1024 x 1024 uint16 are 600 MiB, a volume of 210 x 732 x 732 float32 is
430 MiB."""


@dataclass(frozen=True, slots=True)
class ReadDefaults:
    """``medium_ri``: for files that do not state it. ``sample_id``: for files that name no sample of their own.

    ``max_logical_bytes``: the most that one array of a file may unpack to. ``accept_own_tomograms``: read tomograms that wbcd
    itself wrote, too.
    """

    medium_ri: float = 1.337
    sample_id: str | None = None
    max_logical_bytes: int = MAX_ARRAY_BYTES
    accept_own_tomograms: bool = False


def within(
    value: float, bounds: tuple[float, float], *, where: str, unit: str = "", hint: str = "", action: str | None = None
) -> float:
    """Return ``value`` when it lies in ``bounds`` (inclusive; NaN does not); raise BadField that names both otherwise.

    ``action``: what to do about it; the error's own by default.
    """
    low, high = bounds
    if low <= value <= high:
        return value
    space = f" {unit}" if unit else ""
    more = f" {hint}" if hint else ""
    raise BadField(f"{where} is {value:g}{space}; allowed is {low:g} to {high:g}{space}.{more}", action=action)
