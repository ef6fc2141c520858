"""A file of 1 TB that takes no room on the disk, beside good ones: it must not hold up the line, its end, or the daemon's."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers_faults import count_calls
from helpers_manager import Manager
from helpers_spheres import MEDIUM, VOXEL_UM, cheap_settings, sphere, tiny_bundle
from helpers_zygote import Zygote, wait_until

from wbcd.simulation.files import write_tcf

TERABYTE = 2**40
HASHED = "wbcd.acquisition.candidate:_hash_into"


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A folder with a sparse file, a sparse folder and, younger than both, a good file."""
    incoming = tmp_path / "incoming"
    (incoming / "b.zarr" / "0").mkdir(parents=True)
    for path in (incoming / "a.h5", incoming / "b.zarr" / "0" / "0"):
        path.touch()
        os.truncate(path, TERABYTE)
    now_ns = time.time_ns()
    for path in (incoming / "a.h5", incoming / "b.zarr" / "0" / "0", incoming / "b.zarr" / "0", incoming / "b.zarr"):
        os.utime(path, ns=(now_ns - 10**12, now_ns - 10**12))
    write_tcf(incoming / "good.TCF", [sphere(3.4)], voxel_um=VOXEL_UM, medium_ri=MEDIUM, title="good")
    return cheap_settings(tmp_path, tiny_bundle(tmp_path / "bundle"))


def stored(folder: Path) -> list[tuple[str, str, str, str]]:
    """Name, outcome, reason and message of each row, in order of name; none before there is a schema."""
    query = "SELECT a.path, r.outcome, r.reason, r.message FROM run r JOIN acquisition a ON a.id = r.acquisition_id"
    connection = sqlite3.connect(f"file:{folder / 'wbcd.db'}?mode=ro", uri=True)
    try:
        return sorted((Path(path).name, *rest) for path, *rest in connection.execute(query))
    finally:
        connection.close()


@pytest.mark.timeout(120)
def test_it_is_set_aside_with_its_size_and_the_limit_and_the_good_file_is_measured(
    tmp_path: Path, settings: dict[str, Any], zygote: Zygote
) -> None:
    for _ in range(2):  # a restart adds nothing
        assert zygote.run(settings, tmp_path / "log", until_idle=True) == 0, (tmp_path / "log").read_text()[-2000:]
        sparse, folder, good = stored(tmp_path)
        assert sparse[:3] == ("a.h5", "set_aside", "input.too_large")
        assert folder[:3] == ("b.zarr", "set_aside", "input.too_large")
        assert good[:2] == ("good.TCF", "measured")
        for name, message in ((sparse[0], sparse[3]), (folder[0], folder[3])):
            assert f"{name} holds {TERABYTE} bytes" in message
            assert f"[limits] max_file_bytes is {32 * 2**30}" in message


@pytest.mark.timeout(180)
def test_while_it_is_hashed_the_watchdog_is_content_and_a_stop_ends_it(
    tmp_path: Path, settings: dict[str, Any], zygote: Zygote
) -> None:
    """With a limit above its size: as a file that is long, and good, and lies on a slow share."""
    manager = Manager(zygote, tmp_path, watchdog_s=2.0)
    trusting = settings | {"limits.max_file_bytes": 2 * TERABYTE}
    note = tmp_path / "hashed"
    runner = threading.Thread(
        target=manager.run, args=(trusting, tmp_path / "log"), kwargs={"faults": [count_calls(HASHED, note)]}
    )
    runner.start()
    wait_until(lambda: note.exists() and note.stat().st_size >= 1)
    reached_s = time.monotonic()
    wait_until(
        lambda: [at for at, told in list(manager.heard) if "WATCHDOG" in told and at > reached_s + 3 * manager.watchdog_s]
    )
    assert manager.aborted == 0
    assert note.stat().st_size == 1  # it is still at the first file
    asked_s = time.monotonic()
    zygote._running.send(signal.SIGTERM)
    runner.join(60)
    assert time.monotonic() - asked_s < 20.0
    assert manager.ends == [0], (tmp_path / "log").read_text()[-2000:]
    assert stored(tmp_path) == []
    manager.close()
    assert zygote.run(settings, tmp_path / "log", until_idle=True) == 0, (tmp_path / "log").read_text()[-2000:]
    assert [row[1] for row in stored(tmp_path)] == ["set_aside", "set_aside", "measured"]
