"""An identity for a file whose bytes cannot be read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from wbcd.records import Acquisition


def unread(path: Path) -> Acquisition:
    """A ticket whose content id, ``unread-`` and 33 hex digits, stands for the path, its size and its mtime."""
    try:
        found = path.lstat()
        size, mtime_ns = found.st_size, found.st_mtime_ns
    except OSError:
        size, mtime_ns = 0, 0
    key = f"{path.absolute()}\0{size}\0{mtime_ns}".encode(errors="surrogateescape")
    digest = hashlib.blake2b(key, digest_size=20).hexdigest()[:33]
    return Acquisition(f"unread-{digest}", path, size, mtime_ns)
