"""Making a training set with the simulated microscope: phantom -> optics -> tomogram -> cell -> store, over processes.

Every cell follows from (seed, its index) alone, whatever the number of workers and however often the run was killed; each
worker writes its own part and marks it done.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from wbcd.classification import InputSpec
from wbcd.classification.preparation import delta_ri
from wbcd.errors import BadValue, StageFailed
from wbcd.morphology import measure
from wbcd.recipe import Recipe
from wbcd.records import Cell
from wbcd.simulation.cells import CLASSES, phantoms_digest
from wbcd.simulation.fast import half_resolution, optics_digest
from wbcd.simulation.optics import INSTRUMENT
from wbcd.training import dataset as sets
from wbcd.training.card import finish
from wbcd.training.pictures import of_field, projected
from wbcd.training.simulated import DONOR_SD, USUAL, OpticsPath, Seen, Setup, draw_of, simulate_cell

ATTEMPTS = 8
"""Draws for one cell before the run gives up: a phantom now and then reaches the border or falls below the threshold."""

OPTICS = sets.SIMULATED_PATHS


Source: TypeAlias = Callable[[str, int, np.random.SeedSequence], "Cell | Seen | None"]
OnPart: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to make any part; small, since it travels to the process."""

    path: Path
    cells: int
    donors: int
    seed: int
    classes: tuple[str, ...]
    spec: InputSpec
    source: Source
    first_donor: int = 0


def make_dataset(
    out: str | Path,
    cells: int,
    *,
    donors: int = 20,
    seed: int = 0,
    workers: int = 2,
    path: OpticsPath = "fast",
    spec: InputSpec | None = None,
    classes: tuple[str, ...] = CLASSES,
    source: Source | None = None,
    on_part: OnPart | None = None,
    first_donor: int = 0,
) -> str:
    """Make a set of ``cells`` cells, classes in equal numbers; returns its hash. Run again, it goes on where it stopped.

    ``path``: "fast" fills the exact Ewald-cap support of the phantom's spectrum, "exact" goes through simulated holograms and
    the whole reconstruction, "ideal" shows the phantoms themselves, which no instrument does. ``source``: another maker of
    cells, a module-level function (kind, donor, seed) -> Cell or None. ``on_part``: told (cells done, cells). ``first_donor``:
    the number of the first; beyond those of another set, they are other people. Raises BadValue on senseless arguments or a
    folder of another set, StageFailed when a worker dies.
    """
    out, spec = Path(out), spec or InputSpec()
    if cells < 1 or donors < 1 or workers < 1:
        raise BadValue(f"cells, donors and workers are {cells}, {donors} and {workers}; each at least 1.")
    if not 0 <= first_donor <= sets.MAX_DONOR + 1 - donors:
        raise BadValue(f"first_donor is {first_donor} of {donors} donors; at least 0, and the last at most {sets.MAX_DONOR}.")
    if path not in OPTICS:
        raise BadValue(f"path is {path!r}; it must be one of {', '.join(OPTICS)}.")
    maker = source or functools.partial(simulate_cell, path=path, setup=_setup(path, spec))
    card = _card(seed, donors, classes, spec, path if source is None else "custom")
    sets.create(out, cells, {**card, "first_donor": first_donor} if first_donor else card)
    job = _Job(out, cells, donors, seed, classes, spec, maker, first_donor)
    _fill(job, sets.missing_parts(out), workers, on_part)
    return finish(out)


def _setup(path: OpticsPath, spec: InputSpec) -> Setup:
    """The usual instrument, its tomograms at the pitch that the set has where that is finer. Raises BadValue."""
    recipe = Recipe()
    sets.check_window(spec, recipe.morphology.crop_shape, recipe.morphology.crop_voxel_um, "a cell's crop")
    dz, across, _ = recipe.reconstruction.voxel_um if path == "exact" else half_resolution().voxel_um
    if spec.voxel_um[0] < 0.999 * dz:
        raise BadValue(
            f"a pitch of {spec.voxel_um[0]:g} um along z is asked for; by {path} it is {dz:g}.",
            action="Give a coarser --pitch, or --path exact.",
        )
    finest = min(spec.voxel_um[1:])
    return USUAL if finest >= 0.999 * across else Setup(pitch_um=finest)


def make_part(job: _Job, part: int) -> int:
    """Make and write one part, in whatever process; returns its number."""
    indices = sets.part_range(part, job.cells)
    # A donor is one session of the microscope: its cells in a row find its reference demodulated and its operator made.
    made = {index: _sample(job, index) for index in sorted(indices, key=lambda index: _assignment(job)[index][1])}
    sets.write_part(job.path, part, [made[index] for index in indices])
    return part


