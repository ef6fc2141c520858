"""The note of a pause ends with the pause, also when the daemon that wrote it is gone."""

from __future__ import annotations

from pathlib import Path

from wbcd.report.counts import read_status
from wbcd.store import Ledger


def test_a_pause_is_ended_once_and_nothing_is_said_without_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'wbcd.db'}"
    with Ledger.open(url) as ledger:
        ledger.end_pause("started")
        assert read_status(url).note is None
        ledger.event("intake_paused", "the disk is full")
        ledger.event("duplicate", "a copy")
        assert read_status(url).note == "the disk is full"
        ledger.end_pause("started")
        ledger.end_pause("started")
        assert read_status(url).note is None
        with ledger._engine.connect() as connection:
            kinds = connection.exec_driver_sql("SELECT kind FROM event ORDER BY id").scalars().all()
    assert kinds == ["intake_paused", "duplicate", "intake_resumed"]
