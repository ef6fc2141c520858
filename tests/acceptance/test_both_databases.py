"""The same acquisitions into SQLite and PostgreSQL through the real daemon: identical counts.

A server that goes away is in test_postgres_faults.py.
"""

from __future__ import annotations

from pathlib import Path

from helpers_spheres import cheap_settings, tiny_bundle, write_run
from helpers_zygote import Zygote

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
