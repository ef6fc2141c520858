"""Fake stages: files whose text says what becomes of them, arrays of a few voxels."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from wbcd.acquisition.candidate import stat_candidate
from wbcd.config import Config
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
        look=stat_candidate,
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
    paths: dict[tuple[str, int, int], str] = field(default_factory=dict)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    failures: list[StoreError] = field(default_factory=list)
    commits: int = 0
    closed: bool = False
    _thread: int | None = None

    def begin(self, acquisition: Acquisition) -> int:
        """Count a try; the number of tries, this one included."""
        self._touch()
        self.tries[acquisition.content_id] = self.tries.get(acquisition.content_id, 0) + 1
        return self.tries[acquisition.content_id]

    def known(self, content_id: str, recipe_id: str, model_id: str) -> Any:
        """Something with the path of the stored outcome, or None."""
        self._touch()
        found = self.outcomes.get((content_id, recipe_id, model_id))
        return None if found is None else SimpleNamespace(path=str(found.acquisition.path), outcome=found)

    def commit(self, outcome: Outcome, recipe_id: str, model_id: str) -> None:
        """Store an outcome; a second one for the same content, recipe and model changes nothing."""
        self._touch()
        self.commits += 1
        self.outcomes.setdefault((outcome.acquisition.content_id, recipe_id, model_id), outcome)
        self.tries.pop(outcome.acquisition.content_id, None)

    def sighted(self, path: Path, size: int, mtime_ns: int, content_id: str) -> None:
        """Remember what a path held."""
        self._touch()
        self.paths[str(path), size, mtime_ns] = content_id

    def recall(self, path: Path, size: int, mtime_ns: int) -> str | None:
        """What a path in this state held, or None."""
        self._touch()
        return self.paths.get((str(path), size, mtime_ns))

    def counted(self, paths: Sequence[Path], recipe_id: str, model_id: str) -> dict[Path, tuple[int, int]]:
        """Size and mtime of those that are counted as they were last sighted."""
        self._touch()
        ids = {content_id for content_id, *_ in self.outcomes}
        held = {name: (size, mtime) for (name, size, mtime), content_id in self.paths.items() if content_id in ids}
        return {path: held[str(path)] for path in paths if str(path) in held}

    def unfinished(self) -> list[Any]:
        """What was begun and has no outcome, with the path that holds it."""
        self._touch()
        begun = {content_id: name for (name, *_), content_id in self.paths.items() if content_id in self.tries}
        return [SimpleNamespace(path=name, content_id=key, tries=self.tries[key]) for key, name in begun.items()]

    def gone(self, path: Path) -> None:
        """Forget a path, and the tries of content that no other path holds."""
        self._touch()
        lost = {content_id for (name, *_), content_id in self.paths.items() if name == str(path)}
        self.paths = {key: content_id for key, content_id in self.paths.items() if key[0] != str(path)}
        for content_id in lost - set(self.paths.values()):
            self.tries.pop(content_id, None)

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
