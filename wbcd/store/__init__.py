"""Where results go: the schema, the only SQL writer, and kept tomograms.

Names are imported on first use: SQLAlchemy and zarr take half a second, which a reader of the counts need not spend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wbcd.store.ledger import Ledger
    from wbcd.store.migrate import current_revision, downgrade, upgrade
    from wbcd.store.rows import CellLabel, CurrentRun, Health, SampleLabel, StoredCell, StoredOutcome, Unfinished
    from wbcd.store.volumes import clean_stale, read_tomogram, write_tomogram

__all__ = [
    "CellLabel",
    "CurrentRun",
    "Health",
    "Ledger",
    "SampleLabel",
    "StoredCell",
    "StoredOutcome",
    "Unfinished",
    "clean_stale",
    "current_revision",
    "downgrade",
    "read_tomogram",
    "upgrade",
    "write_tomogram",
]

_HOMES = {
    "CellLabel": "rows",
    "CurrentRun": "rows",
    "Health": "rows",
    "Ledger": "ledger",
    "SampleLabel": "rows",
    "StoredCell": "rows",
    "StoredOutcome": "rows",
    "Unfinished": "rows",
    "clean_stale": "volumes",
    "current_revision": "migrate",
    "downgrade": "migrate",
    "read_tomogram": "volumes",
    "upgrade": "migrate",
    "write_tomogram": "volumes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
