"""Does a model bear the instruments that its card accepts? The same simulated cells, seen by one at each end of each range.

    for row in meet_instruments("reference", cells=100): print(row.name, row.right, row.lost)

No score of a network detects another aperture, so the card's ranges are a promise; this asks whether it is kept.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wbcd.classification import UNCLASSIFIED, Bundle, Classifier, load_bundle
from wbcd.classification.bundle import INSTRUMENT_LIMITS
from wbcd.classification.medium import medium_ri, noise_ri
from wbcd.errors import BadValue
from wbcd.records import LINEAGE, Cell
from wbcd.simulation.cells import CLASSES
from wbcd.training.make import worker_pool
from wbcd.training.simulated import PATHS, USUAL, OpticsPath, Seen, Setup, draw_of, simulate_cell

FIRST_DONOR, DONORS = 3_000, 20
"""People of no training set: these are numbered from 0, those for limits from 1,000."""
USUAL_NAME = "usual instrument"

RANGES = tuple(INSTRUMENT_LIMITS)

BATCH = 16
"""Cells in memory at once."""

OnRow = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One instrument. ``right``: labels that are the cell's, counted or not; ``counted``: cells with a label that counts, and
    ``right_of_counted`` of these; ``lost`` and ``won``: cells labelled rightly only by the usual instrument, only by this one;
    ``missed``: cells that were not found in their tomogram, or cut. ``noise_ri``: the background's, median over the cells."""

    name: str
    cells: int
    missed: int
    right: int
    counted: int
    right_of_counted: int
    lost: int
    won: int
    noise_ri: float


def meet_instruments(
    bundle: str | Path,
    *,
    cells: int = 100,
    seed: int = 0,
    path: OpticsPath = "fast",
    ranges: Sequence[str] = RANGES,
    workers: int = 2,
    device: str = "auto",
    on_row: OnRow | None = None,
) -> list[Row]:
    """The usual instrument's row first, then one for each end of each of the card's ranges; classes in equal numbers.

    An end that is no instrument (a pitch of 0) is left out. That of the noise is asked for by so much less light as would give
    it by shot noise alone; what came of it the row says. Raises BadValue for a model of other classes than the simulated ones,
    a range that its card does not have, and a noise that the usual instrument has already; StageFailed when a worker dies.
    """
    loaded = load_bundle(bundle)
    truth = _truth(loaded)
    if loaded.model.instrument is None:
        raise BadValue(
            f"{loaded.path}: its card accepts no range of instruments.", action="Give the ranges to `wbcd model calibrate`."
        )
    if unknown := [name for name in ranges if name not in RANGES]:
        raise BadValue(f"there is no range {unknown[0]!r}; there are {', '.join(RANGES)}.")
    accepted = [name for name in RANGES if getattr(loaded.model.instrument, name) is not None]
    if (absent := [name for name in ranges if name not in accepted]) and set(ranges) != set(RANGES):
        raise BadValue(
            f"{loaded.path}: its card has no range of {absent[0]}; it has {', '.join(accepted)}.",
            action="Give the range to `wbcd model calibrate`.",
        )
    if path not in PATHS:
        raise BadValue(f"path is {path!r}; it must be one of {', '.join(PATHS)}.")
    if cells < 1 or workers < 1:
        raise BadValue(f"cells and workers are {cells} and {workers}; each at least 1.")
    classifier = Classifier(loaded, device)

    def answers(name: str, setup: Setup) -> list[_Answer]:
        if on_row is not None:
            on_row(name)
        return list(_answers(classifier, truth, _cells(cells, seed, path, setup, workers)))

    usual = answers(USUAL_NAME, USUAL)
    rows = [_row(USUAL_NAME, usual, usual)]
    for name, setup in _ends(loaded, ranges, rows[0].noise_ri):
        rows.append(_row(name, answers(name, setup), usual))
    return rows


