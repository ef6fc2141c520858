"""A reader that a hostile file has taken over, as root, against another process: tried inside the real child, call by call.

Each wall is tried alone too: the filter of system calls where Landlock is absent or old and the user is still root, and the
user of its own where there is no filter.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_acquisition import OPTICS, holograms, ri_volume, tcf_file, wbcd_file

from wbcd.acquisition import IsolatedReader, identify, isolate, read, sandbox
from wbcd.errors import InputError
from wbcd.records import HologramStack
from wbcd.simulation.files import write_mat, write_ome_zarr_ri, write_tiff_pair

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the filter knows two machines")

# In place of the reader's own `read`: tries each call on the process whose number lies beside the file; answers with the error
# number of each try (0: it worked). {switch} takes a wall away, as on an older kernel. With all walls gone too, nobody but the
# victim is touched: what concerns the whole machine is asked with an argument that makes it fail otherwise than by a refusal.
SPY = """
import ctypes, errno, fcntl, json, os, platform, signal, socket, struct, sys
import wbcd.acquisition.child as child
from wbcd.errors import InputError
s = child.sandbox

NUMBERS = dict(
    kill=(62, 129), tkill=(200, 130), tgkill=(234, 131), rt_sigqueueinfo=(129, 138), rt_tgsigqueueinfo=(297, 240),
    pidfd_open=(434, 434), pidfd_send_signal=(424, 424), pidfd_getfd=(438, 438), process_madvise=(440, 440),
    process_mrelease=(448, 448), ptrace=(101, 117), process_vm_readv=(310, 270), process_vm_writev=(311, 271), kcmp=(312, 272),
    setpriority=(141, 140), sched_setaffinity=(203, 122), sched_setscheduler=(144, 119), sched_setparam=(142, 118),
    sched_setattr=(314, 274), ioprio_set=(251, 30), prlimit64=(302, 261), migrate_pages=(256, 238), move_pages=(279, 239),
    setpgid=(109, 154), perf_event_open=(298, 241), bpf=(321, 280), keyctl=(250, 219), add_key=(248, 217),
    io_uring_setup=(425, 425), userfaultfd=(323, 282), clone3=(435, 435), openat2=(437, 437), unshare=(272, 97),
    clone=(56, 220), personality=(135, 92), seccomp=(317, 277), socket=(41, 198), memfd_secret=(447, 447), acct=(163, 89),
    setns=(308, 268), sethostname=(170, 161), mount=(165, 40), unknown=(1999, 1999), fanotify_init=(300, 262),
    inotify_init1=(294, 26), swapon=(167, 224), shmget=(29, 194), mq_open=(240, 180),
    timer_create=(222, 107), syslog=(103, 116), quotactl=(179, 60), vmsplice=(278, 75), splice=(275, 76), setuid=(105, 146),
    capset=(126, 91), mlockall=(151, 230),
)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(name, *arguments):
    number = NUMBERS[name][platform.machine() == "aarch64"]
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments] + [ctypes.c_long(0)] * (6 - len(arguments))
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *converted) < 0 else 0

def done(action):
    try:
        action()
    except OSError as error:
        return error.errno
    return 0

def async_owner(victim, how):
    # the kernel signals the owner when something can be read: the socket's, as one asked
    ours, theirs = socket.socketpair()
    how(ours)
    fcntl.ioctl(ours, 0x5452, struct.pack("i", 1))  # FIOASYNC
    theirs.send(b"x")

