"""What the ledger reads of a model's card. The card is the whole metadata.json; what wbcd says of a model is in its section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

SECTION: Final = "wbcd"


def section_of(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section that wbcd reads; empty where there is none."""
    section = card.get(SECTION)
    return section if isinstance(section, Mapping) else {}


def learnt_simulated(card: Mapping[str, Any]) -> bool:
    """Whether the model was trained on simulated cells: so unless the card says that it was not."""
    return section_of(card).get("simulated") is not False


def classes_of(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that the model tells apart; none where the card names none."""
    classes = section_of(card).get("classes")
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) else ()
