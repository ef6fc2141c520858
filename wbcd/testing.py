"""Fakes for tests, of wbcd and of programs built on it: a clock that is moved by hand, a ledger in memory, made-up results.

Shipped, and never imported at run time.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from wbcd.records import (
    Acquisition,
    Check,
    Measured,
    MeasuredCell,
    Morphology,
    Prediction,
    Rejected,
    SourceFormat,
    Verdict,
)
from wbcd.store.ledger import Ledger

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class FakeClock:
    """Monotonic seconds and wall time that pass only by :meth:`advance` or :meth:`sleep`. Calling it gives the seconds."""

    def __init__(self, start_s: float = 1000.0, wall: dt.datetime = START) -> None:
        self._now_s = start_s
        self._wall = wall
        self._lock = threading.Lock()
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        """As ``time.monotonic``, in s."""
        return self._now_s

    def now(self) -> dt.datetime:
        """Wall time, UTC."""
        return self._wall

    def time(self) -> float:
        """As ``time.time``, in s."""
        return self._wall.timestamp()

    def sleep(self, seconds: float) -> None:
        """As ``time.sleep``, at once; kept in ``slept_s``."""
        self.slept_s.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self._lock:
            self._now_s += seconds
            self._wall += dt.timedelta(seconds=seconds)

    def jump(self, seconds: float) -> None:
        """Move only the wall time, as an administrator or a time server does."""
        self._wall += dt.timedelta(seconds=seconds)


def memory_ledger(*, now: Callable[[], dt.datetime] | None = None) -> Ledger:
    """A whole ledger, on an SQLite database that lives in memory until it is closed."""
    return Ledger.open("sqlite:///:memory:") if now is None else Ledger.open("sqlite:///:memory:", now=now)


def make_acquisition(name: str = "a", *, sample: str = "S1") -> Acquisition:
    """A ticket whose content id follows from ``name``."""
    return Acquisition(
        content_id=hashlib.blake2b(name.encode(), digest_size=20).hexdigest(),
        path=Path("/watch") / f"{name}.h5",
        size_bytes=1000 + len(name),
        mtime_ns=1_760_000_000_000_000_000,
        format=SourceFormat.HOLOGRAMS,
        acquisition_id=name,
        acquired_at="2026-01-01T00:00:00+00:00",
        sample_id=sample,
        instrument_id="simulated",
        medium_ri=1.337,
        wavelength_um=0.532,
        objective_na=1.2,
        pixel_size_um=0.0625,
    )


def make_cell(
    label: str | None = "b_lymphocyte",
    *,
    number: int = 1,
    model_id: str = "model@1",
    accepted: bool = True,
    flags: tuple[str, ...] = (),
    thumbnail_png: bytes | None = b"\x89PNG",
    time_index: int = 0,
) -> MeasuredCell:
    """A measured cell with the paper's mean B lymphocyte's figures; ``label`` None leaves it unclassified by any model."""
    check = Check("volume_fl", 169.39 if accepted else 5000.0, 3000.0, "max", "fL")
    prediction = None if label is None else Prediction(model_id, label, 0.9, {label: 0.9, "other": 0.1}, flags)
    return MeasuredCell(
        number=number,
        time_index=time_index,
        centre_um=(0.5, 15.0, 16.0),
        verdict=Verdict((check,)),
        morphology=Morphology(169.39, 185.05, 0.794, 26.44, 15.58, 1.368, 1.401, 181.0, 27.3, 28.4),
        prediction=prediction,
        thumbnail_png=thumbnail_png,
        tomogram_path=None,
    )


def make_measured(name: str = "a", *cells: MeasuredCell, sample: str = "S1", seconds: float = 1.5) -> Measured:
    """An outcome that counts; one B lymphocyte when no cell is given."""
    passed = Verdict((Check("fringe_contrast", 0.8, 0.15, "min"),))
    return Measured(make_acquisition(name, sample=sample), passed, cells or (make_cell(),), seconds)


def make_rejected(name: str = "r", *, reason: str = "fringe_contrast", sample: str = "S1") -> Rejected:
    """An outcome that was refused by one check."""
    failed = Check(reason, 0.05, 0.15, "min")
    return Rejected(make_acquisition(name, sample=sample), Verdict((failed,)), reason, failed.sentence(), seconds=0.3)