def spy(acquisition, **_):
    victim = int((acquisition.path.parent / "victim").read_text())
    one, ten = ctypes.byref(ctypes.c_long(1)), ctypes.byref(ctypes.c_int(10))
    info = ctypes.create_string_buffer(struct.pack("=iii", signal.SIGUSR1, 0, -1).ljust(128, b"\\0"))
    sched = ctypes.create_string_buffer(struct.pack("=IIQiIQQQ", 48, 3, 0, 0, 0, 0, 0, 0))
    vector = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(info), 8))
    limit = ctypes.create_string_buffer(struct.pack("=QQ", 4096, 4096))
    NEWNS, NO_ONE = 0x00020000, 0x3FFFFFFF
    found = dict(
        kill=call("kill", victim, signal.SIGUSR1),
        tkill=call("tkill", victim, signal.SIGUSR1),
        tgkill=call("tgkill", victim, victim, signal.SIGUSR1),
        rt_sigqueueinfo=call("rt_sigqueueinfo", victim, signal.SIGUSR1, info),
        rt_tgsigqueueinfo=call("rt_tgsigqueueinfo", victim, victim, signal.SIGUSR1, info),
        F_SETOWN=done(lambda: async_owner(victim, lambda s: fcntl.fcntl(s, 8, victim))),
        F_SETOWN_EX=done(lambda: async_owner(victim, lambda s: fcntl.fcntl(s, 15, struct.pack("ii", 1, victim)))),
        FIOSETOWN=done(lambda: async_owner(victim, lambda s: fcntl.ioctl(s, 0x8901, struct.pack("i", victim)))),
        SIOCSPGRP=done(lambda: async_owner(victim, lambda s: fcntl.ioctl(s, 0x8902, struct.pack("i", victim)))),
        pidfd_open=call("pidfd_open", victim, 0),
        pidfd_send_signal=call("pidfd_send_signal", 3, signal.SIGUSR1, 0, 0),
        pidfd_getfd=call("pidfd_getfd", 3, 0, 0),
        process_madvise=call("process_madvise", 3, vector, 1, 21, 0),
        process_mrelease=call("process_mrelease", 3, 0),
        ptrace=call("ptrace", 0x4206, victim, 0, 0),
        process_vm_readv=call("process_vm_readv", victim, vector, 1, vector, 1, 0),
        process_vm_writev=call("process_vm_writev", victim, vector, 1, vector, 1, 0),
        kcmp=call("kcmp", victim, victim, 0, 0, 0),
        setpriority=call("setpriority", 0, victim, 7),
        setpriority_of_a_group=call("setpriority", 1, NO_ONE, 7),
        setpriority_of_a_user=call("setpriority", 2, NO_ONE, 7),
        sched_setaffinity=call("sched_setaffinity", victim, 8, one),
        sched_setscheduler=call("sched_setscheduler", victim, 3, ctypes.byref(ctypes.c_int(0))),
        sched_setparam=call("sched_setparam", victim, ctypes.byref(ctypes.c_int(0))),
        sched_setattr=call("sched_setattr", victim, sched, 0),
        ioprio_set=call("ioprio_set", 1, victim, (2 << 13) | 7),
        prlimit64=call("prlimit64", victim, 7, limit, 0),
        own_limit_raised=call("prlimit64", 0, 7, limit, 0),
        migrate_pages=call("migrate_pages", victim, 64, one, one),
        move_pages=call("move_pages", victim, 0, 0, 0, 0, 0),
        setpgid=call("setpgid", victim, 0),
        perf_event_open=call("perf_event_open", sched, victim, -1, -1, 0),
        bpf=call("bpf", 0, info, 128),
        keyctl=call("keyctl", 0, -3, 0),
        add_key=call("add_key", b"wbcd-none", b"x", b"y", 1, -3),
        io_uring_setup=call("io_uring_setup", 1, info),
        userfaultfd=call("userfaultfd", 1),
        clone3=call("clone3", info, 64),
        openat2=call("openat2", -100, b"/", info, 24),
        unshare=call("unshare", NEWNS),
        new_user=call("unshare", 0x10000000),
        setns=call("setns", 0, 0),
        clone_process=call("clone", 0x00010000 | 0x20000000, 0),
        clone_thread_in_namespace=call("clone", 0x00010F00 | NEWNS, 0),
        clone_vfork=call("clone", 0x4800, 0),
        personality=call("personality", 0x0400000),
        seccomp=call("seccomp", 3, 0, 0),
        socket=call("socket", 1, 1, 0),
        packet_socket=call("socket", 17, 3, 0),
        memfd_secret=call("memfd_secret", 0),
        acct=call("acct", b"/wbcd-none"),
        sethostname=call("sethostname", b"x", 1000),
        mount=call("mount", b"x", b"/", b"wbcd-none", 0, 0),
        unknown=call("unknown"),
        fanotify_init=call("fanotify_init", 0, 0),
        inotify_init1=call("inotify_init1", 0),
        shmget=call("shmget", NO_ONE, 4096, 0),
        mq_open=call("mq_open", b"wbcd-none", 0, 0, 0),
        timer_create=call("timer_create", 0, 0, info),
        syslog=call("syslog", 10, 0, 0),
        swapon=call("swapon", b"/wbcd-none", 0),
        quotactl=call("quotactl", 0, 0, 0, 0),
        vmsplice=call("vmsplice", 1, vector, 1, 0),
        splice=call("splice", 0, 0, 1, 0, 0, 0),
        setuid=call("setuid", 0),
        capset=call("capset", info, info),
        mlockall=call("mlockall", 1),
        memory_of_another=done(lambda: open(f"/proc/{victim}/mem", "rb").close()),
        lease=done(lambda: fcntl.fcntl(os.open(acquisition.path, os.O_RDONLY), 1024, 1)),
        exclusive_lock=done(lambda: fcntl.flock(os.open(acquisition.path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)),
        notify=done(lambda: fcntl.fcntl(os.open(acquisition.path.parent, os.O_RDONLY), 1026, 2)),
        stdin_to_the_terminal=done(lambda: fcntl.ioctl(0, 0x5412, b"x")),
    )
    raise InputError(json.dumps(found))

{switch}
child.read = spy
sys.exit(child.main(sys.argv[1:]))
"""

LANDLOCK = {
    "landlock as it is": "",
    "landlock 5, without scopes": "s.landlock_version = lambda: min(5, {here})",
    "landlock 1": "s.landlock_version = lambda: min(1, {here})",
    "no landlock": "s.landlock_version = lambda: 0",
}
ROOT = "s.give_up_rights = lambda **_: []"
NO_FILTER = "s.deny_system_calls = lambda: False"
REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS}
VICTIM = "import sys; print('up', flush=True); sys.stdin.read()"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this to others at all")


class Victim:
    """Another process of the same user, and what can be done to it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def state(self) -> dict[str, Any]:
        pid = self.process.pid
        return {
            "ended": self.process.poll(),
            "nice": os.getpriority(os.PRIO_PROCESS, pid),
            "affinity": os.sched_getaffinity(pid),
            "scheduler": os.sched_getscheduler(pid),
            "group": os.getpgid(pid),
            "limits": Path(f"/proc/{pid}/limits").read_text(),
            "pending": [
                line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(("SigP", "Shd"))
            ],
            "io": subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True).stdout
            if shutil.which("ionice")
            else None,
        }

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def victim() -> Iterator[Victim]:
    other = Victim()
    yield other
    other.close()


