"""What the kernel takes away from the isolated reader: network, other processes, writing, and files outside its folder.

Two mechanisms, both without privileges and kept by whatever code runs afterwards, a hostile file's too:

- a seccomp filter (seccomp(2)) answers the system calls of ``DENIED`` with an error: sockets, programs, processes, signals to
  others, every way to write to a path;
- Landlock (landlock(7), Linux 5.13 and later) lets files be opened below the given folders only, whatever links say.

Neither is in the standard library; both are a few system calls through ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

SECCOMP, LANDLOCK = "seccomp", "landlock"

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_MACHINES = ("x86_64", "aarch64")
_X32_BIT = 0x40000000

# System call numbers (x86_64, aarch64); None where the machine has no such call.
DENIED: dict[str, tuple[int | None, int]] = {
    # the network, and rings that could make sockets unseen
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # programs and other processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    # writing to a path
    "truncate": (76, 45),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "linkat": (265, 37),
    "symlinkat": (266, 36),
    "mknodat": (259, 33),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    # the system, and more rights
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "capset": (126, 91),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setgroups": (116, 159),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
}
# Older names of some of the above, which aarch64 never had.
_DENIED_X86 = (
    *(57, 58),  # fork, vfork
    *(85, 82, 83, 84, 87, 86, 88, 133),  # creat, rename, mkdir, rmdir, unlink, link, symlink, mknod
    *(90, 92, 94, 132, 235, 261),  # chmod, chown, lchown, utime, utimes, futimesat
    *(113, 114, 172, 173),  # setreuid, setregid, iopl, ioperm
)
# Those told apart by an argument, and those that glibc or Python do without when they are absent.
_OPEN, _OPENAT, _OPENAT2 = (2, None), (257, 56), (437, 437)
_CLONE, _CLONE3 = (56, 220), (435, 435)
_SOCKETPAIR, _TGKILL, _PRLIMIT64 = (53, 199), (234, 131), (302, 261)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000
_AF_UNIX = _SOCK_STREAM = 1

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06

Instruction = tuple[int, int, int, int]
"""Operation, jump when true, jump when false, operand: a BPF instruction."""


# --- seccomp -------------------------------------------------------------------------------------


def _argument(index: int) -> int:
    """Offset of the low half of an argument in struct seccomp_data, little-endian."""
    return 16 + 8 * index


def _refuse(number: int, code: int = errno.EPERM) -> list[Instruction]:
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | code)]


def _only_if(number: int, *tests: Instruction) -> list[Instruction]:
    """Allow call ``number`` when every test jumps 0 on; refuse it otherwise. Tests that are loads always go on."""
    body: list[Instruction] = []
    for index, (operation, _, _, operand) in enumerate(tests):
        to_refusal = len(tests) - index  # over the remaining tests and the allowance
        plain = operation in (_LOAD, _AND)
        body.append((operation, 0, 0 if plain else to_refusal, operand))
    return [(_EQUAL, 0, len(body) + 2, number), *body, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


def _unless_bits(number: int, argument: int, bits: int) -> list[Instruction]:
    """Refuse call ``number`` when any of ``bits`` is set in the argument."""
    return [
        (_EQUAL, 0, 3, number),
        (_LOAD, 0, 0, _argument(argument)),
        (_ANY_BIT, 0, 1, bits),
        (_RETURN, 0, 0, _ERRNO | errno.EACCES),
        (_LOAD, 0, 0, 0),  # the number again, for what follows
    ]


def filter_program(machine: str, pid: int) -> list[Instruction]:
    """The BPF program for ``machine`` ("x86_64" or "aarch64"); ``pid``: the only process that may be signalled.

    Raises KeyError for another machine.
    """
    column = _MACHINES.index(machine) if machine in _MACHINES else None
    if column is None:
        raise KeyError(machine)
    program: list[Instruction] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT_ARCH[machine]), (_RETURN, 0, 0, _KILL)]
    program += [(_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    for numbers in DENIED.values():
        number = numbers[column]
        program += _refuse(number) if number is not None else []
    if machine == "x86_64":
        for number in _DENIED_X86:
            program += _refuse(number)
        program += _unless_bits(int(_OPEN[0] or 0), 1, _WRITING)
    # openat2 and clone3 hide their flags behind a pointer: as if the kernel were older, so that the plain ones are used.
    program += _refuse(_OPENAT2[column], errno.ENOSYS) + _refuse(_CLONE3[column], errno.ENOSYS)
    program += _unless_bits(_OPENAT[column], 2, _WRITING)
    program += _only_if(_CLONE[column], (_LOAD, 0, 0, _argument(0)), (_ANY_BIT, 0, 0, _CLONE_THREAD))
    # asyncio's own pipe; a stream pair cannot be turned to another address.
    program += _only_if(
        _SOCKETPAIR[column],
        (_LOAD, 0, 0, _argument(0)),
        (_EQUAL, 0, 0, _AF_UNIX),
        (_LOAD, 0, 0, _argument(1)),
        (_AND, 0, 0, 0xF),
        (_EQUAL, 0, 0, _SOCK_STREAM),
    )
    program += _only_if(_TGKILL[column], (_LOAD, 0, 0, _argument(0)), (_EQUAL, 0, 0, pid))  # abort() must still end us
    program += _only_if(_PRLIMIT64[column], (_LOAD, 0, 0, _argument(0)), (_EQUAL, 0, 0, 0))
    return [*program, (_RETURN, 0, 0, _ALLOW)]


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
    whole = _Program(len(program), ctypes.addressof(held))
    return bool(library.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(whole), 0, 0) == 0)


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
