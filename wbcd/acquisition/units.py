"""Units of length as people and programs write them."""

from __future__ import annotations

_SYMBOLS = {
    **dict.fromkeys(
        ("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"), 1.0
    ),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 1e4),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e6),
    **dict.fromkeys(("angstrom", "angstroms", "\u00c5", "\u212b", "\u00e5ngstr\u00f6m"), 1e-4),
    **dict.fromkeys(("pm", "picometer", "picometers", "picometre", "picometres"), 1e-6),
    **dict.fromkeys(("inch", "inches"), 25_400.0),
}
_WORDS = {name: value for name, value in _SYMBOLS.items() if len(name) > 2}
EXAMPLES = "micrometer (um), nanometer (nm), millimeter (mm), meter (m), angstrom"
"""For messages: what is understood."""


def micrometres_per(unit: str) -> float | None:
    """Micrometres in one ``unit``; None for what is no known unit of length (pixel, nothing, a word of another language).

    Symbols are taken as they are written (``mm`` is not ``Mm``), words in any case. ImageJ escapes the micro sign.
    """
    plain = unit.strip().replace("\\u00B5", "\u00b5").replace("\\u00b5", "\u00b5")
    return _SYMBOLS.get(plain, _WORDS.get(plain.casefold()))
