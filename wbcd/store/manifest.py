"""The manifest of a kept tomogram: the size and BLAKE2b-256 of each of its files, so that damage is found without decoding.

    IMAGE.ome.zarr/manifest.json   {"wbcd_manifest": 1, "files": {"0/c/0/0/0": {"bytes": 123, "blake2b": "..."}, ...}}

It is written into the temporary folder before the image gets its name. It finds damage and loss; it
does not find someone who rewrites a file and the manifest with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Final

MANIFEST: Final = "manifest.json"
VERSION_KEY: Final = "wbcd_manifest"
MAX_MANIFEST_BYTES: Final = 4 * 2**20
_BLOCK: Final = 2**20


def write_manifest(image: Path) -> None:
    """Name every file under ``image`` with its size and digest. Raises OSError."""
    files = {name: entry_of(image / name) for name in sorted(_files(image))}
    (image / MANIFEST).write_text(json.dumps({VERSION_KEY: 1, "files": files}, indent=0, sort_keys=True) + "\n")


def has_manifest(image: Path) -> bool:
    """Images of the first versions have none."""
    return (image / MANIFEST).is_file()


def manifest_problems(image: Path) -> list[str]:
    """What does not hold of an image with a manifest, one clause each; [] when all does. Raises OSError."""
    listed = _read(image / MANIFEST)
    if listed is None:
        return [f"{MANIFEST} is not readable"]
    found = _files(image)
    wrong = [f"{name} is missing" for name in sorted(listed.keys() - found)]
    wrong += [f"{name} is not in the manifest" for name in sorted(found - listed.keys())]
    return wrong + [f"{name} was changed" for name in sorted(found & listed.keys()) if entry_of(image / name) != listed[name]]


def entry_of(path: Path) -> dict[str, Any]:
    """Size in bytes and BLAKE2b-256 of one regular file; what no manifest holds of a link, which is never followed."""
    digest = hashlib.blake2b(digest_size=32)
    if path.is_symlink():
        return {"bytes": -1, "blake2b": ""}
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
        return {"bytes": handle.tell(), "blake2b": digest.hexdigest()}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.lstat().st_size > MAX_MANIFEST_BYTES:
            return None
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    files = data.get("files") if isinstance(data, dict) else None
    return files if isinstance(files, dict) else None


def _files(image: Path) -> set[str]:
    found: set[str] = set()
    for folder, inner, names in os.walk(image):
        linked = [name for name in inner if (Path(folder) / name).is_symlink()]  # os.walk does not enter them; they are named
        found |= {str((Path(folder) / name).relative_to(image)) for name in (*names, *linked)}
    return found - {MANIFEST}
