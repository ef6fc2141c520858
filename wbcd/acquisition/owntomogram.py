"""Is an image one of the tomograms that wbcd keeps (:mod:`wbcd.store.volumes`)? Its cell is counted already.

Such an image comes back by a copy, a new name, another daemon's output folder, another zarr format: neither path nor content id
tells. What stays is the attribute that we write, the object ``wbcd`` with the content id of its source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from wbcd.acquisition.limits import plain_text
from wbcd.errors import OwnTomogram

NAMESPACE: Final = "wbcd"
SOURCE: Final = "source_content_id"
NUMBER: Final = "cell_number"
MAX_DEPTH: Final = 6
"""How deep to look: programs that write an image again put attributes that they do not know elsewhere than at the root."""
SHOWN: Final = 80


def demand_foreign(attributes: Mapping[str, Any], path: Path) -> None:
    """Raise OwnTomogram, which names the source's content id, when the attributes are those of a tomogram that wbcd wrote."""
    own = next(_ours(attributes, MAX_DEPTH), None)
    if own is None:
        return
    source = plain_text(str(own[SOURCE])[:SHOWN], where=f"{path}: `{NAMESPACE}.{SOURCE}`")
    number = own.get(NUMBER)
    which = f"cell {number}" if isinstance(number, int) else "a cell"
    raise OwnTomogram(f"{path} is a tomogram that wbcd wrote, of {which} of the acquisition {source}; it is not counted again.")


def _ours(value: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """Every object called ``wbcd`` that names a source; an image of another program may have one with its medium alone."""
    if depth == 0:
        return
    if isinstance(value, list):
        for item in value:
            yield from _ours(item, depth - 1)
    elif isinstance(value, dict):
        own = value.get(NAMESPACE)
        if isinstance(own, dict) and SOURCE in own:
            yield own
        for item in value.values():
            yield from _ours(item, depth - 1)
