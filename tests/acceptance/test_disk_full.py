"""Disks that really are full: intake pauses, `wbcd status` says why, it goes on by itself, and nothing is lost.

The small disks are tmpfs of a few megabytes in a mount namespace of the daemons' own; where a machine refuses that (a
container without the right), those tests are skipped and say so. What runs everywhere: a limit on the length of files
(RLIMIT_FSIZE, the kernel's EFBIG) for the database, and a quota (a shim in the daemon, EDQUOT) for the output; and one write
to a full disk (tests/unit/test_store_volumes.py, tests/unit/test_store_failures.py).
"""

from __future__ import annotations

import errno
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers_faults import no_quota_left
from helpers_ledger import Whole, differences, outcome_table, rows
from helpers_spheres import cheap_settings
from helpers_zygote import Daemon, Zygote, may_mount, wait_until

from wbcd.cli.status import collect, lines
from wbcd.config import Config
from wbcd.store.volumes import SUFFIX, TEMPORARY

on_small_disks = pytest.mark.skipif(not may_mount(), reason="this machine allows no mounts of one's own (unshare -m)")
ACQUISITIONS = 20
WITHIN_LIMIT = 64 * 1024
"""Bytes: more than the daemon's log and state, less than its database."""


class Disk:
    """A file system of so many bytes, seen by the daemons at ``path``."""

    def __init__(self, zygote: Zygote, path: Path, size: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        assert zygote.command("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path) == 0
        self.seen = zygote.seen(path)
        self._filler = self.seen / "filler"

    def fill(self) -> None:
        """Until not a byte goes in any more."""
        with self._filler.open("ab", buffering=0) as file:
            for block in (65536, 4096, 1):
                try:
                    while file.write(bytes(block)) == block:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        self._filler.unlink()


class Run:
    """A daemon that begins with half of the acquisitions."""

    def __init__(self, folder: Path, zygote: Zygote, whole: Whole, **changes: Any) -> None:
        self.folder = folder
        self.whole = whole
        self.incoming = folder / "incoming"
        self.incoming.mkdir()
        self.files = sorted(whole.incoming.iterdir())
        self.settings = cheap_settings(folder, whole.bundle, **{"output.keep_tomograms": True, **changes})
        self.zygote = zygote
        self.bring(self.files[: ACQUISITIONS // 2])

    def bring(self, files: list[Path]) -> None:
        for path in files:
            shutil.copy2(path, self.incoming / f".{path.name}")
            (self.incoming / f".{path.name}").rename(self.incoming / path.name)

    def begin(self, **more: Any) -> Daemon:
        return self.zygote.begin(self.settings, self.folder / "log", until_idle=True, **more)

    def status(self, **seen: Path) -> list[str]:
        """What `wbcd status` prints, of the places as they are seen from here."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in self.settings.items()}
        plain |= {key.replace("_", "."): str(value) for key, value in seen.items()}
        return lines(collect(Config.load(None, {}, plain)))

    def bring_the_rest_until_it_pauses(self, daemon: Daemon, **seen: Path) -> None:
        """The other half of the acquisitions; the daemon must pause, `wbcd status` say why, and the process live on."""
        self.bring(self.files[ACQUISITIONS // 2 :])
        said = wait_until(lambda: [line for line in self.status(**seen) if "daemon     paused" in line], what="paused")
        assert any("full" in line for line in said), said
        assert not daemon.ended

    def log(self) -> str:
        log = self.folder / "log"
        return log.read_text()[-4000:] if log.exists() else ""


@on_small_disks
def test_the_disk_of_the_database(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    disk = Disk(zygote, tmp_path / "data", "4m")
    run = Run(tmp_path, zygote, whole, **{"database.url": f"sqlite:///{tmp_path}/data/wbcd.db"})
    daemon = run.begin()
    wait_until(lambda: (disk.seen / "wbcd.db").exists() and '"outcome"' in run.log())
    disk.fill()
    run.bring_the_rest_until_it_pauses(daemon)
    disk.free()
    assert daemon.wait() == 0, run.log()
    shutil.copy(disk.seen / "wbcd.db", tmp_path)  # SQLite would resolve the way that leads among the daemons' mounts
    assert differences(outcome_table(tmp_path), whole.table) == []
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]
    assert not any("paused" in line for line in run.status())


@on_small_disks
def test_the_disk_of_the_output(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    disk = Disk(zygote, tmp_path / "output", "8m")
    run = Run(tmp_path, zygote, whole)
    daemon = run.begin()
    wait_until(lambda: '"outcome"' in run.log())
    disk.fill()
    run.bring_the_rest_until_it_pauses(daemon, output_dir=disk.seen)
    disk.free()
    assert daemon.wait() == 0, run.log()
    assert differences(outcome_table(tmp_path), whole.table) == []
    named = {Path(path).name for (path,) in rows(tmp_path, "SELECT tomogram_path FROM cell WHERE tomogram_path IS NOT NULL")}
    assert {path.name for path in disk.seen.glob(f"*/*{SUFFIX}")} == named
    assert list(disk.seen.rglob(f"{TEMPORARY}*")) == []
    kinds = [kind for (kind,) in rows(tmp_path, "SELECT kind FROM event WHERE kind LIKE 'intake%' ORDER BY id")]
    assert kinds[:2] == ["intake_paused", "intake_resumed"]
    assert kinds[-1] == "intake_resumed"


@on_small_disks
def test_the_disk_of_temporary_files(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    """Nothing that is counted needs room in TMPDIR or in shared memory: both are full from the beginning."""
    temporary = Disk(zygote, tmp_path / "tmp", "64k")
    shared = Disk(zygote, Path("/dev/shm"), "64k")
    try:
        temporary.fill()
        shared.fill()
        run = Run(tmp_path, zygote, whole, **{"limits.isolate": True})
        run.bring(run.files[ACQUISITIONS // 2 :])
        daemon = run.begin(env={"TMPDIR": str(tmp_path / "tmp")})
        assert daemon.wait() == 0, run.log()
    finally:
        assert zygote.command("umount", "-l", "/dev/shm") == 0
    assert differences(outcome_table(tmp_path), whole.table) == []
    assert '"paused"' not in (tmp_path / "log").read_text()


def test_files_of_the_database_may_grow_no_longer(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    """As under ``ulimit -f``: the kernel refuses the write, SQLite says "disk I/O error", the daemon says what it is."""
    run = Run(tmp_path, zygote, whole, **{"output.keep_tomograms": False})
    daemon = run.begin()
    wait_until(lambda: '"outcome"' in run.log())
    before = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (WITHIN_LIMIT, before[1]))
    run.bring_the_rest_until_it_pauses(daemon)
    assert 0 < (tmp_path / "log").stat().st_size < WITHIN_LIMIT, "the log was cut by the limit, too"
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, before)
    assert daemon.wait() == 0, run.log()
    assert differences(outcome_table(tmp_path), whole.table) == []
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]
    assert not any("paused" in line for line in run.status())


def test_a_quota_on_the_output(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    run = Run(tmp_path, zygote, whole)
    exhausted = tmp_path / "exhausted"
    daemon = run.begin(faults=[no_quota_left(run.settings["output.dir"], while_there_is=exhausted)])
    wait_until(lambda: '"outcome"' in run.log())
    exhausted.touch()
    run.bring_the_rest_until_it_pauses(daemon)
    exhausted.unlink()
    assert daemon.wait() == 0, run.log()
    assert differences(outcome_table(tmp_path), whole.table) == []
    output = Path(run.settings["output.dir"])
    named = {Path(path).name for (path,) in rows(tmp_path, "SELECT tomogram_path FROM cell WHERE tomogram_path IS NOT NULL")}
    assert {path.name for path in output.glob(f"*/*{SUFFIX}")} == named
    assert list(output.rglob(f"{TEMPORARY}*")) == []
