"""kill -9 at random moments and at every stage boundary: the outcomes are those of a run that nobody killed."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_spheres import cheap_settings, tiny_bundle, write_run
from helpers_zygote import Zygote

from wbcd.daemon.faults import POINTS
from wbcd.daemon.state import read_state

ACQUISITIONS = 60
KILLS = 20

# A batch of another size may change the last digits of a probability; everything else is compared to the last bit.
OUTCOMES = """
SELECT a.path, a.content_id, r.outcome, r.reason, c.number, c.volume_fl, c.dry_mass_pg, p.label, ROUND(p.probability, 6)
FROM run r JOIN acquisition a ON a.id = r.acquisition_id
LEFT JOIN cell c ON c.run_id = r.id LEFT JOIN prediction p ON p.cell_id = c.id
ORDER BY a.content_id, c.number
"""


def rows(folder: Path, query: str) -> list[tuple]:
    connection = sqlite3.connect(folder / "wbcd.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def outcome_table(folder: Path) -> list[tuple]:
    return [(Path(row[0]).name, *row[1:]) for row in rows(folder, OUTCOMES)]


def differences(found: list[tuple], expected: list[tuple]) -> list[tuple]:
    """Rows of one table that the other lacks."""
    return sorted(set(found) ^ set(expected), key=str) + [("rows", len(found))] * (len(found) != len(expected))


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> tuple[Path, Path, list[tuple], float]:
    """The acquisitions, the model, and what a run that nobody killed makes of them, with its duration."""
    folder = tmp_path_factory.mktemp("whole")
    bundle = tiny_bundle(folder / "bundle")
    write_run(folder / "incoming", ACQUISITIONS)
    started = time.monotonic()
    assert zygote.run(cheap_settings(folder, bundle), folder / "log") == 0, (folder / "log").read_text()[-2000:]
    seconds = time.monotonic() - started
    table = outcome_table(folder)
    assert len({row[1] for row in table}) == ACQUISITIONS
    assert {row[2] for row in table} == {"measured", "rejected", "set_aside"}
    return folder / "incoming", bundle, table, seconds


class Life:
    """A fresh database over the same acquisitions."""

    def __init__(self, folder: Path, whole: tuple[Path, Path, list[tuple], float]) -> None:
        self.folder = folder
        self.incoming, self.bundle, self.table, self.seconds = whole
        folder.mkdir(exist_ok=True)
        self.settings = cheap_settings(folder, self.bundle) | {"watch.dir": self.incoming}

    def check(self) -> None:
        assert differences(outcome_table(self.folder), self.table) == []
        assert rows(self.folder, "PRAGMA integrity_check") == [("ok",)]
        assert rows(self.folder, "SELECT COUNT(*), COUNT(DISTINCT acquisition_id) FROM run") == [(ACQUISITIONS, ACQUISITIONS)]
        assert rows(self.folder, "SELECT COUNT(*) FROM acquisition WHERE tries > 0") == [(0,)]


def test_killed_twenty_times_at_random(tmp_path: Path, zygote: Zygote, whole) -> None:
    chance = random.Random(20260)
    kills = runs = 0
    while kills < KILLS:
        life = Life(tmp_path / f"run-{runs}", whole)
        while kills < KILLS:
            status = zygote.run(life.settings, tmp_path / "log", kill_after_s=chance.uniform(0.02, 0.25) * life.seconds)
            if status == 0:
                break
            assert status == signal.SIGKILL
            kills += 1
        assert zygote.run(life.settings, tmp_path / "log") == 0
        life.check()
        runs += 1
    assert "input.poison" not in str(whole[2])


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_each_stage_boundary(tmp_path: Path, zygote: Zygote, whole, point: str) -> None:
    incoming, bundle, table, _ = whole
    few = tmp_path / "incoming"
    few.mkdir()
    chosen = sorted(incoming.iterdir())[:10]
    for path in chosen:
        shutil.copy2(path, few / path.name)
    settings = cheap_settings(tmp_path, bundle)
    for passage in (1, 3):
        env = {"WBCD_TESTING": "1", "WBCD_FAULT_POINT": f"{point}:{passage}"}
        assert zygote.run(settings, tmp_path / "log", env=env) == signal.SIGKILL
    assert zygote.run(settings, tmp_path / "log") == 0
    names = {path.name for path in chosen}
    assert differences(outcome_table(tmp_path), [row for row in table if row[0] in names]) == []
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


def test_sigterm_drains_and_ends_with_status_0(tmp_path: Path, zygote: Zygote, whole) -> None:
    life = Life(tmp_path, whole)
    status = zygote.run(life.settings, tmp_path / "log", kill_after_s=0.4 * life.seconds, sign=signal.SIGTERM, until_idle=False)
    assert status == 0, (tmp_path / "log").read_text()[-2000:]
    assert read_state(life.settings["output.dir"]).details["in_hand"] == 0
    # What was begun was finished; only files that may still grow wait for another look.
    begun = rows(tmp_path, "SELECT path FROM acquisition WHERE tries > 0")
    assert [path for (path,) in begun if int(Path(path).stem) % 10 != 6] == []
    assert zygote.run(life.settings, tmp_path / "log") == 0
    life.check()
