"""What Tomocube instruments write beside a TCF or into it, where its own attributes leave the optics out.

``config.dat`` of HT-1 and HT-2 is ``key,value``; that of HT-X has sections (INI), and its ``.experiment`` is JSON with the
medium. On HT-X ``Info/Device NA`` of the TCF is the condenser's: the objective's is in ``config.dat`` only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from wbcd.acquisition.candidate import open_beneath, read_whole
from wbcd.acquisition.limits import MEDIUM_RI, NUMERICAL_APERTURE, WAVELENGTH_UM, within
from wbcd.acquisition.names import known_text
from wbcd.acquisition.source import Source

CONFIG_NAME, EXPERIMENT_NAME = "config.dat", ".experiment"
MAX_CONFIG_BYTES = 256 * 1024
_MEND = "Correct it, or take the file away from the TCF; one that lies in the TCF has to be exported again."
# Seen in the wild: `Immersion_RI1.337000`, the comma missing between key and value.
_RUN_TOGETHER = re.compile(r"^([A-Za-z_][A-Za-z_ ]*?)\s*([-+]?\d+\.\d+)$")
_SECTION = re.compile(r"\[([^\]]+)\]")
_UNITS = re.compile(r"(micrometer|nanometer|um|nm)\Z")
# Keys of HT-X, letters and digits only, lower case, without their units; the first that is there counts.
_MEDIUM = ("mediumri", "mediumrefractiveindex", "nm")
_OBJECTIVE = ("objectivena", "naobjective", "objectivelensna", "na")
_CONDENSER = ("condenserna", "nacondenser", "nacds")
_WAVELENGTH = ("lambda", "wavelength", "htwavelength", "lightsourcewavelength")
_SERIAL = ("deviceserial", "serial", "serialnumber")


@dataclass(frozen=True, slots=True)
class VendorConfig:
    """What a ``config.dat`` says of the optics; None where it says nothing. ``wavelength_um`` in vacuum."""

    medium_ri: float | None = None
    objective_na: float | None = None
    condenser_na: float | None = None
    wavelength_um: float | None = None
    serial: str | None = None

    def or_medium(self, medium_ri: float | None) -> VendorConfig:
        """The same with this medium where it names none."""
        return replace(self, medium_ri=self.medium_ri or medium_ri)


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


def parse_sections(text: str) -> Mapping[str, str]:
    """The lines ``key=value`` of an INI file, keys as letters and digits without unit; those of ``[DeviceInfo]`` come first."""
    device: dict[str, str] = {}
    others: dict[str, str] = {}
    section = ""
    for line in map(str.strip, text.splitlines()):
        heading = _SECTION.fullmatch(line)
        if heading:
            section = _plain_key(heading[1])
            continue
        key, equals, value = line.partition("=")
        if equals and not line.startswith((";", "#")):
            into = device if section == "deviceinfo" else others
            into.setdefault(_without_unit(_plain_key(key)), value.strip().strip('"'))
    return {**others, **device}


def _plain_key(key: str) -> str:
    return re.sub(r"[^a-z0-9]", "", key.casefold())


def _without_unit(key: str) -> str:
    return _UNITS.sub("", key) or key


def vendor_config(raw: bytes, where: str) -> VendorConfig:
    """Interpret the bytes of a ``config.dat`` of either form; raises BadField for a value outside its physical limits."""
    text = raw.decode("utf-8", "surrogateescape").lstrip("\ufeff").rstrip("\0")
    sections = any(_SECTION.fullmatch(line.strip()) for line in text.splitlines())
    entries = parse_sections(text) if sections else parse_config(text)

    def number(keys: tuple[str, ...], bounds: tuple[float, float], scale_above: float = float("inf")) -> float | None:
        for key in keys:
            with suppress(KeyError, ValueError):
                value = float(entries[key])
                if value:  # 0 is the vendor's "not set"
                    return within(
                        value / 1000 if value > scale_above else value, bounds, where=f"{where}: `{key}`", action=_MEND
                    )
        return None

    serial = next((entries[key] for key in (*_SERIAL, "Serial") if entries.get(key)), None)
    return VendorConfig(
        medium_ri=number(_MEDIUM if sections else ("n_m",), MEDIUM_RI),
        objective_na=number(_OBJECTIVE if sections else ("NA",), NUMERICAL_APERTURE),
        condenser_na=number(_CONDENSER if sections else ("NA_CDS",), NUMERICAL_APERTURE),
        wavelength_um=number(_WAVELENGTH if sections else ("Lambda",), WAVELENGTH_UM, 100.0 if sections else float("inf")),
        serial=None if serial is None else known_text(serial.encode("utf-8", "surrogateescape")),
    )


def experiment_medium(raw: bytes, where: str) -> float | None:
    """The medium's RI of a ``.experiment``, None where it names none or is no JSON; raises BadField outside the limits."""
    try:
        found: Any = json.loads(raw.decode("utf-8-sig").rstrip("\0"))
    except (ValueError, RecursionError):
        return None
    medium = _member(found, ("medium",))
    value = _member(medium, ("mediumri", "ri", "refractiveindex"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not value:
        return None
    return within(float(value), MEDIUM_RI, where=f"{where}: `medium`", action=_MEND)


def _member(found: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(found, dict):
        return None
    return next((value for key, value in found.items() if _plain_key(key) in keys), None)


def session_config(source: Source) -> VendorConfig:
    """The ``config.dat`` beside a TCF in its own session folder (folder and file of one name), or an empty one."""
    raw = _beside(source, CONFIG_NAME)
    return VendorConfig() if raw is None else vendor_config(raw, str(source.path.parent / CONFIG_NAME))


def session_medium(source: Source) -> float | None:
    """The medium of the ``.experiment`` beside a TCF, as :func:`session_config` finds it; None where there is none."""
    raw = _beside(source, EXPERIMENT_NAME)
    return None if raw is None else experiment_medium(raw, str(source.path.parent / EXPERIMENT_NAME))


def _beside(source: Source, name: str) -> bytes | None:
    folder = source.path.parent
    if folder.name != source.path.stem:
        return None
    with source.parent() as parent:
        try:
            with open_beneath(parent, name, label=folder) as handle:
                return read_whole(handle, MAX_CONFIG_BYTES, folder / name)
        except FileNotFoundError:
            return None
