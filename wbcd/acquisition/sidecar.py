"""``config.dat`` of Tomocube instruments: the optics, where the TCF itself leaves them out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from wbcd.acquisition.candidate import open_beneath, read_whole
from wbcd.acquisition.limits import MEDIUM_RI, NUMERICAL_APERTURE, WAVELENGTH_UM, within
from wbcd.acquisition.source import Source

CONFIG_NAME = "config.dat"
MAX_CONFIG_BYTES = 256 * 1024
# Seen in the wild: `Immersion_RI1.337000`, the comma missing between key and value.
_RUN_TOGETHER = re.compile(r"^([A-Za-z_][A-Za-z_ ]*?)\s*([-+]?\d+\.\d+)$")


@dataclass(frozen=True, slots=True)
class VendorConfig:
    """What a ``config.dat`` says of the optics; None where it says nothing. ``wavelength_um`` in vacuum."""

    medium_ri: float | None = None
    objective_na: float | None = None
    condenser_na: float | None = None
    wavelength_um: float | None = None
    serial: str | None = None


def parse_config(text: str) -> Mapping[str, str]:
    """The lines ``key,value`` as a mapping; other lines are passed over, a missing comma before a decimal is forgiven."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, comma, value = line.partition(",")
        run_together = None if comma else _RUN_TOGETHER.match(line.strip())
        if comma:
            found[key.strip()] = value.strip()
        elif run_together:
            found[run_together[1]] = run_together[2]
    return found


def vendor_config(raw: bytes, where: str) -> VendorConfig:
    """Interpret the bytes of a ``config.dat``; raises BadField for a value outside its physical limits."""
    entries = parse_config(raw.decode("utf-8", "replace").lstrip("\ufeff"))

    def number(key: str, bounds: tuple[float, float]) -> float | None:
        try:
            value = float(entries[key])
        except (KeyError, ValueError):
            return None
        return within(value, bounds, where=f"{where}: `{key}`") if value else None  # 0 is the vendor's "not set"

    return VendorConfig(
        medium_ri=number("n_m", MEDIUM_RI),
        objective_na=number("NA", NUMERICAL_APERTURE),
        condenser_na=number("NA_CDS", NUMERICAL_APERTURE),
        wavelength_um=number("Lambda", WAVELENGTH_UM),
        serial=entries.get("Serial") or None,
    )


def session_config(source: Source) -> VendorConfig:
    """The ``config.dat`` beside a TCF in its own session folder (folder and file of one name), or an empty one."""
    folder = source.path.parent
    if folder.name != source.path.stem:
        return VendorConfig()
    with source.parent() as parent:
        try:
            with open_beneath(parent, CONFIG_NAME, label=folder) as handle:
                return vendor_config(read_whole(handle, MAX_CONFIG_BYTES, folder / CONFIG_NAME), str(folder / CONFIG_NAME))
        except FileNotFoundError:
            return VendorConfig()
