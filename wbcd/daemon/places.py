"""Do the watch folder, the output folder and the database lie apart? Else the daemon would count what it writes itself.

Three answers together, because each sees what another does not: the resolved path (symbolic links), device and inode of every
folder above it (a bind mount of the very folder), and where a path lies on its file system by the kernel's table of mounts (a
bind mount of a folder above or below, also one that shows the output within the watch folder). A folder that is not made yet
is judged by the nearest one above it that is there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias

from wbcd.config import Config
from wbcd.errors import BadValue

MOUNTS: Final = Path("/proc/self/mountinfo")
Place: TypeAlias = tuple[str, PurePosixPath]
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the kernel's table: ``root`` of the file system ``device`` is seen at ``point``."""

    device: str
    root: PurePosixPath
    point: PurePosixPath


def demand_apart(config: Config) -> None:
    """Raise :class:`BadValue` when the output folder or the database lies in the watch folder, or that in the output folder."""
    problem = entangled(config)
    if problem is not None:
        raise BadValue(problem, action="Give each a place of its own: --watch-dir, --output-dir, --db.")


def entangled(config: Config) -> str | None:
    """The sentence that says what lies in what; None when all lie apart, or there is no watch folder."""
    watch = config.watch.dir
    if watch is None:
        return None
    mounts = read_mounts()
    output, database = config.output.dir, database_file(config)
    if _same(watch, output):
        return f"output.dir and watch.dir are the same folder, {_shown(watch)}: wbcd would watch what it writes itself."
    if lies_in(output, watch, mounts):
        return f"output.dir {_shown(output)} lies in watch.dir {_shown(watch)}: wbcd would watch what it writes itself."
    if lies_in(watch, output, mounts):
        return f"watch.dir {_shown(watch)} lies in output.dir {_shown(output)}: wbcd never writes beside the files it watches."
    if database is not None and lies_in(database, watch, mounts):
        return f"the database {_shown(database)} lies in watch.dir {_shown(watch)}, where wbcd never writes."
    return None


def database_file(config: Config) -> Path | None:
    """The file of an SQLite database; None for one on a server or in memory."""
    from wbcd.store.urls import parse_url

    return parse_url(config.database.url).path


def lies_in(inner: Path, outer: Path, mounts: Sequence[Mount]) -> bool:
    """True when ``inner`` is ``outer`` or is found below it, whatever links and mounts lead there."""
    real, above = resolved(inner), resolved(outer)
    if real.is_relative_to(above) or _same_above(real, outer):
        return True
    wanted, folder = location(PurePosixPath(real), mounts), PurePosixPath(above)
    seen, mounted = location(folder, mounts), list(_mounted_below(folder, mounts))
    # Of what is mounted in the outer folder a part of the inner one is enough.
    return any(_within(wanted, each) for each in (seen, *mounted)) or any(_within(each, wanted) for each in mounted)


def resolved(path: Path) -> Path:
    """The absolute path without links; what is not there yet is put behind what is."""
    return Path(os.path.realpath(path))


def _shown(path: Path) -> str:
    real = resolved(path)
    return str(path) if path == real else f"{path} ({real})"


def _same(one: Path, other: Path) -> bool:
    return resolved(one) == resolved(other) or (_identity(one) is not None and _identity(one) == _identity(other))


def _same_above(inner: Path, outer: Path) -> bool:
    """By device and inode: one of the folders above ``inner``, or itself, is ``outer`` under another name."""
    wanted = _identity(outer)
    return wanted is not None and any(_identity(folder) == wanted for folder in (inner, *inner.parents))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


# --- the kernel's table -----------------------------------------------------------------------------------


def read_mounts() -> list[Mount]:
    """The mounts of this process, the uppermost last; [] where the kernel does not say."""
    try:
        return list(parsed(MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")))
    except OSError:
        return []


def parsed(mountinfo: str) -> Iterator[Mount]:
    """The lines of ``/proc/self/mountinfo`` (proc(5)): id, parent, device, root, point, ..."""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) > 5:
            root, point = (PurePosixPath(_ESCAPE.sub(lambda found: chr(int(found[1], 8)), name)) for name in fields[3:5])
            yield Mount(fields[2], root, point)


def location(path: PurePosixPath, mounts: Sequence[Mount]) -> Place | None:
    """Device, and path on it, of an absolute path without links. Of several mounts at one point the last lies on top."""
    best: Mount | None = None
    for mount in mounts:
        if path.is_relative_to(mount.point) and (best is None or len(mount.point.parts) >= len(best.point.parts)):
            best = mount
    return None if best is None else (best.device, best.root / path.relative_to(best.point))


def _mounted_below(folder: PurePosixPath, mounts: Sequence[Mount]) -> Iterator[Place]:
    yield from ((mount.device, mount.root) for mount in mounts if mount.point != folder and mount.point.is_relative_to(folder))


def _within(inner: Place | None, outer: Place | None) -> bool:
    return inner is not None and outer is not None and inner[0] == outer[0] and inner[1].is_relative_to(outer[1])
