"""An identity for a file whose bytes cannot be read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from wbcd.records import Acquisition

UNREAD = "unread-"
"""What the content id of a file without bytes begins with."""


def unread(path: Path, host: str = "") -> Acquisition:
    """A ticket whose content id, ``unread-`` and 33 hex digits, stands for the path, its size and its mtime.

    ``host``: the machine whose path it is, where several share a database.
    """
    try:
        found = path.lstat()
        size, mtime_ns = found.st_size, found.st_mtime_ns
    except OSError:
        size, mtime_ns = 0, 0
    place = f"{host}\0{path.absolute()}" if host else str(path.absolute())
    key = f"{place}\0{size}\0{mtime_ns}".encode(errors="surrogateescape")
    digest = hashlib.blake2b(key, digest_size=20).hexdigest()[:33]
    return Acquisition(f"{UNREAD}{digest}", path, size, mtime_ns)
