"""The order of the stages, written once.

Read the file, judge its fringes, retrieve the fields, judge them, reconstruct, judge each tomogram, find its cells,
measure and judge each, classify the accepted ones, and conclude with exactly one outcome.

:func:`examine` is everything before the classifier, :func:`conclude` everything after it; the daemon runs them in
different threads, with batches that span acquisitions in between, and :func:`process` runs them one after the other.
Refusals are values; an error of the file or of its reconstruction becomes a :class:`SetAside`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeAlias

from wbcd.daemon.stages import Stages
from wbcd.errors import (
    Incomplete,
    InputError,
    NoObject,
    NotReadable,
    ReaderDied,
    ReconstructionError,
    StageFailed,
    Truncated,
    Unforeseen,
    WbcdError,
)
from wbcd.recipe import Recipe
from wbcd.records import (
    Acquisition,
    Cell,
    Check,
    HologramStack,
    Measured,
    MeasuredCell,
    Morphology,
    Outcome,
    Payload,
    Prediction,
    Rejected,
    RiSeries,
    SetAside,
    Tomogram,
    Verdict,
)

EMPTY_FIELD = "empty_field"
UNPROTECTED = "unprotected_parts"
MEDIUM = "medium"
"""As :attr:`wbcd.records.Acquisition.assumed` names it."""

MEDIUM_FROM_BACKGROUND = "medium_from_background"
MEDIUM_ASSUMED = "medium_assumed"
NORMAL_FRAME_MOVED = "normal_frame_moved"
NO_NORMAL_FRAME = "no_normal_frame"
"""Flags of a cell that come of its acquisition: what the file left unsaid or said wrongly, and what stood in for it."""

MAY_PASS = (Incomplete, NotReadable, ReaderDied, Truncated, Unforeseen)
"""What a share, a memory limit or a slow copy can do to good bytes: tried again before the file is set aside."""

FIRST_RETRY_S = 5.0
RETRY_GROWTH = 4.0


class Timing:
    """Seconds spent in each stage of one acquisition, by the monotonic clock; ``beat`` is called at each boundary."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, beat: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._beat = beat
        self._last = self._first = clock()
        self.seconds: dict[str, float] = {}

    def done(self, stage: str) -> None:
        """The time since the last boundary belongs to ``stage``."""
        now = self._clock()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
        self._beat()

    def skip(self) -> None:
        """The time since the last boundary belongs to no stage (it was spent waiting)."""
        self._last = self._clock()

    @property
    def total_s(self) -> float:
        """Seconds of work, without the waiting."""
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True)
class ExaminedCell:
    """A cell on its way to the classifier; one that failed its own verdict passes by it."""

    acquisition: Acquisition
    cell: Cell
    morphology: Morphology
    verdict: Verdict
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """The last part of an acquisition: what was judged of it as a whole, or why it could not be."""

    acquisition: Acquisition
    verdict: Verdict = field(default_factory=Verdict)
    error: WbcdError | None = None


Part: TypeAlias = ExaminedCell | End


def process(acquisition: Acquisition, stages: Stages, recipe: Recipe, *, max_batch: int = 16) -> Outcome:
    """One acquisition from its file to its outcome, in this thread; any error that is the item's becomes a SetAside."""
    timing = Timing()
    cells: list[MeasuredCell] = []
    end = End(acquisition)
    parts = read_and_examine(acquisition, stages, recipe, timing)
    while batch := list(islice(parts, max_batch)):
        timing.skip()
        try:
            cells += classify(batch, stages)
        except Exception as error:  # noqa: BLE001 - one file's failure must not be another's
            return SetAside(batch[0].acquisition, as_error_of_item(error, "classify"), timing.total_s)
        timing.done("classify")
        end = next((part for part in batch if isinstance(part, End)), end)
    return conclude(end, cells, timing.total_s)


def read_and_examine(acquisition: Acquisition, stages: Stages, recipe: Recipe, timing: Timing) -> Iterator[Part]:
    """:func:`examine` with the reading before it; every exception that is the item's ends in an End with its error."""
    try:
        acquisition, payload = stages.read(acquisition)
    except Exception as error:  # noqa: BLE001 - one file's failure must not be another's; it is recorded with its class
        yield End(acquisition, error=as_error_of_item(error, "read"))
        return
    timing.done("read")
    yield from examine(acquisition, payload, stages, recipe, timing)