def attacked(folder: Path, victim: Victim, switches: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What a taken-over child with these walls taken away could do to the victim: error numbers by name."""
    path = wbcd_file(folder / "w" / "a.h5")
    (path.parent / "victim").write_text(str(victim.process.pid))
    switch = "\n".join(switches).replace("{here}", str(sandbox.landlock_version()))
    monkeypatch.setattr(isolate, "_PROGRAM", ("-c", SPY.replace("{switch}", switch)))
    with IsolatedReader(root=path.parent) as reader, pytest.raises(InputError) as caught:
        reader.read(identify(path))
    assert caught.type is InputError, caught.value.message
    found: dict[str, int] = json.loads(caught.value.message)
    return found


@pytest.mark.parametrize("user", ["", ROOT], ids=["own user", "the daemon's user"])
@pytest.mark.parametrize("landlock", list(LANDLOCK))
def test_nothing_can_be_done_to_another_process(
    tmp_path: Path, victim: Victim, landlock: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = victim.state()
    found = attacked(tmp_path, victim, [LANDLOCK[landlock], user], monkeypatch)
    if user and os.geteuid() == 0:
        found.pop("own_limit_raised")  # root's limits hold no root: that is what the own user is for
        if landlock == "no landlock":
            found.pop("memory_of_another")  # nor is a file of root's: nothing else hides it from root
    assert {name: code for name, code in found.items() if code not in REFUSALS} == {}
    assert found["unknown"] == found["clone3"] == found["openat2"] == errno.ENOSYS  # libraries fall back to what is judged
    assert found["setpriority"] == found["kill"] == found["fanotify_init"] == errno.EPERM
    assert victim.state() == before


TO_OTHERS = [
    *("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"),
    *("setpriority", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr", "ioprio_set", "prlimit64"),
    *("memory_of_another", "ptrace", "process_vm_readv", "own_limit_raised", "mount", "sethostname", "unshare", "swapon"),
]


@needs_root
def test_the_own_user_alone_keeps_others_safe(tmp_path: Path, victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the filter have a hole: the kernel itself refuses what one user may not do to another."""
    before = victim.state()
    found = attacked(tmp_path, victim, [LANDLOCK["no landlock"], NO_FILTER], monkeypatch)
    assert {name: found[name] for name in TO_OTHERS if found[name] not in REFUSALS} == {}
    assert victim.state() == before  # the owner of a descriptor can be set, yet no signal comes


@needs_root
def test_without_walls_these_tries_do_work(tmp_path: Path, victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would show nothing."""
    harmless = "signal.SIGUSR1 = 0; async_owner = lambda *_: None"  # no signal, only the question whether one may be sent
    switches = [LANDLOCK["no landlock"], ROOT, NO_FILTER, harmless]
    found = attacked(tmp_path, victim, switches, monkeypatch)
    worked = {name for name in TO_OTHERS if found[name] == 0}
    expected = {"kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "setpriority", "sched_setaffinity"}
    assert worked >= expected | {"sched_setscheduler", "sched_setattr", "ioprio_set", "prlimit64"}
    assert victim.state()["scheduler"] == os.SCHED_BATCH
    attacked(tmp_path, victim, [*switches[:3], "call = lambda *_: 0"], monkeypatch)
    assert victim.process.wait(10) == -signal.SIGIO  # by the owner of a socket alone


# --- what it must still be able to do ------------------------------------------------------------


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, Path]:
    stack = holograms(5, 64, reference=True)
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    write_mat(folder / "bg001_Tomog.mat", stack.reference, OPTICS)
    return {
        "h5": wbcd_file(folder / "a.h5", stack),
        "tcf": tcf_file(folder / "a.TCF", [ri_volume(), ri_volume(seed=2)]),
        "tiff": write_tiff_pair(folder, "cell", stack),
        "mat": write_mat(folder / "sample001_Tomog.mat", stack.holograms, OPTICS),
        "zarr 0.5": write_ome_zarr_ri(folder / "a.zarr", ri_volume(), (0.2, 0.1, 0.1)),
        "zarr 0.4": write_ome_zarr_ri(folder / "b.zarr", ri_volume(), (0.2, 0.1, 0.1), version="0.4"),
    }


def arrays(payload: Any) -> list[np.ndarray]:
    if isinstance(payload, HologramStack):
        return [payload.holograms, *([] if payload.reference is None else [payload.reference])]
    return [tomogram.ri for tomogram in payload]


def test_every_format_gives_the_numbers_that_it_gives_without_the_sandbox(samples: dict[str, Path]) -> None:
    """From files and folders that only their owner may read."""
    for path in samples.values():
        path.chmod(0o700 if path.is_dir() else 0o600)
    with IsolatedReader() as reader:
        for name, path in samples.items():
            _, isolated = reader.read(identify(path))
            found = arrays(isolated)
            _, plain = read(identify(path))
            for one, other in zip(found, arrays(plain), strict=True):
                np.testing.assert_array_equal(one, other, err_msg=name)
        assert sandbox.SECCOMP in reader.guards
        assert (sandbox.OWN_USER in reader.guards) == (os.geteuid() == 0)
        assert reader.restarts == 0


@needs_root
def test_the_child_of_root_is_nobody_else_and_may_only_read(tmp_path: Path) -> None:
    with IsolatedReader() as reader, IsolatedReader() as another:
        users = []
        for one in (reader, another):
            one.read(identify(wbcd_file(tmp_path / "a.h5")))
            assert one._child is not None
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{one._child.pid}/status").read_text().splitlines())
            assert len(set(status["Uid"].split())) == len(set(status["Gid"].split())) == 1
            assert status["Groups"].strip() == ""
            assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 1 << 2  # CAP_DAC_READ_SEARCH
            assert int(status["CapAmb"], 16) == int(status["CapInh"], 16) == 0
            assert [task.name for task in Path(f"/proc/{one._child.pid}/task").iterdir()] == [str(one._child.pid)]
            users.append(int(status["Uid"].split()[0]))
        assert min(users) >= sandbox.OWN_USERS
        assert users[0] != users[1]


@needs_root
def test_where_another_user_cannot_read_the_child_stays_root_without_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FUSE, or on a server that knows no capabilities: told by a child that cannot keep one."""
    path = wbcd_file(tmp_path / "w" / "a.h5")
    path.parent.chmod(0o700)
    blind = (
        "import sys, wbcd.acquisition.child as c; s = c.sandbox; keep = s._keep_capabilities;"
        " s._keep_capabilities = lambda _: keep(0)"
    )
    monkeypatch.setattr(isolate, "_PROGRAM", ("-c", f"{blind}; sys.exit(c.main(sys.argv[1:]))"))
    with IsolatedReader() as reader:
        for _ in range(2):
            reader.read(identify(path))
            assert sandbox.OWN_USER not in reader.guards
        assert reader.restarts == 0
        assert reader._child is not None
        assert "CapEff:\t0000000000000000" in Path(f"/proc/{reader._child.pid}/status").read_text()


@needs_root
@pytest.mark.parametrize(
    ("left", "kept", "own_user"),
    [
        ({1, 2, 5, 6, 7}, 1 << 2, True),
        ({1, 5, 6, 7}, 1 << 1, True),  # as containers' root: it may override, not only read
        ({1, 2, 6, 7}, 1 << 2, False),  # it could not end a reader of another user
        ({1, 2, 5}, 1 << 2, False),  # it may not become another
        (set(), 0, False),
    ],
)
def test_what_a_root_of_less_rights_gives_up(left: set[int], kept: int, own_user: bool) -> None:
    """The root of a container has some of root's capabilities only; its child never keeps more than reading takes."""
    program = f"""
import ctypes, os, struct
from wbcd.acquisition import sandbox
held = sum(1 << name for name in {left!r})
ctypes.CDLL(None).capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", held, held, 0, 0, 0, 0))
taken = sandbox.give_up_rights()
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines())
print(int(status["CapPrm"], 16), int(status["CapEff"], 16), sandbox.OWN_USER in taken, os.getuid() == 0, os.getgid() == 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(kept), str(kept), str(own_user), str(not own_user), str(not own_user)]


def test_a_daemon_that_is_not_root_reads_and_gives_up_what_it_can(samples: dict[str, Path]) -> None:
    """Another user's daemon: the child stays that user, and holds no capability of the user namespace that it made."""
    program = f"""
import json
from pathlib import Path
from wbcd.acquisition import IsolatedReader, identify
with IsolatedReader() as reader:
    ticket, payload = reader.read(identify(Path({str(samples["tiff"])!r})))
    status = Path(f"/proc/{{reader._child.pid}}/status").read_text()
print(json.dumps([payload.holograms.shape, sorted(reader.guards), status]))
"""
    # Root makes itself a user without any right but an owner's: the files, and Python, may be root's alone.
    as_user = ["unshare", "--user", "--map-user=4242"] if os.geteuid() == 0 else []
    done = subprocess.run([*as_user, sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    shape, guards, status = json.loads(done.stdout)
    assert shape == [5, 64, 64]
    assert sandbox.OWN_USER not in guards
    assert {sandbox.SECCOMP} <= set(guards)
    assert "CapEff:\t0000000000000000" in status
    assert "CapPrm:\t0000000000000000" in status


def test_nothing_that_the_child_says_reaches_the_daemons_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    talking = (
        "import os, sys, wbcd.acquisition.child as c; r = c.read\n"
        "def loud(*a, **k):\n os.write(2, b'forged'); return r(*a, **k)\n"
        "c.read = loud"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolate, "_PROGRAM", ("-c", f"{talking}\nsys.exit(c.main(sys.argv[1:]))"))
        with IsolatedReader() as reader:
            reader.read(identify(wbcd_file(tmp_path / "a.h5")))
    assert "forged" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_what_is_counted_is_allowed() -> None:
    """The counting itself: every format and library read ends as it must under the filter."""
    script = Path(__file__).parents[1] / "fuzz" / "count_calls.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "pread64" in done.stdout
