"""What a reader that a hostile file has taken over can still do: measured from inside the real child."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_acquisition import ri_volume, tcf_file, wbcd_file

from wbcd.acquisition import IsolatedReader, identify, isolate, sandbox
from wbcd.acquisition.isolate import _environment
from wbcd.errors import InputError
from wbcd.simulation.files import write_ome_zarr_ri

# In place of the reader's own `read`: tries everything, and answers with the error number of each try (0: it worked).
SPY = """
import errno, json, os, signal, socket, subprocess, sys, threading
from pathlib import Path
import wbcd.acquisition.child as child
from wbcd.errors import InputError

def tried(action):
    try:
        action()
    except OSError as error:
        return error.errno
    return 0

def started():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()

def forked():
    if os.fork() == 0:
        os._exit(0)

def spy(acquisition, **_):
    path, outside = acquisition.path, acquisition.path.parent.parent / "outside.txt"
    link = path.parent / "link.txt"
    found = {
        "internet socket": tried(lambda: socket.socket(socket.AF_INET)),
        "unix socket": tried(lambda: socket.socket(socket.AF_UNIX)),
        "datagram pair": tried(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)),
        "stream pair": tried(lambda: socket.socketpair()),
        "thread": tried(started),
        "fork": tried(forked),
        "program": tried(lambda: subprocess.run(["/bin/true"])),
        "signal the daemon": tried(lambda: os.kill(os.getppid(), 0)),
        "read outside": tried(lambda: outside.read_bytes()),
        "read a system file": tried(lambda: Path("/etc/passwd").read_bytes()),
        "read through a link": tried(lambda: link.read_bytes()),
        "list outside": tried(lambda: os.listdir(outside.parent)),
        "read own memory file": tried(lambda: open("/proc/self/environ").read()),
        "read inside": tried(lambda: path.read_bytes()),
        "write inside": tried(lambda: path.open("r+b")),
        "write outside": tried(lambda: outside.write_text("x")),
        "make": tried(lambda: (path.parent / "new").write_text("x")),
        "make in tmp": tried(lambda: Path("/tmp/wbcd-spy").write_text("x")),
        "remove": tried(lambda: path.unlink()),
        "rename": tried(lambda: path.rename(path.with_suffix(".x"))),
        "make a folder": tried(lambda: (path.parent / "d").mkdir()),
        "make a link": tried(lambda: (path.parent / "l").symlink_to("x")),
        "change rights": tried(lambda: path.chmod(0o777)),
        "cut": tried(lambda: os.truncate(path, 0)),
        "memory file": tried(lambda: os.memfd_create("x")),
    }
    raise InputError(json.dumps(found))

