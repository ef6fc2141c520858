"""The filter of system calls, run here as the kernel runs it: every call of both machines, and the arguments that decide."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from wbcd.acquisition import calls

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4321
ALLOW, KILL = "allow", "kill"
# (x86_64, aarch64)
CLONE, PRCTL, FCNTL, IOCTL, FLOCK = (56, 220), (157, 167), (72, 25), (16, 29), (73, 32)
OPENAT, SOCKETPAIR, TGKILL, PRLIMIT = (257, 56), (53, 199), (234, 131), (302, 261)
JUDGED = {CLONE, PRCTL, FCNTL, IOCTL, FLOCK, OPENAT, SOCKETPAIR, TGKILL, PRLIMIT}
PTHREAD = 0x3D0F00


def decide(machine: str, number: int, *arguments: int, arch: int | None = None) -> str | int:
    """What the program answers: "allow", "kill" or an error number."""
    program = calls.filter_program(machine, PID)
    words = {0: number, 4: ARCH[machine] if arch is None else arch}
    for index, value in enumerate(arguments):
        words[16 + 8 * index] = value & 0xFFFFFFFF
    at, held = 0, 0
    while True:
        operation, yes, no, operand = program[at]
        at += 1
        if operation == 0x06:
            return {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(operand & 0xFFFF0000) or operand & 0xFFFF
        if operation == 0x20:
            held = words.get(operand, 0)
        elif operation == 0x54:
            held &= operand
        else:
            true = {0x15: held == operand, 0x35: held >= operand, 0x45: bool(held & operand)}[operation]
            at += yes if true else no


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_call_is_allowed_by_name_judged_or_refused(machine: str) -> None:
    column = calls.MACHINES.index(machine)
    allowed = {numbers[column] for numbers in calls.ALLOWED.values()}
    judged = {numbers[column] for numbers in JUDGED} | ({2} if machine == "x86_64" else set())
    assert not allowed & judged
    for number in range(700):
        if number in judged:
            continue
        wanted = ALLOW if number in allowed else errno.ENOSYS if number >= 424 else errno.EPERM
        assert decide(machine, number) == wanted, number


def test_calls_of_another_architecture_end_the_process_and_those_of_x32_are_absent(machine: str) -> None:
    assert decide(machine, 0, arch=0x40000003) == KILL  # i386
    assert decide(machine, 0x40000000 | 0) == errno.ENOSYS
    with pytest.raises(KeyError):
        calls.filter_program("riscv64", 1)


def test_no_jump_leaves_the_program_and_it_is_short_enough(machine: str) -> None:
    program = calls.filter_program(machine, PID)
    assert len(program) < 4096  # BPF_MAXINSNS
    for index, (operation, yes, no, _) in enumerate(program):
        assert max(yes, no) < 256
        if operation in (0x15, 0x35, 0x45):
            assert index + 1 + max(yes, no) < len(program)
    assert program[-1] == (0x06, 0, 0, 0x00050000 | errno.EPERM)


@pytest.mark.parametrize(
    ("call", "arguments", "wanted"),
    [
        (CLONE, (PTHREAD,), ALLOW),
        (CLONE, (PTHREAD | 0x400000,), ALLOW),  # musl
        (CLONE, (17,), errno.EPERM),  # fork
        (CLONE, (0x4111,), errno.EPERM),  # vfork
        (CLONE, (PTHREAD | 0x00020000,), errno.EPERM),  # mounts
        (CLONE, (PTHREAD | 0x10000000,), errno.EPERM),  # users
        (CLONE, (PTHREAD | 0x40000000,), errno.EPERM),  # network
        (CLONE, (PTHREAD | 0x2000,), errno.EPERM),  # traced
        (CLONE, (PTHREAD | 0x1000,), errno.EPERM),  # a pidfd
        (CLONE, (PTHREAD & ~0x10000,), errno.EPERM),
        (PRCTL, (38,), ALLOW),
        (PRCTL, (15,), ALLOW),
        (PRCTL, (22,), errno.EPERM),  # another filter
        (PRCTL, (0x59616D61,), errno.EPERM),  # Yama: who may trace us
        (PRCTL, (4,), errno.EPERM),  # dumpable
        (PRCTL, (62,), errno.EPERM),  # core scheduling
        (FCNTL, (3, 1030), ALLOW),
        (FCNTL, (3, 1033), ALLOW),
        (FCNTL, (3, 4), errno.EPERM),  # F_SETFL: O_ASYNC, and O_NONBLOCK of what is shared
        (FCNTL, (3, 8), errno.EPERM),  # F_SETOWN
        (FCNTL, (3, 10), errno.EPERM),  # F_SETSIG
        (FCNTL, (3, 15), errno.EPERM),  # F_SETOWN_EX
        (FCNTL, (3, 6), errno.EPERM),  # F_SETLK
        (FCNTL, (3, 1024), errno.EPERM),  # F_SETLEASE
        (FCNTL, (3, 1026), errno.EPERM),  # F_NOTIFY
        (IOCTL, (0, 0x5401), ALLOW),
        (IOCTL, (0, 0x5421), ALLOW),
        (IOCTL, (0, 0x5412), errno.EPERM),  # TIOCSTI
        (IOCTL, (0, 0x5452), errno.EPERM),  # FIOASYNC
        (IOCTL, (0, 0x8901), errno.EPERM),  # FIOSETOWN
        (IOCTL, (0, 0x8902), errno.EPERM),  # SIOCSPGRP
        (IOCTL, (0, 0x40086602), errno.EPERM),  # FS_IOC_SETFLAGS
        (FLOCK, (3, 5), ALLOW),
        (FLOCK, (3, 8), ALLOW),
        (FLOCK, (3, 6), errno.EPERM),
        (OPENAT, (-100, 0, 0o2000000), ALLOW),
        (OPENAT, (-100, 0, 1), errno.EACCES),
        (OPENAT, (-100, 0, 2), errno.EACCES),
        (OPENAT, (-100, 0, 0o100), errno.EACCES),
        (OPENAT, (-100, 0, 0o1000), errno.EACCES),
        (SOCKETPAIR, (1, 1 | 0o2000000), ALLOW),
        (SOCKETPAIR, (1, 2), errno.EPERM),
        (SOCKETPAIR, (2, 1), errno.EPERM),
        (TGKILL, (PID, 1, 6), ALLOW),
        (TGKILL, (PID + 1, 1, 6), errno.EPERM),
        (PRLIMIT, (0, 0), ALLOW),
        (PRLIMIT, (PID, 0), errno.EPERM),
    ],
)
def test_arguments_decide(machine: str, call: tuple[int, int], arguments: tuple[int, ...], wanted: str | int) -> None:
    assert decide(machine, call[calls.MACHINES.index(machine)], *arguments) == wanted


@pytest.mark.parametrize("name", ["asm/unistd_64.h", "asm-generic/unistd.h"])
def test_the_numbers_are_the_kernels(name: str) -> None:
    places = [Path("/usr/include") / name, *Path("/usr/include").glob(f"*/{name}")]
    header = next((place for place in places if place.is_file()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    known = {key: int(value) for key, value in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)\b", header.read_text())}
    column = 1 if "generic" in name else 0
    for call, numbers in calls.ALLOWED.items():
        found = known.get(call, known.get({"newfstatat": "fstatat"}.get(call, "")))
        if found is None and (numbers[column] or 0) >= 424:
            continue  # headers older than the call
        assert found == numbers[column], call
