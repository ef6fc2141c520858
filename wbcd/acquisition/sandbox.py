"""What the kernel takes away from the isolated reader: network, other processes, writing, and files outside its folder.

Two mechanisms, both without privileges and kept by whatever code runs afterwards, a hostile file's too:

- a seccomp filter (seccomp(2)) lets the system calls of :mod:`wbcd.acquisition.calls` through and answers every other with an
  error: sockets, programs, processes, signals to others, their priority and processors, every way to write to a path;
- Landlock (landlock(7), Linux 5.13 and later) lets files be opened below the given folders only, whatever links say.

And two more where the machine allows them, behind the first two should those have a hole: a user of its own, who owns no
process and no file, where the daemon is root; empty network and IPC namespaces.

None is in the standard library; each is a few system calls through ctypes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from wbcd.acquisition.calls import filter_program

SECCOMP, LANDLOCK, OWN_USER, NAMESPACES = "seccomp", "landlock", "own_user", "namespaces"

_PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 22, 38, 47
_SECCOMP_CALL, _SET_MODE_FILTER, _ALL_THREADS = {"x86_64": 317, "aarch64": 277}, 1, 1
_SECCOMP_MODE_FILTER = 2


# --- seccomp -------------------------------------------------------------------------------------


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def deny_system_calls() -> bool:
    """Install the filter for this process for good; False where the machine or the kernel knows none."""
    try:
        program = filter_program(platform.machine(), os.getpid())
    except KeyError:
        return False
    raw = b"".join(struct.pack("HBBI", *step) for step in program)
    held = ctypes.create_string_buffer(raw, len(raw))
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    whole = ctypes.byref(_Program(len(program), ctypes.addressof(held)))
    # For the threads too that a library may have started already; else, on a kernel that cannot, for this one.
    if library.syscall(_SECCOMP_CALL[platform.machine()], _SET_MODE_FILTER, _ALL_THREADS, whole) == 0:
        return True
    return bool(library.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, whole, 0, 0) == 0)


# --- own user, own namespaces --------------------------------------------------------------------

OWN_USERS = 1_879_048_192
"""First of the user numbers that no distribution, systemd or subuid range gives to anybody (systemd's UIDS-GIDS)."""
NOBODY = 65534
_OVERRIDE, _READ_ANY, _KILL_ANY = 1, 2, 5  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_KILL
_CAPABILITIES_3, _CLEAR_ALL = 0x20080522, 4
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000


def give_up_rights(*, own_user: bool = True) -> list[str]:
    """Give up what the machine allows to be given up: network and IPC, the user where that is root, capabilities.

    Names what was: NAMESPACES, OWN_USER. Root's child keeps one capability, to read what root may read, for its folders may be
    closed to others. Not with ``own_user``, for file systems that know no capabilities (FUSE, NFS): it stays root, without
    root's other rights.
    """
    root = os.geteuid() == 0
    held = _capabilities() if root else 0
    kept = next((1 << name for name in (_READ_ANY, _OVERRIDE) if held & 1 << name), 0)
    taken = [NAMESPACES] if _leave_network(root) else []
    # A daemon that may not end another user's process could not end its reader.
    may_change = own_user and kept and held & 1 << _KILL_ANY
    # A container may have no name for the first.
    if may_change and _become(OWN_USERS + os.getpid(), NOBODY):
        taken.append(OWN_USER)
    _keep_capabilities(kept)
    return taken


def _leave_network(root: bool) -> bool:
    """By a user namespace where this takes one. Rights over files stay: they go by the user outside."""
    wanted = _CLONE_NEWIPC | _CLONE_NEWNET | (0 if root else _CLONE_NEWUSER)
    return bool(ctypes.CDLL(None, use_errno=True).unshare(wanted) == 0)


def _become(*users: int) -> bool:
    """The first of these users that there is, with the group of that number; the capabilities can be kept, by one more step."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0:
        return False
    groups, group = os.getgroups(), os.getgid()
    for number in users:
        try:
            os.setgroups([])
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
        except OSError:
            with suppress(OSError):
                os.setresgid(group, group, group)
                os.setgroups(groups)
            continue
        return True
    return False


def _keep_capabilities(kept: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    library.capset(struct.pack("=Ii", _CAPABILITIES_3, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _capabilities() -> int:
    """The first 32 of those that are permitted, as bits."""
    header, held = struct.pack("=Ii", _CAPABILITIES_3, 0), ctypes.create_string_buffer(24)
    if ctypes.CDLL(None, use_errno=True).capget(header, held) != 0:
        return 0
    return int(struct.unpack("=6I", held.raw)[1])


# --- Landlock ------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file system rights that each version of the interface knows; the last one holds for later versions."""
_NETWORK_RIGHTS, _SCOPES = 0b11, 0b11  # bind and connect (version 4); abstract sockets and signals (version 6)


def landlock_version() -> int:
    """Version of the kernel's Landlock interface; 0 where there is none."""
    return max(0, int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)))


def ruleset_attributes(version: int) -> bytes:
    """struct landlock_ruleset_attr: everything that this version can take away is taken away."""
    rights = (1 << _FS_RIGHTS[min(version, max(_FS_RIGHTS))]) - 1
    if version < 4:
        return struct.pack("Q", rights)
    if version < 6:
        return struct.pack("QQ", rights, _NETWORK_RIGHTS)
    return struct.pack("QQQ", rights, _NETWORK_RIGHTS, _SCOPES)


def allow_reading_only(folders: Iterable[Path]) -> bool:
    """From now on this process opens files below ``folders`` only, and for reading only; False where the kernel cannot.

    Descriptors that are open already stay usable. Folders that are absent are passed over.
    """
    version = landlock_version()
    if version == 0:
        return False
    library = ctypes.CDLL(None, use_errno=True)
    attributes = ruleset_attributes(version)
    rules = library.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if rules < 0:
        return False
    try:
        added = all(_add_rule(library, rules, folder) for folder in folders)
        return added and library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and library.syscall(_RESTRICT_SELF, rules, 0) == 0
    finally:
        os.close(rules)


def _add_rule(library: ctypes.CDLL, rules: int, folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True  # nothing there, nothing to allow
    try:
        rule = struct.pack("=Qi", _READ_FILE | _READ_DIR, handle)
        return bool(library.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0) == 0)
    finally:
        os.close(handle)


def program_folders(package: Path) -> Sequence[Path]:
    """Where Python, its packages and the system's libraries lie: later imports read there. ``package``: that of wbcd."""
    names = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places = {Path(name) for name in names if name}
    places |= {Path(prefix) / "lib" for prefix in (sys.prefix, sys.base_prefix)}
    # Packages of a virtual environment and of the system; a project's own folder on the path holds more than code.
    places |= {Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")}
    return [package, *sorted(places), *map(Path, ("/usr/lib", "/usr/lib64", "/lib", "/lib64"))]
