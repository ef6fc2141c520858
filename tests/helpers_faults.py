"""Faults put into a forked daemon before it starts: a kill inside any function, a hang, an error, a clock that jumps.

Each is a dictionary, so that it crosses the pipe to the zygote; :func:`install` is called in the child, whose modules are
its own. Nothing of this is in wbcd: a daemon that was not forked by a test cannot be told to fail.
"""

from __future__ import annotations

import builtins
import ctypes
import datetime as dt
import errno
import functools
import importlib
import io
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Fault = dict[str, Any]
FORWARD = "wbcd.classification.network:FishNet3d.both"
"""Where every batch goes through: the warm-up's is the first."""


def kill_in(place: str, *, when: str = "before", passage: int = 1) -> Fault:
    """SIGKILL at the n-th call of ``module:function`` (or ``module:Class.method``), before it or after it has returned."""
    return {"fault": "kill", "place": place, "when": when, "passage": passage}


def hang_in(place: str, *, passage: int = 1, once: Path | None = None) -> Fault:
    """The n-th call never returns; with ``once`` only in the first process that comes there (a file is left)."""
    return {"fault": "hang", "place": place, "passage": passage, "once": None if once is None else str(once)}


def raise_in(place: str, error: str, text: str, *, passage: int = 1, once: Path | None = None) -> Fault:
    """The n-th call raises ``error`` (``module:Class``) with ``text``; ``once`` as for :func:`hang_in`."""
    return {
        "fault": "raise",
        "place": place,
        "error": error,
        "text": text,
        "passage": passage,
        "once": None if once is None else str(once),
    }


def too_many_cells_at_once(limit: int, note: Path) -> Fault:
    """The network has memory for ``limit`` cells; the size of each batch that it is given goes into the file ``note``."""
    return {"fault": "memory", "limit": limit, "note": str(note)}


def set_to(place: str, value: float) -> Fault:
    """A constant of ``module:NAME``: a limit of half a minute is waited for in seconds."""
    return {"fault": "set", "place": place, "value": value}


def count_calls(place: str, note: Path) -> Fault:
    """Each call leaves a byte in the file ``note``."""
    return {"fault": "count", "place": place, "note": str(note)}


def without_rights_over_files() -> Fault:
    """Root as any other user where files are concerned: what their modes forbid is forbidden (no change for others)."""
    return {"fault": "rights"}


def clock_shifted_by(file: Path) -> Fault:
    """The wall clock is off by as many seconds as ``file`` says at the moment (none while it is absent)."""
    return {"fault": "clock", "file": str(file)}


def no_quota_left(folder: Path, *, while_there_is: Path) -> Fault:
    """Nothing can be made or opened for writing under ``folder`` (EDQUOT) as long as the other file is there."""
    return {"fault": "quota", "folder": str(folder), "marker": str(while_there_is)}


def install(faults: list[Fault]) -> None:
    """In the child: put each fault in its place."""
    for fault in faults:
        _KINDS[fault["fault"]](fault)