def _truth(bundle: Bundle) -> list[str]:
    """The name that the model has for each of the simulated classes."""
    if set(CLASSES) <= set(bundle.classes):
        return list(CLASSES)
    if {LINEAGE[c] for c in CLASSES} <= set(bundle.classes):
        return [LINEAGE[c] for c in CLASSES]
    raise BadValue(f"{bundle.path}: it knows {', '.join(bundle.classes)}; cells are simulated of {', '.join(CLASSES)}.")


def _ends(bundle: Bundle, ranges: Sequence[str], usual_noise: float) -> Iterator[tuple[str, Setup]]:
    for name in RANGES:
        for end in getattr(bundle.model.instrument, name) or () if name in ranges else ():
            if name != "noise_ri" and end > 0:
                yield f"{name} {end:g}", replace(USUAL, **{name: end})
            elif name == "noise_ri" and end > 0:
                if not end > usual_noise > 0:
                    raise BadValue(
                        f"{bundle.path}: its card accepts noise up to {end:g}; the usual one is {usual_noise:.2g} already.",
                        action="Widen the range with `wbcd model calibrate --noise-ri`.",
                    )
                # Shot noise goes with the root of the light.
                light = (usual_noise / end) ** 2
                yield f"1/{1 / light:.0f} of the light", replace(USUAL, light=light)


@dataclass(frozen=True, slots=True)
class _Answer:
    """Of one cell: whether its label is right, whether it is counted, its background's noise; of one that was missed, none."""

    right: bool = False
    counted: bool = False
    missed: bool = True
    noise_ri: float = math.nan


def _answers(classifier: Classifier, truth: Sequence[str], drawn: Iterable[Cell | None]) -> Iterator[_Answer]:
    """A batch at a time: a hundred tomograms are gigabytes."""
    cells = iter(drawn)
    number = 0
    while batch := list(itertools.islice(cells, BATCH)):
        predictions = iter(classifier.predict([cell for cell in batch if cell is not None]))
        for cell in batch:
            if cell is None:
                yield _Answer()
            else:
                prediction = next(predictions)
                right = prediction.label == truth[number % len(truth)]
                counted = UNCLASSIFIED not in prediction.flags
                yield _Answer(right, counted, missed=False, noise_ri=noise_ri(cell, medium_ri(cell)))
            number += 1


def _row(name: str, answers: Sequence[_Answer], usual: Sequence[_Answer]) -> Row:
    noise = [a.noise_ri for a in answers if not math.isnan(a.noise_ri)]
    return Row(
        name,
        cells=len(answers),
        missed=sum(a.missed for a in answers),
        right=sum(a.right for a in answers),
        counted=sum(a.counted for a in answers),
        right_of_counted=sum(a.right and a.counted for a in answers),
        lost=sum(u.right and not a.right for u, a in zip(usual, answers, strict=True)),
        won=sum(a.right and not u.right for u, a in zip(usual, answers, strict=True)),
        noise_ri=float(np.median(noise)) if noise else math.nan,
    )


def _cells(count: int, seed: int, path: OpticsPath, setup: Setup, workers: int) -> Iterator[Cell | None]:
    """Cell ``index`` is of class ``index % 4``: the same phantom of the same donor whatever the setup."""
    make = functools.partial(_cell, seed=seed, path=path, setup=setup)
    if workers == 1:
        yield from map(make, range(count))
        return
    with worker_pool(workers, __name__, "Run the command again, with fewer --workers.") as pool:
        for start in range(0, count, BATCH):
            yield from pool.map(make, range(start, min(start + BATCH, count)))


def _cell(index: int, *, seed: int, path: OpticsPath, setup: Setup) -> Cell | None:
    donor = FIRST_DONOR + (index // len(CLASSES)) % DONORS
    found = simulate_cell(CLASSES[index % len(CLASSES)], donor, draw_of(seed, index, 0, FIRST_DONOR), path=path, setup=setup)
    return found.cell if isinstance(found, Seen) else found