def _sample(job: _Job, index: int) -> sets.CellSample:
    label, donor = _assignment(job)[index]
    for attempt in range(ATTEMPTS):
        found = job.source(job.classes[label], donor, draw_of(job.seed, index, attempt, job.first_donor))
        if found is not None:
            return _made(job, index, label, donor, found)
    raise StageFailed(
        f"cell {index} ({job.classes[label]}) was not found in its tomogram in {ATTEMPTS} draws.",
        action="Look at the simulation and at the recipe's threshold.",
    )


def _made(job: _Job, index: int, label: int, donor: int, found: Cell | Seen) -> sets.CellSample:
    cell = found.cell if isinstance(found, Seen) else found
    delta = delta_ri(cell, job.spec)
    if isinstance(found, Seen):
        pictures = of_field(found.psi, found.pixel_um, (cell.centre_um[1], cell.centre_um[2]), job.spec)
    else:
        pictures = projected(delta, job.spec, replace(INSTRUMENT, medium_ri=cell.medium_ri))
    return sets.CellSample(delta, label, donor, sets.six_of(measure(cell, Recipe())), pictures, cell_id=index)


@functools.lru_cache(maxsize=4)
def _assignment(job: _Job) -> list[tuple[int, int]]:
    """(class, donor) of each cell: equal numbers in shuffled order, so that a cell's place in the store says nothing of it."""
    count = len(job.classes)
    pairs = [(i % count, job.first_donor + (i // count) % job.donors) for i in range(job.cells)]
    order = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(6,))).permutation(job.cells)
    return [pairs[i] for i in order]


def _fill(job: _Job, parts: list[int], workers: int, on_part: OnPart | None) -> None:
    total = sets.part_count(job.cells)
    done = total - len(parts)
    for _ in _parts_made(job, parts, workers):
        done += 1
        if on_part is not None:
            on_part(min(done * sets.PART, job.cells), job.cells)


def _parts_made(job: _Job, parts: list[int], workers: int) -> Iterator[int]:
    if workers == 1 or len(parts) <= 1:
        yield from (make_part(job, part) for part in parts)
        return
    with worker_pool(workers, __name__, "Run the command again; what was written stays.") as pool:
        yield from _as_made(pool, job, iter(parts), workers)


def _as_made(pool: ProcessPoolExecutor, job: _Job, parts: Iterator[int], workers: int) -> Iterator[int]:
    """Two tasks a worker are in flight at most: a failure then stops the run at once, not after all that was queued."""
    flying: set[Future[int]] = set()
    while True:
        while len(flying) < 2 * workers and (part := next(parts, None)) is not None:
            flying.add(pool.submit(make_part, job, part))
        if not flying:
            return
        landed, flying = wait(flying, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in landed)


@contextmanager
def worker_pool(workers: int, module: str, action: str) -> Iterator[ProcessPoolExecutor]:
    """Processes that have imported ``module``. A death among them is a StageFailed that says ``action``; Ctrl-C ends them."""
    # Not forked from here: a fork of a process with torch's threads may hang. The server has imported torch but run none of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=prepare_worker) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            # The pool would finish what it was given, minutes of it. A part is written whole or not at all.
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
        except BrokenProcessPool as error:
            raise StageFailed("a worker process died.", action=action) from error


def prepare_worker() -> None:
    """Initialiser of a pool's worker: one thread, and no life after its parent's.

    NumPy's linear algebra has threads of its own: with as many workers as cores they wait for one another, at half the speed.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's workers outlive a killed parent and wait for ever; parts are written whole or not at all, so end at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _card(seed: int, donors: int, classes: tuple[str, ...], spec: InputSpec, path: str) -> dict[str, Any]:
    return {
        "origin": "the simulated microscope",
        "pictures": "the normally lit frame" if path == "fast" else "projections of the tomograms",
        "classes": list(classes),
        "seed": seed,
        "donors": donors,
        "path": path,
        "phantoms": phantoms_digest(),
        "simulated": True,
        "input": sets.spec_to_card(spec),
        "recipe_id": Recipe().recipe_id,
        "six": list(sets.SIX),
        "donor_sd": DONOR_SD,
        "optics": optics_digest(),
        "instrument": {name: [getattr(INSTRUMENT, name)] * 2 for name in ("objective_na", "wavelength_um")},
    }