def examine(
    acquisition: Acquisition, payload: Payload, stages: Stages, recipe: Recipe, timing: Timing | None = None
) -> Iterator[Part]:
    """The cells of one acquisition, measured and judged, one by one, and an :class:`End`.

    A foreign exception becomes :class:`Unforeseen`; a failing device or store is not the item's and is raised.
    A series is closed at its end, also when it broke off: its reader is free for another file.
    """
    timing = timing or Timing()
    summary = _Summary()
    failure: WbcdError | None = None
    try:
        yield from _examined_cells(acquisition, payload, stages, recipe, timing, summary)
    except NoObject:
        summary.tomograms = 0
    except Exception as error:  # noqa: BLE001 - the item's fault until several items in a row say otherwise
        failure = as_error_of_item(error, "examine")
    finally:
        if isinstance(payload, RiSeries):
            payload.close()
    yield End(summary.settled(acquisition), summary.verdict() + unprotected(acquisition), failure)


def _examined_cells(
    acquisition: Acquisition, payload: Payload, stages: Stages, recipe: Recipe, timing: Timing, summary: _Summary
) -> Iterator[ExaminedCell]:
    for found in _tomograms(acquisition, payload, stages, recipe, timing, summary):
        tomogram = _in_its_medium(found, acquisition, payload, stages, recipe, summary)
        if not summary.judged(stages.judge_tomogram(tomogram, recipe)):
            continue  # judged early: a bad tomogram costs no measuring
        cells = stages.find_cells(tomogram, recipe, summary.cells + 1)
        timing.done("find cells")
        for cell in cells:
            morphology = stages.measure(cell, recipe)
            verdict = stages.judge_cell(cell, morphology, recipe)
            summary.cells += 1
            timing.done("measure")
            yield ExaminedCell(summary.settled(acquisition), cell, morphology, verdict, tuple(summary.flags))
            timing.skip()


def _in_its_medium(
    tomogram: Tomogram, acquisition: Acquisition, payload: Payload, stages: Stages, recipe: Recipe, summary: _Summary
) -> Tomogram:
    """A volume whose file states no medium, in the one that it shows. Holograms show none: the recipe's default is told of.

    A default that a person set is a statement, and nothing is told.
    """
    if MEDIUM not in acquisition.assumed or recipe.reconstruction.unstated_medium != "background":
        return tomogram
    if isinstance(payload, HologramStack):
        summary.tell(MEDIUM_ASSUMED)
        return tomogram
    settled = stages.settle_medium(tomogram, recipe)
    if settled is tomogram:
        summary.tell(MEDIUM_ASSUMED)
        return tomogram
    summary.medium_ri = settled.medium_ri
    summary.tell(MEDIUM_FROM_BACKGROUND)
    return settled


def _tomograms(
    acquisition: Acquisition, payload: Payload, stages: Stages, recipe: Recipe, timing: Timing, summary: _Summary
) -> Iterator[Tomogram]:
    """From holograms: fringes, fields, tomograms, each judged before the next is made. An RI series enters as it is."""
    if not isinstance(payload, HologramStack):
        for tomogram in payload:
            timing.done("read")
            yield tomogram
        return
    fringes = stages.measure_fringes(payload)
    timing.done("fringes")
    if not summary.judged_early(stages.judge_fringes(fringes, recipe)):
        return
    axis = fringes.axis
    if axis is not None and axis.moved:
        summary.tell(NORMAL_FRAME_MOVED)
    if axis is not None and axis.normal_frame is None:
        summary.tell(NO_NORMAL_FRAME)
    fields = stages.retrieve_fields(payload, fringes, recipe)
    timing.done("fields")
    drift = stages.judge_instrument(acquisition, fringes, fields, recipe)
    if not summary.judged_early(stages.judge_fields(fields, recipe) + drift):
        return
    tomograms = stages.reconstruct(fields, recipe)
    timing.done("tomogram")
    yield from tomograms


class _Summary:
    """What is known of an acquisition as a whole while its parts pass by."""

    def __init__(self) -> None:
        self._early = Verdict()
        self._accepted: list[Verdict] = []
        self._refused: list[Verdict] = []
        self.cells = 0
        self.tomograms = 0
        self.flags: list[str] = []
        self.medium_ri: float | None = None

    def tell(self, flag: str) -> None:
        """A flag of all cells from here on."""
        if flag not in self.flags:
            self.flags.append(flag)

    def settled(self, acquisition: Acquisition) -> Acquisition:
        """The ticket with the medium that was found where its file states none."""
        return acquisition if self.medium_ri is None else replace(acquisition, medium_ri=self.medium_ri)

    def judged_early(self, verdict: Verdict) -> bool:
        """A verdict on the whole acquisition; False when it is refused."""
        self._early += verdict
        return verdict.accepted

    def judged(self, verdict: Verdict) -> bool:
        """A verdict on one of its tomograms; False when that one is refused."""
        self.tomograms += 1
        (self._accepted if verdict.accepted else self._refused).append(verdict)
        return verdict.accepted

    def verdict(self) -> Verdict:
        """Checks of the whole, then the worst of each check over its good tomograms (or its bad ones if none is good)."""
        if not self._early.accepted:
            return self._early
        judged = self._early + worst_of(self._accepted or self._refused)
        if judged.accepted and self.cells == 0:
            judged += Verdict((Check(EMPTY_FIELD, 0.0, 1.0, "min", "cells"),))
        return judged


