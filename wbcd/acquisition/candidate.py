"""Which names in the watch folder are acquisitions, what their state on disk is, and who they are by content.

Nothing here follows a symbolic link, opens a FIFO or a device, or writes.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from wbcd.acquisition.beneath import OPEN, parent_of, parts_of, subfolder
from wbcd.acquisition.limits import GIB, MAX_FILE_BYTES
from wbcd.errors import Incomplete, InputError, NotARegularFile, NotReadable, TooLarge
from wbcd.records import Acquisition

FILE_SUFFIXES = frozenset({".h5", ".hdf5", ".tcf"})
FOLDER_SUFFIX = ".zarr"
# Samples of rigs' own layouts; the backgrounds and notes beside them are read with them, never counted.
RIG_SAMPLE = re.compile(r".+_sp\.tiff?|(?!bg).*_tomog\.mat")
UNFINISHED_SUFFIXES = (".part", ".tmp")
MAX_FOLDER_FILES = 1_000_000
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class FileStat:
    """What tells two states of a file apart without reading it; for a ``.zarr`` folder: sum of sizes, newest times, count.

    The change time and the inode tell other bytes under the same size and mtime (``cp -p``, a file moved over it);
    ``companions`` is the state of the files that belong to it (:mod:`wbcd.acquisition.companions`).
    """

    size: int
    mtime_ns: int
    entries: int = 1
    ctime_ns: int = 0
    inode: int = 0
    companions: str = ""

    @property
    def token(self) -> str:
        """All but size and mtime as one text, to be remembered."""
        return f"{self.ctime_ns}.{self.inode}.{self.entries}.{self.companions}"


def is_candidate(path: Path) -> bool:
    """True for names of acquisitions: ``*.h5``, ``*.hdf5``, ``*.tcf``, ``*.zarr``, ``*_sp.tif``, ``*_Tomog.mat`` (not ``bg*``).

    Letters in any case; hidden and unfinished names are not.

    Only the name is judged, so that a directory or FIFO called ``x.h5`` is met, refused and recorded rather than passed over.
    """
    name = path.name.lower()
    if name.startswith(".") or name.endswith(UNFINISHED_SUFFIXES):
        return False
    suffix = path.suffix.lower()
    return suffix in FILE_SUFFIXES or suffix == FOLDER_SUFFIX or RIG_SAMPLE.fullmatch(name) is not None


def stat_candidate(path: Path) -> FileStat | None:
    """State of the candidate now, or None when it is gone.

    A folder whose content cannot be listed has its own size and mtime as its state: it is there, and must be met and
    recorded as unreadable rather than passed over. Raises nothing; what cannot even be examined has an empty state.
    """
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return FileStat(0, 0, 0)
    if not (stat.S_ISDIR(found.st_mode) and path.suffix.lower() == FOLDER_SUFFIX):
        return state_of(found)
    try:
        with open_folder(path) as folder:
            return _stat_folder(folder, path, found)
    except FileNotFoundError:  # a part of it was renamed between listing and looking: it is being written
        return None
    except (OSError, InputError):
        return replace(state_of(found), entries=0)


def state_of(found: os.stat_result) -> FileStat:
    """State of one file."""
    return FileStat(found.st_size, found.st_mtime_ns, 1, found.st_ctime_ns, found.st_ino)


def _stat_folder(folder: int, path: Path, itself: os.stat_result) -> FileStat:
    """State of an open folder. One of more than MAX_FOLDER_FILES entries is not counted to its end: it is refused anyway."""
    size, entries, mtime_ns, ctime_ns = 0, 1, itself.st_mtime_ns, itself.st_ctime_ns
    for _, entry in _entries(folder, path):
        found = entry.stat(follow_symlinks=False)
        mtime_ns, ctime_ns = max(mtime_ns, found.st_mtime_ns), max(ctime_ns, found.st_ctime_ns)
        entries += 1
        if not entry.is_dir(follow_symlinks=False):
            size += found.st_size
        if entries > MAX_FOLDER_FILES:
            break
    return FileStat(size, mtime_ns, entries, ctime_ns, itself.st_ino)


def _entries(folder: int, path: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below the open ``folder`` with its relative name, symbolic links named but not followed.

    Every subfolder is opened below the descriptor: one that is swapped for a link meanwhile raises NotARegularFile.
    """
    waiting = [""]
    while waiting:
        at = waiting.pop()
        with subfolder(folder, at, path) as here, os.scandir(here) as listing:
            for entry in listing:
                name = f"{at}/{entry.name}" if at else entry.name
                yield name, entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)


