"""kill -9 at every named boundary and at random moments: the outcomes are those of a run that nobody killed.

`make test` kills at each boundary at least once and at random; `make test-all` kills more than a thousand times
(``test_killed_a_thousand_times``; WBCD_KILLS sets another number, WBCD_SEED another order).
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from helpers_faults import Fault, kill_in
from helpers_ledger import Whole, check_against, make_whole, rows
from helpers_spheres import cheap_settings
from helpers_zygote import Zygote, wait_until

from wbcd.daemon.faults import POINTS
from wbcd.daemon.state import read_state

ACQUISITIONS = 30
RANDOM_KILLS = 16

# Inside the rooms below the line: between the statements of a transaction, around the rename of a volume.
INSIDE: Sequence[tuple[str, str]] = (
    ("wbcd.store.volumes:_write_image", "before"),  # the temporary is made
    ("wbcd.store.volumes:_write_image", "after"),  # it is written, not verified
    ("wbcd.store.volumes:_publish", "before"),  # verified, not on disk for certain
    ("wbcd.store.volumes:_sync_folder", "before"),  # between the files of the image, before and after the rename
    ("wbcd.store.volumes:_publish", "after"),  # renamed; no row names it yet
    ("wbcd.store.sources:remember", "after"),  # the sighting is written, not committed
    ("wbcd.store.outcomes:count_try", "after"),  # the try is counted, not committed
    ("wbcd.store.outcomes:_close_acquisition", "after"),  # inside the outcome's transaction
    ("wbcd.store.outcomes:_store_cell", "before"),
    ("wbcd.store.outcomes:_store_cell", "after"),
    ("wbcd.store.outcomes:store", "after"),  # everything is written, not committed
    ("wbcd.store.outcomes:discard_volumes", "before"),  # stored; what was kept in vain is not removed yet
)
AT_THE_START: Sequence[tuple[str, str]] = (
    ("wbcd.store.migrate:upgrade_connection", "before"),
    ("wbcd.store.migrate:upgrade_connection", "after"),  # the schema is made, not committed
    ("wbcd.store.ledger:Ledger.register", "after"),
    ("wbcd.daemon.service:Service._ready", "before"),
)


@dataclass(frozen=True)
class Death:
    """Where and when one daemon is to die: at a point, inside a function, or after so many seconds."""

    point: str | None = None
    place: tuple[str, str] | None = None
    after_s: float | None = None
    passage: int = 1

    @property
    def env(self) -> dict[str, str]:
        return {"WBCD_TESTING": "1", "WBCD_FAULT_POINT": f"{self.point}:{self.passage}"} if self.point else {}

    @property
    def faults(self) -> list[Fault]:
        return [kill_in(self.place[0], when=self.place[1], passage=self.passage)] if self.place else []


@dataclass
class Tally:
    """What was done, for the report of the long form."""

    kills: int = 0
    lives: int = 0
    by_place: dict[str, int] = field(default_factory=dict)

    def add(self, death: Death) -> None:
        self.kills += 1
        name = death.point or (f"{death.place[0]} {death.place[1]}" if death.place else "random")
        self.by_place[name] = self.by_place.get(name, 0) + 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Whole:
    """The acquisitions, the model, and what a run that nobody killed makes of them, with its duration."""
    return make_whole(tmp_path_factory.mktemp("whole"), zygote, ACQUISITIONS)


class Life:
    """A fresh database over the same acquisitions, killed until it is done."""

    def __init__(self, folder: Path, whole: Whole, zygote: Zygote, **settings: object) -> None:
        self.folder = folder
        self.whole = whole
        self.zygote = zygote
        self.log = folder / "log"
        self.deaths: list[Death] = []
        folder.mkdir(exist_ok=True)
        own = {"watch.dir": whole.incoming, "output.keep_tomograms": True}
        self.settings = cheap_settings(folder, whole.bundle, **(own | settings))

    def die(self, death: Death, tally: Tally) -> bool:
        """False when everything was done before the daemon came to the place."""
        status = self.zygote.run(self.settings, self.log, kill_after_s=death.after_s, env=death.env, faults=death.faults)
        self.deaths.append(death)
        if status == 0:
            return False
        assert status == signal.SIGKILL, self.story()
        tally.add(death)
        return True

    def finish(self, tally: Tally) -> None:
        """Once without a fault, then everything must hold."""
        assert self.zygote.run(self.settings, self.log) == 0, self.story()
        tally.lives += 1
        wrong = check_against(self.whole, self.folder)
        assert wrong == [], self.story()

    def story(self) -> str:
        return f"{self.deaths}\n{self.log.read_text()[-6000:]}"


def live_through(deaths: Iterator[Death], folder: Path, whole: Whole, zygote: Zygote, tally: Tally, **settings: object) -> None:
    """Each death in turn, with a new life whenever all is done (a death that nothing could reach any more comes again)."""
    life = Life(folder / f"life-{tally.lives}", whole, zygote, **settings)
    for death in deaths:
        while not life.die(death, tally):
            life.finish(tally)
            life = Life(folder / f"life-{tally.lives}", whole, zygote, **settings)
    life.finish(tally)


PATIENT = {"limits.max_tries": 6}  # the trial of what was begun too often has its own tests; here it would only cost time


def test_killed_at_each_boundary(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    chance = random.Random(20261)
    deaths = [Death(point=point, passage=chance.randint(1, 4)) for point in POINTS]
    deaths += [Death(place=place, passage=chance.randint(1, 4)) for place in INSIDE]
    chance.shuffle(deaths)
    tally = Tally()
    live_through(iter([*(Death(place=place) for place in AT_THE_START), *deaths]), tmp_path, whole, zygote, tally, **PATIENT)
    assert tally.kills == len(POINTS) + len(INSIDE) + len(AT_THE_START)
    assert len(tally.by_place) == tally.kills


def test_killed_at_random(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    chance = random.Random(20260)
    tally = Tally()
    deaths = (Death(after_s=chance.uniform(0.02, 0.25) * whole.seconds) for _ in range(RANDOM_KILLS))
    live_through(deaths, tmp_path, whole, zygote, tally)
    assert tally.kills == RANDOM_KILLS


def test_killed_with_a_reader_in_its_own_process(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    """As it runs in a laboratory: files are opened by a child. It must not outlive its daemon, and nothing may be lost."""
    chance, tally = random.Random(20263), Tally()
    life = Life(tmp_path / "life", whole, zygote, **{"limits.isolate": True}, **PATIENT)
    for stored in sorted(chance.sample(range(1, ACQUISITIONS - 8), 5)):
        daemon = zygote.begin(life.settings, life.log, until_idle=True)
        wait_until(lambda: daemon.ended or stored_runs(life.folder) >= stored)  # noqa: B023 - asked at once
        readers = [] if daemon.ended else daemon.process.children(recursive=True)
        assert readers, life.story()
        daemon.send(signal.SIGKILL)
        assert daemon.wait() == signal.SIGKILL, life.story()
        tally.kills += 1
        _, left = psutil.wait_procs(readers, timeout=30)
        assert left == []
    life.finish(tally)
    assert tally.kills == 5


def stored_runs(folder: Path) -> int:
    """Outcomes that are committed; 0 before there is a schema."""
    if not (folder / "wbcd.db").exists():
        return 0
    try:
        return int(rows(folder, "SELECT COUNT(*) FROM run")[0][0])
    except sqlite3.OperationalError:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_killed_a_thousand_times(tmp_path: Path, zygote: Zygote, whole: Whole, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = int(os.environ.get("WBCD_KILLS", "1000"))
    chance = random.Random(int(os.environ.get("WBCD_SEED", "20262")))
    tally, started = Tally(), time.monotonic()
    while tally.kills < wanted:
        settings: dict[str, object] = dict(PATIENT if chance.random() < 0.97 else {})
        settings["limits.isolate"] = chance.random() < 0.2
        few = min(chance.randint(8, 40), wanted - tally.kills)
        live_through((_any_death(chance, whole) for _ in range(few)), tmp_path, whole, zygote, tally, **settings)
        with capsys.disabled():
            minutes = (time.monotonic() - started) / 60
            print(f"\r{tally.kills} kills in {tally.lives} lives of {ACQUISITIONS} acquisitions, {minutes:.1f} min", end="")
    with capsys.disabled():
        print(f"\nby place: {dict(sorted(tally.by_place.items()))}")
    assert tally.kills >= wanted


def _any_death(chance: random.Random, whole: Whole) -> Death:
    kind = chance.random()
    if kind < 0.4:
        return Death(after_s=chance.uniform(0.0, 0.3) * whole.seconds)
    if kind < 0.45:
        return Death(place=chance.choice([AT_THE_START[2], AT_THE_START[3]]))
    if kind < 0.7:
        return Death(point=chance.choice(POINTS), passage=chance.randint(1, 5))
    return Death(place=chance.choice(INSIDE), passage=chance.randint(1, 5))


def test_sigterm_drains_and_ends_with_status_0(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    life = Life(tmp_path, whole, zygote)
    status = zygote.run(life.settings, life.log, kill_after_s=0.4 * whole.seconds, sign=signal.SIGTERM, until_idle=False)
    assert status == 0, life.story()
    assert read_state(life.settings["output.dir"]).details["in_hand"] == 0
    # What was begun was finished; only files that may still grow wait for another look.
    begun = rows(tmp_path, "SELECT path FROM acquisition WHERE tries > 0")
    assert [path for (path,) in begun if int(Path(path).stem) % 10 != 6] == []
    life.finish(Tally())