def unprotected(acquisition: Acquisition) -> Verdict:
    """A flag, never a refusal: of how many of values, scale and whole the file holds no checksum or seal to judge them by."""
    parts = len(acquisition.unprotected)
    return Verdict((Check(UNPROTECTED, float(parts), 3.0, "max", "parts"),) if parts else ())


def worst_of(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict of several over the same checks: for each code the value nearest to (or farthest past) its limit."""
    worst: dict[str, Check] = {}
    for check in (check for verdict in verdicts for check in verdict.checks):
        known = worst.get(check.code)
        if known is None or _margin(check) < _margin(known):
            worst[check.code] = check
    return Verdict(tuple(worst.values()))


def _margin(check: Check) -> float:
    margin = check.limit - check.value if check.sense == "max" else check.value - check.limit
    return margin if margin == margin else float("-inf")  # a NaN never passes


# --- after the batch ----------------------------------------------------------------------------


def to_classify(parts: Iterable[Part]) -> list[ExaminedCell]:
    """The parts that the classifier sees: accepted cells, in order."""
    return [part for part in parts if isinstance(part, ExaminedCell) and part.verdict.accepted]


def classify(parts: Sequence[Part], stages: Stages) -> list[MeasuredCell]:
    """The cells among ``parts`` as the store takes them, the accepted ones with a prediction."""
    chosen = to_classify(parts)
    predictions = predict(chosen, stages)
    by_cell = {id(part): prediction for part, prediction in zip(chosen, predictions, strict=True)}
    return [finish(part, by_cell.get(id(part)), stages) for part in parts if isinstance(part, ExaminedCell)]


def predict(chosen: Sequence[ExaminedCell], stages: Stages) -> Sequence[Prediction]:
    """One prediction a cell. Raises :class:`StageFailed` when their numbers differ: nothing could be told apart then."""
    if not chosen:
        return []
    predictions = stages.predict([part.cell for part in chosen])
    if len(predictions) != len(chosen):
        raise StageFailed(f"classify: {len(chosen)} cells gave {len(predictions)} predictions; one each is needed.")
    return predictions


def finish(part: ExaminedCell, prediction: Prediction | None, stages: Stages) -> MeasuredCell:
    """The cell without its arrays: its picture, and the path of its volume when that is kept."""
    cell = part.cell
    if prediction is not None and part.flags:
        prediction = replace(prediction, flags=(*part.flags, *prediction.flags))
    return MeasuredCell(
        number=cell.number,
        time_index=cell.time_index,
        centre_um=cell.centre_um,
        verdict=part.verdict,
        morphology=part.morphology,
        prediction=prediction,
        thumbnail_png=stages.picture(cell),
        tomogram_path=stages.keep(cell, part.acquisition, prediction),
    )


def conclude(end: End, cells: Sequence[MeasuredCell], seconds: float) -> Outcome:
    """Set aside on an error; rejected on a failed check, or when no cell was accepted (with the first cell's failed check)."""
    if end.error is not None:
        return SetAside(end.acquisition, end.error, seconds)
    failed = end.verdict.failed
    if failed is None and not any(cell.verdict.accepted for cell in cells):
        failed = next((cell.verdict.failed for cell in cells), Check(EMPTY_FIELD, 0.0, 1.0, "min", "cells"))
    if failed is None:
        return Measured(end.acquisition, end.verdict, tuple(cells), seconds)
    message = f"{end.acquisition.path.name}: {failed.sentence()}"
    return Rejected(end.acquisition, end.verdict, failed.code, message, tuple(cells), seconds)


def as_error_of_item(error: Exception, stage: str) -> WbcdError:
    """The item's error, foreign ones wrapped. What is not the item's (device, store, stage) is raised again."""
    if isinstance(error, (InputError, ReconstructionError)):
        return error
    if isinstance(error, WbcdError):
        raise error
    wrapped = Unforeseen(f"{stage}: {type(error).__name__}: {error}".rstrip(": ") + ".")
    wrapped.__cause__ = error
    return wrapped


def retry_after_s(tries: int, *, quiet_s: float, rescan_s: float) -> float:
    """Wait before the next try, after ``tries`` of them: 5, 20, 80 s ..., no longer than a rescan and no shorter than the
    quiet time, for a file looked at sooner cannot have come to rest again."""
    return max(quiet_s, min(rescan_s, FIRST_RETRY_S * RETRY_GROWTH ** min(tries - 1, 16)))