# --- opening -------------------------------------------------------------------------------------


@contextmanager
def open_regular(path: Path, *, dir_fd: int | None = None, label: Path | None = None) -> Iterator[int]:
    """Descriptor of a regular file, opened without following a final link and without waiting on a FIFO.

    Raises NotARegularFile or NotReadable, naming ``label`` (default: the path).
    """
    shown = label or path
    try:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        demand_regular(found.st_mode, shown)  # before opening: opening a device can have effects
        handle = os.open(path, OPEN, dir_fd=dir_fd)
    except OSError as error:
        raise NotReadable(f"{shown} cannot be opened: {error.strerror}.") from error
    try:
        demand_regular(os.fstat(handle).st_mode, shown)
        yield handle
    finally:
        os.close(handle)


def demand_regular(mode: int, shown: Path) -> None:
    """Raise NotARegularFile, saying what the mode is of instead."""
    if not stat.S_ISREG(mode):
        raise NotARegularFile(f"{shown} is {_kind(mode)}, not a regular file.")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "of an unknown kind")


@contextmanager
def open_folder(path: Path, *, dir_fd: int | None = None, label: Path | None = None) -> Iterator[int]:
    """Descriptor of a real directory (no symbolic link); raises NotARegularFile or NotReadable, naming ``label``."""
    shown = label or path
    try:
        handle = os.open(path, OPEN | os.O_DIRECTORY, dir_fd=dir_fd)
    except NotADirectoryError as error:
        raise NotARegularFile(f"{shown} is not a directory, or is a symbolic link.") from error
    except OSError as error:
        raise NotReadable(f"{shown} cannot be opened: {error.strerror}.") from error
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def open_beneath(folder: int, name: str, *, label: Path) -> Iterator[int]:
    """Descriptor of the regular file ``name`` (``a/b/c``) under the directory ``folder``; no component may be a link or ``..``.

    Raises FileNotFoundError when a component is absent.
    """
    *above, last = parts_of(name, label)
    with subfolder(folder, "/".join(above), label) as at:
        try:
            os.stat(last, dir_fd=at, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise NotReadable(f"{label / name} cannot be examined: {error.strerror}.") from error
        with open_regular(Path(last), dir_fd=at, label=label / name) as handle:
            yield handle


def read_whole(handle: int, limit: int, shown: Path) -> bytes:
    """All bytes of an open regular file; raises TooLarge above ``limit``, NotReadable on an I/O error."""
    size = os.fstat(handle).st_size
    if size > limit:
        raise TooLarge(f"{shown} holds {size} bytes; the limit is {limit}.")
    try:
        with os.fdopen(os.dup(handle), "rb") as stream:
            return stream.read(limit)
    except OSError as error:
        raise NotReadable(f"{shown} cannot be read: {error.strerror}.") from error


# --- identity ------------------------------------------------------------------------------------


def identify(
    path: Path, *, root: Path | None = None, max_bytes: int = MAX_FILE_BYTES, beat: Callable[[], None] = lambda: None
) -> Acquisition:
    """The ticket of one file: content id (BLAKE2b-160 of the bytes), size, mtime; nothing of the content is interpreted.

    A ``.zarr`` folder is identified by the sorted relative names and bytes of its files. No component of the path below
    ``root`` (the watch folder; by default the path's parent) may be a symbolic link. ``beat`` is called after each block of at
    most 1 MiB; what it raises ends the work. Raises NotReadable, NotARegularFile, TooLarge when the file (or all files of the
    folder) is longer than ``max_bytes``, before any of it is read, or Incomplete when it changed while its bytes were read.
    """
    with parent_of(path, root) as parent:
        try:
            mode = os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_mode
        except OSError as error:
            raise NotReadable(f"{path} cannot be examined: {error.strerror}.") from error
        if stat.S_ISDIR(mode) and path.suffix.lower() == FOLDER_SUFFIX:
            return _identify_folder(path, parent, max_bytes, beat)
        return _identify_file(path, parent, max_bytes, beat)


def _identify_file(path: Path, parent: int, max_bytes: int, beat: Callable[[], None]) -> Acquisition:
    digest = hashlib.blake2b(digest_size=20)
    with open_regular(Path(path.name), dir_fd=parent, label=path) as handle:
        before = os.fstat(handle)
        _demand_size(before.st_size, max_bytes, path)
        _hash_into(digest, handle, before.st_size, path, beat)
        after = os.fstat(handle)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Incomplete(f"{path} changed while it was read ({before.st_size} to {after.st_size} bytes).")
    return Acquisition(digest.hexdigest(), path, after.st_size, after.st_mtime_ns)


def _demand_size(size: int, limit: int, shown: Path) -> None:
    if size > limit:
        raise TooLarge(
            f"{shown} holds {size} bytes ({size / GIB:.3g} GiB); [limits] max_file_bytes is {limit} ({limit / GIB:.3g} GiB).",
            action="Raise [limits] max_file_bytes if the file is an acquisition of that size; else remove it.",
        )


def _hash_into(digest: hashlib.blake2b, handle: int, size: int, shown: Path, beat: Callable[[], None]) -> None:
    """Hash to the end of the file; Incomplete as soon as it is beyond ``size``: a file that grows on would never end."""
    block = bytearray(_BLOCK)
    view = memoryview(block)
    done = 0
    try:
        while count := os.readv(handle, [block]):
            done += count
            if done > size:
                raise Incomplete(f"{shown} changed while it was read ({size} to {done} bytes or more).")
            digest.update(view[:count])
            beat()
    except OSError as error:
        raise NotReadable(f"{shown} cannot be read: {error.strerror}.") from error


def _identify_folder(path: Path, parent: int, max_bytes: int, beat: Callable[[], None]) -> Acquisition:
    digest = hashlib.blake2b(digest_size=20)
    with open_folder(Path(path.name), dir_fd=parent, label=path) as folder:
        before = folder_state(folder, path)
        _demand_size(before.size, max_bytes, path)
        hashed = 0
        for name in folder_files(path, folder):
            # Length first, so that no two folders give the same stream of bytes.
            encoded = os.fsencode(name)
            with _present(folder, name, path) as handle:
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
                size = os.fstat(handle).st_size
                hashed += size
                _demand_size(hashed, max_bytes, path)  # members may have grown since they were listed
                digest.update(size.to_bytes(8, "little"))
                _hash_into(digest, handle, size, path / name, beat)
        if before != folder_state(folder, path):
            raise Incomplete(f"{path} changed while it was read.")
    return Acquisition(digest.hexdigest(), path, before.size, before.mtime_ns)


def folder_state(folder: int, path: Path) -> FileStat:
    """State of the open folder; raises NotReadable or Incomplete (it is being written)."""
    try:
        return _stat_folder(folder, path, os.fstat(folder))
    except FileNotFoundError as error:
        raise Incomplete(f"{path} changed while it was listed.") from error
    except OSError as error:
        raise NotReadable(f"{path} cannot be listed: {error.strerror}.") from error


@contextmanager
def _present(folder: int, name: str, path: Path) -> Iterator[int]:
    try:
        with open_beneath(folder, name, label=path) as handle:
            yield handle
    except FileNotFoundError as error:
        raise Incomplete(f"{path / name} vanished while the folder was read.") from error


def folder_files(path: Path, folder: int) -> list[str]:
    """Sorted relative names of all files of the open folder; raises NotARegularFile at a link, TooLarge at too many."""
    names: list[str] = []
    try:
        for name, entry in _entries(folder, path):
            if entry.is_dir(follow_symlinks=False):
                continue
            demand_regular(entry.stat(follow_symlinks=False).st_mode, path / name)
            names.append(name)
            if len(names) > MAX_FOLDER_FILES:
                raise TooLarge(f"{path} holds more than {MAX_FOLDER_FILES} files.", action="Write it with larger chunks.")
    except FileNotFoundError as error:
        raise Incomplete(f"{path} changed while it was listed.") from error
    except OSError as error:
        raise NotReadable(f"{path} cannot be listed: {error.strerror}.") from error
    return sorted(names)


def demand_unchanged(acquisition: Acquisition, size: int, mtime_ns: int) -> None:
    """Raise Incomplete when the file is not the one that was identified: the content id would name other bytes."""
    if (size, mtime_ns) != (acquisition.size_bytes, acquisition.mtime_ns):
        raise Incomplete(
            f"{acquisition.path} changed after it was identified ({acquisition.size_bytes} to {size} bytes);"
            " it is taken up again when it rests."
        )
