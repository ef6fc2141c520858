"""When is an outcome that counts nothing not final? Pure rules: which limits judged it, and which of them let more pass now.

An outcome that was set aside remembers the site's limits of that day. A file that waits for another is taken up again by the
state of its companions (:mod:`wbcd.acquisition.companions`), which the ledger compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from wbcd import __version__
from wbcd.config import Config
from wbcd.errors import (
    Incomplete,
    MissingCompanion,
    NotReadable,
    ReaderDied,
    SameAcquisition,
    TooLarge,
    Truncated,
    Unforeseen,
)

CONDITIONAL: Final = tuple(kind.code for kind in (TooLarge, ReaderDied, Unforeseen, SameAcquisition))
"""Reasons that hang on a limit of the site or on the version of wbcd. Not poison: each try of it ends the daemon."""

ABSENT: Final = (NotReadable.code,)
"""Reasons that a share which was away gives: tried again at each start, when the folder comes back, and with each re-hash."""

BY_HAND: Final = tuple(kind.code for kind in (NotReadable, Incomplete, MissingCompanion, Truncated, ReaderDied, Unforeseen))
"""What `wbcd process` tries again when a person names the file."""

_LIMITS: Final[Mapping[str, tuple[str, ...]]] = {
    TooLarge.code: ("max_logical_bytes", "max_file_bytes"),
    ReaderDied.code: ("max_logical_bytes",),
}
_NEWER: Final = (ReaderDied.code, Unforeseen.code)


def conditions_of(config: Config) -> dict[str, Any]:
    """The site's limits that judge what is set aside."""
    return {
        "max_logical_bytes": config.limits.max_logical_bytes,
        "max_file_bytes": config.limits.max_file_bytes,
        "same_acquisition": config.watch.same_acquisition,
        "wbcd_version": __version__,
    }


def is_open_again(reason: str, then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """True when what set a file aside under ``then`` might let it pass now; ``then`` None: nobody wrote it down."""
    if reason not in CONDITIONAL:
        return False
    if then is None:
        return True
    if any(now[name] > then.get(name, 0) for name in _LIMITS.get(reason, ())):
        return True
    if reason == SameAcquisition.code:
        return bool(now["same_acquisition"] == "count")
    return reason in _NEWER and then.get("wbcd_version") != now["wbcd_version"]