child.read = spy
sys.exit(child.main(sys.argv[1:]))
"""
ALLOWED = {"stream pair", "thread", "read inside", "memory file"}
NEEDS_LANDLOCK = {"read outside", "read a system file", "read through a link", "list outside", "read own memory file"}


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    (tmp_path / "outside.txt").write_text("secret")
    path = wbcd_file(tmp_path / "watched" / "a.h5")
    (path.parent / "link.txt").symlink_to(tmp_path / "outside.txt")
    return path


def test_a_reader_taken_over_reaches_nothing_but_its_folder(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = watched.read_bytes()
    monkeypatch.setattr(isolate, "_PROGRAM", ("-c", SPY))
    with IsolatedReader(root=watched.parent) as reader, pytest.raises(InputError) as caught:
        reader.read(identify(watched))
    found = json.loads(caught.value.message)
    possible = {name for name, code in found.items() if code == 0}
    assert possible - (set() if sandbox.landlock_version() else NEEDS_LANDLOCK) == ALLOWED, found
    assert {found[name] for name in found if name not in possible} <= {errno.EPERM, errno.EACCES}
    assert watched.read_bytes() == before
    assert sorted(entry.name for entry in watched.parent.iterdir()) == ["a.h5", "link.txt"]
    assert (watched.parents[1] / "outside.txt").read_text() == "secret"


def test_the_real_child_is_guarded_before_it_reads(watched: Path) -> None:
    with IsolatedReader(root=watched.parent) as reader:
        reader.read(identify(watched))
        status = Path(f"/proc/{reader._child.pid}/status").read_text()
        limits = Path(f"/proc/{reader._child.pid}/limits").read_text()
        assert reader.guards >= {sandbox.SECCOMP, *([sandbox.LANDLOCK] if sandbox.landlock_version() else [])}
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    rows = {line[:26].strip(): line[26:].split() for line in limits.splitlines()}
    for name in ("Max address space", "Max file size", "Max open files"):
        assert "unlimited" not in rows[name][:2], rows[name]
    assert rows["Max cpu time"][0] != "unlimited"
    assert rows["Max core file size"][:2] == ["0", "0"]


def test_without_landlock_or_seccomp_files_are_read_and_it_is_said(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from structlog.testing import capture_logs

    blind = (
        "import sys, wbcd.acquisition.child as c; s = c.sandbox; s.allow_reading_only = s.deny_system_calls = lambda *_: False;"
        " s.give_up_rights = lambda **_: []"
    )
    monkeypatch.setattr(isolate, "_PROGRAM", ("-c", f"{blind}; sys.exit(c.main(sys.argv[1:]))"))
    with IsolatedReader(root=watched.parent) as reader, capture_logs() as said:
        reader.read(identify(watched))
        reader.read(identify(watched))
        assert reader.guards == frozenset()
    assert [entry["missing"] for entry in said if entry["event"] == "reader.unguarded"] == [["seccomp", "landlock"]]


@pytest.mark.skipif(not sandbox.landlock_version(), reason="this kernel has no Landlock")
def test_a_file_of_another_folder_gets_another_child_and_a_file_below_the_root_does_not(tmp_path: Path) -> None:
    inside = [wbcd_file(tmp_path / "w" / name / "a.h5") for name in ("s1", "s2")]
    elsewhere = wbcd_file(tmp_path / "other" / "a.h5")
    with IsolatedReader(root=tmp_path / "w") as reader:
        pids = []
        for path in (*inside, elsewhere, inside[0]):
            reader.read(identify(path))
            pids.append(reader._child.pid)
        assert pids[0] == pids[1]
        assert len(set(pids[1:])) == 3
        assert reader.restarts == 0


def test_a_watch_folder_made_again_is_read_again(tmp_path: Path) -> None:
    """Unmounted and mounted again it is another folder to the kernel, under the same name."""
    path = wbcd_file(tmp_path / "w" / "a.h5")
    with IsolatedReader(root=tmp_path / "w") as reader:
        reader.read(identify(path))
        (tmp_path / "w").rename(tmp_path / "old")
        wbcd_file(path)
        shutil.rmtree(tmp_path / "old")
        reader.read(identify(path))
        assert reader.restarts == 0


@pytest.mark.parametrize("what", ["h5", "tcf", "zarr", "reference"])
def test_every_format_is_read_from_descriptors(tmp_path: Path, what: str) -> None:
    """The names that the reader is told do not exist where it stands: only the descriptors can be what it reads."""
    folder = tmp_path / "w"
    if what == "zarr":
        path = write_ome_zarr_ri(folder / "a.zarr", ri_volume(), (0.2, 0.1, 0.1))
    elif what == "tcf":
        path = tcf_file(folder / "a.TCF", [ri_volume(), ri_volume()])
    elif what == "reference":
        from helpers_acquisition import holograms

        from wbcd.simulation.files import write_reference

        write_reference(folder / "r", holograms(reference=True).reference)
        path = wbcd_file(folder / "a.h5", reference_file="r.wbcdref")
    else:
        path = wbcd_file(folder / "a.h5")
    ticket = identify(path)
    with IsolatedReader() as reader:
        _, payload = reader.read(ticket)
        if what in ("tcf", "zarr"):
            assert sum(1 for _ in payload) == payload.count
        else:
            assert payload.holograms.shape == (4, 64, 64)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6, 7, 99])
def test_each_version_of_landlock_is_asked_for_all_it_knows(version: int) -> None:
    attributes = sandbox.ruleset_attributes(version)
    assert len(attributes) == 8 * (1 if version < 4 else 2 if version < 6 else 3)
    assert attributes[0] == 0xFF


def test_abort_still_ends_the_reader(tmp_path: Path) -> None:
    """A C library that aborts must not hang on a forbidden signal to itself."""
    program = "import os; from wbcd.acquisition.sandbox import deny_system_calls as d; assert d(); os.abort()"
    done = subprocess.run([sys.executable, "-c", program], env=_environment(), cwd=tmp_path, check=False, timeout=60)
    assert done.returncode == -6


def test_large_files_are_no_way_out(tmp_path: Path) -> None:
    """RLIMIT_FSIZE bounds memory files too: they are all that the child can write."""
    program = (
        "import os, signal, json; from wbcd.acquisition import child; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "child.confine({'address_space_bytes': 1 << 32, 'array_bytes': 1 << 20, 'descriptors': 64})\n"
        "f = os.memfd_create('x')\n"
        "try:\n    os.ftruncate(f, 1 << 21)\nexcept OSError as e:\n    print(e.errno)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=_environment(), cwd=tmp_path, check=True, timeout=60, capture_output=True
    )
    assert int(done.stdout) == errno.EFBIG
