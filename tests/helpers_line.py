"""Fake stages: files whose text says what becomes of them, arrays of a few voxels."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from wbcd.acquisition.companions import look
from wbcd.config import Config
from wbcd.daemon.pipeline import volumes_of
from wbcd.daemon.stages import Stages
from wbcd.errors import CorruptContent, Incomplete, NoObject, NotReadable, StoreError
from wbcd.records import (
    Acquisition,
    Cell,
    Check,
    Morphology,
    Outcome,
    Payload,
    Prediction,
    RiSeries,
    Tomogram,
    Verdict,
)
from wbcd.store.rows import SourceFile

MODEL = "fake@0"


def identify(path: Path, *, beat: Callable[[], None] = lambda: None) -> Acquisition:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotReadable(f"{path.name} cannot be opened.") from error
    found = path.stat()
    return Acquisition(hashlib.blake2b(data, digest_size=20).hexdigest(), path, found.st_size, found.st_mtime_ns)


def read(acquisition: Acquisition) -> tuple[Acquisition, Payload]:
    """The text's first word decides: N (that many cells), corrupt, incomplete, empty, blurred, bug, tiny."""
    word = acquisition.path.read_text().split()[0]
    if word == "corrupt":
        raise CorruptContent(f"{acquisition.path.name}: a checksum is wrong.")
    if word == "incomplete":
        raise Incomplete(f"{acquisition.path.name}: attribute complete is absent.")
    if word == "bug":
        raise ZeroDivisionError("division by zero")
    value = {"empty": 0.0, "blurred": -1.0, "tiny": -2.0}.get(word)
    count = float(word) if value is None else value
    ri = np.full((2, 2, 2), count, np.float32)
    volumes = iter([Tomogram(ri, (0.2, 0.1, 0.1), 1.337)])
    return dataclasses.replace(acquisition, sample_id="fake"), RiSeries(1, volumes)


def judge_tomogram(tomogram: Tomogram, recipe: Any) -> Verdict:
    return Verdict((Check("focus_shift_um", 9.0 if tomogram.ri.flat[0] == -1 else 1.0, 5.0, "max", "um"),))


def find_cells(tomogram: Tomogram, recipe: Any, first: int) -> list[Cell]:
    count = int(tomogram.ri.flat[0])
    if count == 0:
        raise NoObject("nothing in the field")
    count = 1 if count == -2 else count
    mask = np.ones((2, 2, 2), bool)
    return [Cell(first + k, tomogram.ri, mask, tomogram.voxel_um, 1.337, (0.0, 0.0, 0.0)) for k in range(count)]


def measure(cell: Cell, recipe: Any) -> Morphology:
    volume = 1.0 if cell.ri.flat[0] == -2 else 200.0
    return Morphology(volume, 180.0, 0.9, 40.0, 20.0, 1.37, 1.4, volume, 40.0, 41.0)


def judge_cell(cell: Cell, morphology: Morphology, recipe: Any) -> Verdict:
    return Verdict((Check("volume_fl", morphology.volume_fl, 30.0, "min", "fL"),))


def predict(cells: Sequence[Cell]) -> list[Prediction]:
    return [Prediction(MODEL, "B", 0.9, {"B": 0.9, "T": 0.1}) for _ in cells]


def fake_stages(**changes: Any) -> Stages:
    """Stages that need no instrument; ``changes`` replace single ones."""
    unused: Callable[..., Any] = lambda *_: None  # noqa: E731
    stages = Stages(
        look=look,
        identify=identify,
        read=read,
        measure_fringes=unused,
        judge_fringes=unused,
        retrieve_fields=unused,
        judge_fields=unused,
        reconstruct=unused,
        judge_tomogram=judge_tomogram,
        find_cells=find_cells,
        measure=measure,
        judge_cell=judge_cell,
        predict=predict,
        picture=lambda cell: b"PNG",
        keep=lambda cell, acquisition, prediction: None,
        model_id=MODEL,
        model_card={"simulated": True},
    )
    return dataclasses.replace(stages, **changes)


