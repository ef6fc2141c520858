"""Opening what lies below a folder, so that no component of its name can lead out of it.

openat2(2) (Linux 5.6 and later) does it in one system call; elsewhere, and in the isolated reader, the name is walked
component by component, each opened without following a link.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wbcd.errors import NotARegularFile, NotReadable

OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = OPEN | os.O_DIRECTORY
_OPENAT2 = 437
_NO_MAGIC_LINKS, _NO_LINKS, _BENEATH = 0x02, 0x04, 0x08
_HOW = struct.pack("QQQ", _FOLDER, 0, _NO_MAGIC_LINKS | _NO_LINKS | _BENEATH)
# Absent, or not allowed to be used: then the walk has to do. EAGAIN: a rename went on meanwhile.
_NO_OPENAT2 = (errno.ENOSYS, errno.EPERM, errno.EAGAIN, errno.E2BIG, errno.EINVAL)
_LEADS_AWAY = (errno.ELOOP, errno.ENOTDIR, errno.EXDEV)


def parts_of(name: str, shown: Path) -> list[str]:
    """The components of ``a/b/c``; raises NotARegularFile where one is empty, ``.``, ``..`` or holds a zero byte."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise NotARegularFile(f"{shown} names {name!r}, which leaves its folder.")
    return parts


@contextmanager
def subfolder(folder: int, name: str, shown: Path) -> Iterator[int]:
    """Descriptor of the real directory ``name`` (``a/b``, or empty for the folder itself) below the descriptor ``folder``.

    Raises NotARegularFile when a component is a link or no directory, FileNotFoundError when one is absent, NotReadable.
    """
    if not name:
        yield folder
        return
    handle = _open_folder(folder, parts_of(name, shown), shown)
    try:
        yield handle
    finally:
        os.close(handle)


def _open_folder(folder: int, parts: list[str], shown: Path) -> int:
    try:
        handle = openat2(folder, "/".join(parts))
        return _walk(folder, parts) if handle is None else handle
    except OSError as error:
        if error.errno in _LEADS_AWAY:
            name = "/".join(parts)
            raise NotARegularFile(f"{shown}: {name!r} is not a directory, or leads through a symbolic link.") from error
        if error.errno == errno.ENOENT:
            raise
        raise NotReadable(f"{shown} cannot be opened: {error.strerror}.") from error


def openat2(folder: int, name: str) -> int | None:
    """Descriptor of the directory ``name``, resolved by the kernel below ``folder`` without links; None where it cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    handle = int(library.syscall(_OPENAT2, folder, os.fsencode(name), _HOW, len(_HOW)))
    if handle >= 0:
        return handle
    code = ctypes.get_errno()
    if code in _NO_OPENAT2:
        return None
    raise OSError(code, os.strerror(code), name)


def _walk(folder: int, parts: list[str]) -> int:
    at, held = folder, -1
    try:
        for part in parts:
            step = os.open(part, _FOLDER, dir_fd=at)
            if held >= 0:
                os.close(held)
            at = held = step
    except OSError:
        if held >= 0:
            os.close(held)
        raise
    return held


def ground_of(path: Path, root: Path | None) -> Path:
    """The folder below which no component of ``path`` may be a link: ``root`` when the path lies in it, else its parent."""
    if root is not None and path.absolute() != root.absolute() and path.absolute().is_relative_to(root.absolute()):
        return root.absolute()
    return path.parent


@contextmanager
def parent_of(path: Path, root: Path | None = None) -> Iterator[int]:
    """Descriptor of the folder that holds ``path``; links above ``root`` (by default: above the parent) are followed.

    Raises NotARegularFile at a link below it, NotReadable when it cannot be opened.
    """
    ground = ground_of(path, root)
    between = "." if ground == path.parent else path.absolute().parent.relative_to(ground).as_posix()
    try:
        base = os.open(ground, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotReadable(f"{path} cannot be reached: {ground}: {error.strerror}.") from error
    if between == ".":
        handle = base
    else:
        try:
            handle = _open_folder(base, parts_of(between, path), path)
        except FileNotFoundError as error:
            raise NotReadable(f"{path} cannot be reached: {error.strerror}.") from error
        finally:
            os.close(base)
    try:
        yield handle
    finally:
        os.close(handle)
