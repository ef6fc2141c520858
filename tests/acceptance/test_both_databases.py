"""The same acquisitions into SQLite and PostgreSQL through the real daemon: identical counts; and a server that goes away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from helpers_postgres import OwnServer
from helpers_spheres import cheap_settings, tiny_bundle, write_run
from helpers_zygote import Zygote

from wbcd.errors import StoreError
from wbcd.report.counts import read_differential, read_status


def test_the_daemon_counts_the_same_into_both(tmp_path: Path, postgres_url: str, zygote: Zygote) -> None:
    write_run(tmp_path / "incoming", 20)
    settings = cheap_settings(tmp_path, tiny_bundle(tmp_path / "bundle"))
    lite = str(settings["database.url"])
    for url in (lite, postgres_url):
        assert zygote.run(settings | {"database.url": url}, tmp_path / "log") == 0, (tmp_path / "log").read_text()[-2000:]
    assert read_differential(lite) == read_differential(postgres_url)
    statuses = [read_status(url) for url in (lite, postgres_url)]
    assert [(each.measured, each.rejected, each.set_aside) for each in statuses] == [(14, 4, 2)] * 2
    assert statuses[0].rejections == statuses[1].rejections


def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(
    tmp_path: Path, own_postgres: OwnServer, zygote: Zygote
) -> None:
    write_run(tmp_path / "incoming", 20)
    settings = cheap_settings(tmp_path, tiny_bundle(tmp_path / "bundle"))
    lite, url = str(settings["database.url"]), own_postgres.url()
    assert zygote.run(settings, tmp_path / "log") == 0
    ended: list[int] = []
    daemon = threading.Thread(
        target=lambda: ended.append(zygote.run(settings | {"database.url": url}, tmp_path / "log", until_idle=True))
    )
    daemon.start()
    _wait_until(lambda: _outcomes(url) >= 4)
    own_postgres.kill()
    own_postgres.start()
    daemon.join(120)
    assert ended == [0], (tmp_path / "log").read_text()[-2000:]
    assert read_differential(lite) == read_differential(url)
    assert read_status(url).outcomes == 20


def _outcomes(url: str) -> int:
    try:
        return read_status(url).outcomes
    except StoreError:  # no schema yet
        return 0


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        threading.Event().wait(0.05)