def quick_config(folder: Path, **overrides: Any) -> Config:
    """Settings for tests: nothing waits longer than it must."""
    return Config.load(
        None,
        {},
        {
            "watch.dir": folder / "incoming",
            "watch.quiet_s": 0.05,
            "watch.rescan_s": 0.1,
            "output.dir": folder / "output",
            "database.url": f"sqlite:///{folder / 'wbcd.db'}",
            "classification.max_latency_s": 0.02,
            "classification.device": "cpu",
            "service.heartbeat_s": 0.05,
            "service.drain_s": 20.0,
            **overrides,
        },
    )


class RecordingLog:
    """A logger that keeps its events; ``wait_for`` waits until one has come."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._changed = threading.Condition()

    def _note(self, event: str, **fields: Any) -> None:
        with self._changed:
            self.events.append((event, fields))
            self._changed.notify_all()

    info = warning = error = _note

    def of(self, event: str) -> list[dict[str, Any]]:
        with self._changed:
            return [fields for name, fields in self.events if name == event]

    def wait_for(self, event: str, count: int = 1, timeout_s: float = 20.0) -> list[dict[str, Any]]:
        with self._changed:
            done = self._changed.wait_for(lambda: sum(name == event for name, _ in self.events) >= count, timeout_s)
        if not done:
            raise TimeoutError(f"no {count} x {event} in {self.events}")
        return self.of(event)


@dataclass
class MemoryLedger:
    """Keeps what :class:`wbcd.store.Ledger` would, and refuses to be used from two threads at a time.

    ``failures``: errors to raise, one at each next call that touches the store, before it succeeds.
    """

    outcomes: dict[tuple[str, str, str], Outcome] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    paths: dict[str, SourceFile] = field(default_factory=dict)
    waits: dict[str, str] = field(default_factory=dict)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    failures: list[StoreError] = field(default_factory=list)
    commits: int = 0
    closed: bool = False
    _thread: int | None = None

    def begin(self, acquisition: Acquisition, *, volumes_root: Path | None = None) -> int:
        """Count a try; the number of tries, this one included."""
        self._touch()
        self.tries[acquisition.content_id] = self.tries.get(acquisition.content_id, 0) + 1
        return self.tries[acquisition.content_id]

    def wait_for(self, content_id: str, sentence: str) -> None:
        """It is in hand no longer."""
        self._touch()
        self.tries.pop(content_id, None)
        self.waits[content_id] = sentence

    def known(self, content_id: str, recipe_id: str, model_id: str) -> Any:
        """Something with the path of the stored outcome, or None."""
        self._touch()
        found = self.outcomes.get((content_id, recipe_id, model_id))
        return None if found is None else SimpleNamespace(path=str(found.acquisition.path), outcome=found)

    def commit(
        self,
        outcome: Outcome,
        recipe_id: str,
        model_id: str,
        *,
        conditions: Mapping[str, Any] | None = None,
        once_per_acquisition: bool = False,
        check: Callable[[], None] = lambda: None,
        at: dt.datetime | None = None,
    ) -> Outcome | None:
        """Store an outcome; a second one for the same content, recipe and model changes nothing."""
        self._touch()
        check()
        self.commits += 1
        key = (outcome.acquisition.content_id, recipe_id, model_id)
        stored = self.outcomes.setdefault(key, outcome)
        self.tries.pop(outcome.acquisition.content_id, None)
        return outcome if stored is outcome else None

    def ask(self, content_id: str, recipe_id: str, model_id: str) -> None:
        """Nothing to keep here."""

    def ask_for_all(self, recipe_id: str, model_id: str) -> bool:
        """Nothing to keep here."""
        self._touch()
        return False

    def sighted(
        self,
        path: Path,
        size: int,
        mtime_ns: int,
        content_id: str,
        *,
        state: str = "",
        companions: Sequence[tuple[str, str | None]] = (),
    ) -> None:
        """Remember what a path held."""
        self._touch()
        self.paths[str(path)] = SourceFile(str(path), size, mtime_ns, state, content_id, dict(companions))

    def remembered(self, path: Path) -> SourceFile | None:
        """What a path held, or None."""
        self._touch()
        return self.paths.get(str(path))

    def counted(self, paths: Sequence[Path], recipe_id: str, model_id: str) -> dict[Path, SourceFile]:
        """Those that are counted, as they were last sighted."""
        self._touch()
        ids = {content_id for content_id, *_ in self.outcomes}
        held = {path: self.paths[str(path)] for path in paths if str(path) in self.paths}
        return {path: file for path, file in held.items() if file.content_id in ids}

    def note_states(self, states: Mapping[Path, str]) -> None:
        """Nothing to complete here."""

    def counted_sample(self, recipe_id: str, model_id: str, most: int) -> list[Path]:
        """The first that are counted."""
        self._touch()
        return [Path(name) for name in self.paths][:most]

    def last_event_at(self, kind: str) -> dt.datetime | None:
        """Never."""
        self._touch()
        return None

    def first_outcome_at(self) -> dt.datetime | None:
        """Nobody wrote it down."""
        return None

    def reopen(self, run_ids: Sequence[int], why: str, *, by: str | None = None, ended: Sequence[str] = ()) -> set[int]:
        """Nothing is opened again here."""
        return set()

    def reopened(self, recipe_id: str, model_id: str) -> list[Path]:
        """Nothing is opened again here."""
        self._touch()
        return []

    def set_aside(self, recipe_id: str, model_id: str, *, reasons: Sequence[str] | None = None) -> list[Any]:
        """Nothing is opened again here."""
        self._touch()
        return []

    def companion_names(self) -> set[str]:
        """None are known."""
        self._touch()
        return set()

    def dependents(self, companion: Path) -> list[Path]:
        """None are known."""
        return []

    def retire_unread(self, content_id: str, path: Path) -> None:
        """The ticket without bytes goes."""
        self._touch()
        self.outcomes = {key: outcome for key, outcome in self.outcomes.items() if key[0] != content_id}
        self.gone(path)

    def discard_volumes(self, content_id: str, root: Path, remove: Callable[[Sequence[str]], object]) -> None:
        """Told what the outcomes of this content name."""
        self._touch()
        if content_id not in self.tries:
            kept = [outcome for key, outcome in self.outcomes.items() if key[0] == content_id]
            remove([path for outcome in kept for path in volumes_of(outcome)])

    def volumes_to_settle(self, root: Path, content_id: str | None = None) -> list[str]:
        """What no row names may be left of whatever was not measured."""
        self._touch()
        measured = {key[0] for key, outcome in self.outcomes.items() if outcome.kind == "measured"}
        return [] if content_id is None or content_id in measured else [content_id]

    def unfinished(self) -> list[Any]:
        """What was begun and has no outcome, with the path that holds it."""
        self._touch()
        begun = {file.content_id: name for name, file in self.paths.items() if file.content_id in self.tries}
        return [SimpleNamespace(path=name, content_id=key, tries=self.tries[key]) for key, name in begun.items()]

    def gone(self, path: Path) -> None:
        """Forget a path, and the tries of content that no other path holds."""
        self._touch()
        lost = self.paths.pop(str(path), None)
        if lost is not None and lost.content_id not in {file.content_id for file in self.paths.values()}:
            self.tries.pop(lost.content_id, None)

    def end_pause(self, message: str) -> None:
        """Note a resumption when the last word on intake is a pause."""
        kinds = [kind for kind, *_ in self.events if kind.startswith("intake_")]
        if kinds[-1:] == ["intake_paused"]:
            self.event("intake_resumed", message)

    def event(self, kind: str, message: str, **fields: Any) -> None:
        """Note an event."""
        self._touch()
        self.events.append((kind, message, fields))

    def close(self) -> None:
        """No more use."""
        self.closed = True

    def _touch(self) -> None:
        here = threading.get_ident()
        self._thread = self._thread or here
        if self._thread != here:
            raise RuntimeError("the ledger was used from two threads")
        if self.failures:
            raise self.failures.pop(0)
