"""The system calls that the isolated reader may make, and the BPF program that refuses every other one (seccomp(2)).

What is in ``ALLOWED`` was seen by tests/fuzz/count_calls.py while the real child read every format, or is what the same
functions of glibc, CPython or HDF5 use on another machine or in another version. It reads, has memory, threads and the time,
and talks on the sockets that it was given. A call that is not here is refused:

- with ENOSYS ("the kernel has no such call") where it is newer than Linux 5.1, known to us or not: libraries try such calls and
  fall back to older ones, which are judged here. clone3 and openat2 are among them: their flags lie behind a pointer, where no
  filter can look;
- with EPERM where it is older: nothing falls back, and the message says what happened;
- the process is killed for a call of another architecture only: its numbers mean other calls.

No list can be left behind by a new kernel: what it adds is refused until it is written here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

MACHINES = ("x86_64", "aarch64")
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # reading and writing what is open: only memory files and the channel are open for writing
    "read": (0, 63),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "close": (3, 57),
    "readv": (19, 65),
    "preadv": (295, 69),
    "preadv2": (327, 286),
    "write": (1, 64),
    "writev": (20, 66),
    "pwrite64": (18, 68),
    "pwritev": (296, 70),
    "ftruncate": (77, 46),
    "fadvise64": (221, 223),
    "memfd_create": (319, 279),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "close_range": (436, 436),
    # looking at files and folders
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "stat": (4, None),
    "lstat": (6, None),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents": (78, None),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    # memory
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    # threads, and waiting
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "gettid": (186, 178),
    "getcpu": (309, 168),
    "arch_prctl": (158, None),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "restart_syscall": (219, 128),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    "eventfd2": (290, 19),
    "pipe2": (293, 59),
    # how its own signals are handled; whom it may send one, TGKILL says
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    # time, chance, and questions that change nothing
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "capget": (125, 90),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    # on the channel, and on the pair that asyncio wakes itself by; no call makes another socket
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "getsockopt": (55, 209),
    # these only take rights away
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
"""Numbers on (x86_64, aarch64), whatever the arguments; None where the machine has no such call."""

FIRST_NEW_CALL = 424
"""From here on (Linux 5.1) all machines number alike, and libraries know that a call may be absent."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OPEN, _OPENAT = (2, None), (257, 56)

_CLONE = (56, 220)
_CLONE_THREAD = 0x00010000
# A thread as C libraries make it: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID, DETACHED,
# CHILD_SETTID.
_THREAD_FLAGS = (
    0x00000100 | 0x200 | 0x400 | 0x800 | _CLONE_THREAD | 0x40000 | 0x80000 | 0x100000 | 0x200000 | 0x400000 | 0x1000000
)

_PRCTL = (157, 167)
# SET_NAME, GET_NAME, CAPBSET_READ, SET_NO_NEW_PRIVS, GET_NO_NEW_PRIVS, SET_VMA (a name for memory)
_PRCTL_OPTIONS = (15, 16, 23, 38, 39, 0x53564D41)

_FCNTL = (72, 25)
# F_DUPFD, GETFD, SETFD, GETFL, DUPFD_CLOEXEC, ADD_SEALS, GET_SEALS. Not F_SETOWN, F_SETOWN_EX, F_SETSIG, F_NOTIFY and O_ASYNC,
# which make the kernel send signals, nor leases and locks, which hold up those who write the file.
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030, 1033, 1034)
_FLOCK, _LOCK_EX = (73, 32), 2  # HDF5 takes a shared lock of what it reads

_IOCTL = (16, 29)
# TCGETS and TCGETS2 (is it a terminal?), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Not FIOASYNC, FIOSETOWN, SIOCSPGRP,
# which make the kernel send signals, nor TIOCSTI, which types into a terminal.
_IOCTL_REQUESTS = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

_SOCKETPAIR, _AF_UNIX, _SOCK_STREAM = (53, 199), 1, 1
_TGKILL, _PRLIMIT64 = (234, 131), (302, 261)

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_WORD = 0xFFFFFFFF

Instruction = tuple[int, int, int, int]
"""Operation, jump when true, jump when false, operand: a BPF instruction."""


def filter_program(machine: str, pid: int) -> list[Instruction]:
    """The BPF program for ``machine`` ("x86_64" or "aarch64"); ``pid``: the only process that may be signalled.

    Raises KeyError for another machine.
    """
    if machine not in MACHINES:
        raise KeyError(machine)
    column = MACHINES.index(machine)
    program: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
    ]
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += _judged_by_argument(column, pid)
    program += [(_AT_LEAST, 0, 1, FIRST_NEW_CALL), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]  # x32 calls of x86_64 too
    return [*program, (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


def _judged_by_argument(column: int, pid: int) -> list[Instruction]:
    """Only the low half of an argument is looked at: all of these are 32 bits wide to the kernel."""
    rules = [
        _no_bit(_OPENAT[column], 2, _WRITING, code=errno.EACCES),
        _one_of(_FCNTL[column], 1, _FCNTL_COMMANDS),
        _one_of(_IOCTL[column], 1, _IOCTL_REQUESTS),
        _one_of(_PRCTL[column], 0, _PRCTL_OPTIONS),
        _no_bit(_FLOCK[column], 1, _LOCK_EX),
        _only_if(
            _CLONE[column], _load(0), (_ANY_BIT, 0, 0, _CLONE_THREAD), (_AND, 0, 0, _WORD ^ _THREAD_FLAGS), (_EQUAL, 0, 0, 0)
        ),
        # a stream pair cannot be turned to another address
        _only_if(
            _SOCKETPAIR[column],
            *(_load(0), (_EQUAL, 0, 0, _AF_UNIX)),
            *(_load(1), (_AND, 0, 0, 0xF), (_EQUAL, 0, 0, _SOCK_STREAM)),
        ),
        _one_of(_TGKILL[column], 0, (pid,)),  # abort() must still end us
        _one_of(_PRLIMIT64[column], 0, (0,)),
    ]
    if (old_open := _OPEN[column]) is not None:
        rules.append(_no_bit(old_open, 1, _WRITING, code=errno.EACCES))
    return [step for rule in rules for step in rule]


def _load(argument: int) -> Instruction:
    """The low half of an argument in struct seccomp_data, little-endian."""
    return (_LOAD, 0, 0, 16 + 8 * argument)


def _only_if(number: int, *tests: Instruction, code: int = errno.EPERM) -> list[Instruction]:
    """Allow call ``number`` when every test is true, refuse it otherwise. Loads and masks always go on."""
    body: list[Instruction] = []
    for index, (operation, _, _, operand) in enumerate(tests):
        to_refusal = len(tests) - index  # over the remaining tests and the allowance
        body.append((operation, 0, 0 if operation in (_LOAD, _AND) else to_refusal, operand))
    return [(_EQUAL, 0, len(body) + 2, number), *body, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | code)]


def _no_bit(number: int, argument: int, bits: int, *, code: int = errno.EPERM) -> list[Instruction]:
    """Allow call ``number`` when none of ``bits`` is set in the argument."""
    return _only_if(number, _load(argument), (_AND, 0, 0, bits), (_EQUAL, 0, 0, 0), code=code)


def _one_of(number: int, argument: int, values: Sequence[int]) -> list[Instruction]:
    """Allow call ``number`` when the argument is one of ``values``."""
    matches: list[Instruction] = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    refusal, allowance = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    return [(_EQUAL, 0, len(values) + 3, number), _load(argument), *matches, refusal, allowance]