def _replace(place: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    module_name, _, names = place.partition(":")
    owner: Any = importlib.import_module(module_name)
    *holders, last = names.split(".")
    for name in holders:
        owner = getattr(owner, name)
    before = getattr(owner, last)
    after = functools.wraps(before)(wrap(before))
    setattr(owner, last, after)
    if not holders:  # modules that took the function by name keep the old one: `from wbcd.store.volumes import write_tomogram`
        import sys

        for other in list(sys.modules.values()):
            if getattr(other, "__name__", "").startswith("wbcd.") and getattr(other, last, None) is before:
                setattr(other, last, after)


class _Count:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def __call__(self) -> int:
        with self._lock:
            self._count += 1
            return self._count


def _kill(fault: Fault) -> None:
    count = _Count()

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def killing(*args: Any, **kwargs: Any) -> Any:
            mine = count() == fault["passage"]
            if mine and fault["when"] == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return killing

    _replace(fault["place"], wrap)


def _first_process(fault: Fault) -> bool:
    if fault["once"] is None:
        return True
    try:
        Path(fault["once"]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _hang(fault: Fault) -> None:
    count = _Count()

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def hanging(*args: Any, **kwargs: Any) -> Any:
            if count() == fault["passage"] and _first_process(fault):
                threading.Event().wait()  # as a kernel that never ends
            return function(*args, **kwargs)

        return hanging

    _replace(fault["place"], wrap)


def _raise(fault: Fault) -> None:
    count = _Count()
    module, _, name = fault["error"].partition(":")

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def raising(*args: Any, **kwargs: Any) -> Any:
            if count() == fault["passage"] and _first_process(fault):
                raise getattr(importlib.import_module(module), name)(fault["text"])
            return function(*args, **kwargs)

        return raising

    _replace(fault["place"], wrap)


def _calls(fault: Fault) -> None:
    note = os.open(fault["note"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            os.write(note, b".")
            return function(*args, **kwargs)

        return counted

    _replace(fault["place"], wrap)


CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def _rights(_fault: Fault) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread (there is no other yet)
    data = ctypes.create_string_buffer(24)
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    words = list(struct.unpack("=6I", data.raw))
    for index in range(3):  # effective, permitted, inheritable of capabilities 0 to 31
        words[index] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    if libc.capset(header, struct.pack("=6I", *words)):
        raise OSError(ctypes.get_errno(), "capset")


def _memory(fault: Fault) -> None:
    import torch

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def limited(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            with Path(fault["note"]).open("a") as note:
                note.write(f"{len(x)}\n")
            if len(x) > fault["limit"]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            return function(self, x, *args, **kwargs)

        return limited

    _replace(FORWARD, wrap)


def _clock(fault: Fault) -> None:
    real_time, real_time_ns = time.time, time.time_ns
    file = Path(fault["file"])

    def shift_s() -> float:
        try:
            return float(file.read_text() or 0.0)
        except FileNotFoundError:
            return 0.0

    class Shifted(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return dt.datetime.fromtimestamp(real_time() + shift_s(), tz)

    time.time = lambda: real_time() + shift_s()
    time.time_ns = lambda: real_time_ns() + int(shift_s() * 1e9)
    import wbcd.daemon.pipeline
    import wbcd.store.ledger

    # These two label what the database holds; datetime itself is C and cannot be changed.
    for module in (wbcd.store.ledger, wbcd.daemon.pipeline):
        module.dt = SimpleNamespace(datetime=Shifted, UTC=dt.UTC, timedelta=dt.timedelta)  # type: ignore[attr-defined]


def _quota(fault: Fault) -> None:
    folder, marker = Path(fault["folder"]), Path(fault["marker"])

    def refuses(path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(folder) and marker.exists()

    def guarded(function: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def refusing(path: Any, *args: Any, **kwargs: Any) -> Any:
            if refuses(path) and writes(*args, **kwargs):
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), os.fspath(path))
            return function(path, *args, **kwargs)

        return refusing

    os.mkdir = guarded(os.mkdir, lambda *_, **__: True)  # type: ignore[assignment]
    os.open = guarded(os.open, lambda flags, *_, **__: bool(flags & os.O_CREAT))  # type: ignore[assignment]
    opened = guarded(io.open, lambda mode="r", *_, **__: mode[0] in "wax")
    io.open = builtins.open = opened  # type: ignore[assignment]


def _set(fault: Fault) -> None:
    module, _, name = fault["place"].partition(":")
    setattr(importlib.import_module(module), name, fault["value"])


_KINDS: dict[str, Callable[[Fault], None]] = {
    "kill": _kill,
    "hang": _hang,
    "raise": _raise,
    "memory": _memory,
    "clock": _clock,
    "count": _calls,
    "rights": _rights,
    "quota": _quota,
    "set": _set,
}
