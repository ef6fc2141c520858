"""After any history of processes, kills, models, limits, companions and retention: every volume that a row names exists,
and, once a daemon has started again, no other does.

The real ledger on SQLite, the real volumes, and what `wbcd process` calls for a file; a kill is an exception that nothing
catches, at each place where the two could come apart.
"""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from helpers_line import fake_stages, predict, quick_config, read
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wbcd.acquisition.companions import companions_of
from wbcd.config import Config
from wbcd.daemon.once import ProcessOnce
from wbcd.daemon.stages import Stages
from wbcd.errors import TooLarge
from wbcd.records import Acquisition, Cell
from wbcd.store import Ledger, retention
from wbcd.store.verification import key_of, removed_by_retention, tomogram_rows
from wbcd.store.volumes import clean_stale, demand_volumes, discard_tomograms, images_under, write_tomogram

MODELS = ("one@1", "two@2")
PLACES = ("none", "after_keep", "before_commit", "after_commit", "in_discard", "after_begin")


class Killed(BaseException):
    """The process is gone."""


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "output"
        self.root.mkdir()
        self.incoming = self.folder / "incoming"
        self.incoming.mkdir()
        template = Ledger.open(self.folder / "wbcd.db")
        template.close()
        for number, words in enumerate(("1 cell", "2 cells", "tiny")):
            (self.incoming / f"{number}_sp.tif").write_text(f"{words} {number}")

    def teardown(self) -> None:
        self.settled()
        shutil.rmtree(self.folder)

    # --- one process ---

    def stages(self, config: Config, model: str, place: str, *, too_large: bool) -> Stages:
        def reads(acquisition: Acquisition) -> Any:
            if too_large:
                raise TooLarge(f"{acquisition.path.name} is too large.")
            return read(acquisition)

        def keeps(cell: Cell, acquisition: Acquisition, _: Any) -> str:
            path = write_tomogram(self.root, cell, acquisition=acquisition, recipe_id=config.recipe.recipe_id)
            self.die(place, "after_keep")
            return str(path)

        def discards(content_id: str, named: Any) -> None:
            self.die(place, "in_discard")
            discard_tomograms(self.root, content_id=content_id, named=named)

        def predicts(cells: Any) -> Any:
            return [dataclasses.replace(one, model_id=model) for one in predict(cells)]

        return fake_stages(
            read=reads,
            predict=predicts,
            keep=keeps,
            discard=discards,
            companions=companions_of,
            volumes_root=self.root,
            demand_volumes=lambda paths: demand_volumes(self.root, paths),
            model_id=model,
        )

    @staticmethod
    def die(place: str, here: str) -> None:
        if place == here:
            raise Killed

    def open(self, config: Config, model: str, place: str = "none") -> Ledger:
        ledger = Ledger.open(self.folder / "wbcd.db")
        for one in MODELS:
            ledger.register(config.recipe, one, {"simulated": True})
        commits, begins = ledger.commit, ledger.begin

        def commit(*values: Any, **options: Any) -> Any:
            self.die(place, "before_commit")
            made = commits(*values, **options)
            self.die(place, "after_commit")
            return made

        def begin(*values: Any, **options: Any) -> Any:
            made = begins(*values, **options)
            self.die(place, "after_begin")
            return made

        ledger.commit = commit  # type: ignore[method-assign]
        ledger.begin = begin  # type: ignore[method-assign]
        return ledger

    def run(self, number: int, model: str, place: str, *, too_large: bool = False, replace: bool = False) -> None:
        config = quick_config(self.folder, **{"limits.max_tries": 100})  # a trial in a child would cost seconds
        ledger = self.open(config, model, place)
        try:
            stages = self.stages(config, model, place, too_large=too_large)
            ProcessOnce(config, stages, ledger, replace_changed=replace)(self.incoming / f"{number}_sp.tif")
        except Killed:
            pass
        finally:
            ledger.close()

    numbers = st.integers(0, 2)
    models = st.sampled_from(MODELS)
    places = st.sampled_from(PLACES)

    @rule(number=numbers, model=models, place=places)
    def process(self, number: int, model: str, place: str) -> None:
        self.run(number, model, place)

    @rule(number=numbers, model=models, place=places)
    def process_under_a_lower_limit(self, number: int, model: str, place: str) -> None:
        self.run(number, model, place, too_large=True)

    @rule(number=numbers, model=models, place=places)
    def reprocess(self, number: int, model: str, place: str) -> None:
        self.run(number, model, place, replace=True)

    @rule(number=numbers, text=st.sampled_from(("a", "b", "")))
    def change_the_background(self, number: int, text: str) -> None:
        (self.incoming / f"{number}_bg.tif").write_text(text)

    @rule(ended=st.sampled_from(("set_aside", "rejected", "measured")))
    def open_again(self, ended: str) -> None:
        with Ledger.open(self.folder / "wbcd.db") as ledger:
            ledger.reopen([row.run_id for row in ledger.set_aside(ended=(ended,))], "a test", ended=(ended,))

    @rule(most=st.integers(0, 3))
    def retain(self, most: int) -> None:
        with Ledger.open(self.folder / "wbcd.db") as ledger:
            plan = retention.plan(ledger, self.root, now_s=0.0, max_bytes=most * 20_000)
            list(retention.apply(ledger, self.root, plan, why="a test"))

    @rule()
    def start_again(self) -> None:
        self.settled()

    # --- what must hold ---

    def names(self, ledger: Ledger) -> tuple[set[str], set[str]]:
        return {key_of(Path(stated)) for _, stated in tomogram_rows(ledger)}, removed_by_retention(ledger)

    @invariant()
    def every_named_volume_exists(self) -> None:
        with Ledger.open(self.folder / "wbcd.db") as ledger:
            named, removed = self.names(ledger)
        there = {key_of(image) for image in images_under(self.root)}
        assert named - there <= removed

    def settled(self) -> None:
        """As a daemon starts: temporaries go, and what no row came to name; then what was begun is worked on."""
        clean_stale(self.root, older_than_s=-1)
        for number in range(3):
            with Ledger.open(self.folder / "wbcd.db") as ledger:
                begun = {Path(one.path).name for one in ledger.unfinished()}
            if f"{number}_sp.tif" in begun:
                self.run(number, MODELS[0], "none")
        with Ledger.open(self.folder / "wbcd.db") as ledger:
            for content_id in ledger.volumes_to_settle(self.root):
                remove = partial(discard_tomograms, self.root, content_id=content_id)
                ledger.discard_volumes(content_id, self.root, lambda named, remove=remove: remove(named=named))
            named, _ = self.names(ledger)
            assert {key_of(image) for image in images_under(self.root)} <= named
            assert ledger.unfinished() == []
        with sqlite3.connect(self.folder / "wbcd.db") as connection:
            twice = "SELECT acquisition_id FROM run GROUP BY acquisition_id, recipe_id, model_id HAVING COUNT(*) > 1"
            assert connection.execute(twice).fetchall() == []


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=4, stateful_step_count=8, deadline=None)
