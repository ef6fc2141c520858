"""Does a model know that it does not know? Objects of no class (:mod:`wbcd.simulation.unknown`) against known held-out cells.

    for row in meet_strangers("reference", "cells.zarr"): print(row.kind, row.auroc, row.unclassified)

The area under the ROC curve asks whether the distance could part a kind from the known cells at any threshold; the share that
is unclassified, what the model as it stands would do, with its envelope and its threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wbcd.classification import UNCLASSIFIED, Bundle, Classifier, load_bundle
from wbcd.classification.backends import tempered
from wbcd.classification.unknown import Gauge
from wbcd.errors import BadValue
from wbcd.records import Cell, Tomogram
from wbcd.simulation.fast import half_resolution
from wbcd.simulation.optics import INSTRUMENT
from wbcd.simulation.unknown import KINDS, specimen_of, tomogram_of
from wbcd.training import curves, seen
from wbcd.training import dataset as sets
from wbcd.training.evaluation import scheme_of
from wbcd.training.simulated import PATHS, OpticsPath, largest_cell, place_of, through_holograms

SESSIONS = 1_000_000
"""Strangers are seen in sessions of the microscope from this number on: no set's donors are numbered so high."""
EXACT_SESSIONS = 20
"""A session through holograms has a reference of its own, which takes as long as a cell."""
ATTEMPTS = 8
PAIR = (128, 128)
"""Voxels across of a field in which two cells lie side by side; the data sets' own cuts most pairs."""
KNOWN = "known cells"

OnKind = Callable[[str], None]
OnWarning = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind. ``auroc``: of the distance, against the known cells; ``far``: share beyond the model's threshold;
    ``unclassified``: share out of the count for any reason; ``sure``: mean probability of the label they would have got. Of
    the known cells a set holds the network's input alone: their row has neither the first nor the third."""

    kind: str
    cells: int
    far: float
    sure: float
    auroc: float | None = None
    unclassified: float | None = None


def meet_strangers(
    bundle: str | Path,
    dataset_path: str | Path,
    *,
    cells: int = 60,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    path: OpticsPath = "fast",
    device: str = "auto",
    on_kind: OnKind | None = None,
    on_warning: OnWarning | None = None,
) -> list[Row]:
    """The known cells' row first (those of :func:`_unseen`), then one a kind, ``cells`` of each.

    ``on_warning``: told why the known cells may not be unseen ones, or of other people.

    ``path``: "fast", or "exact" through simulated holograms and the whole reconstruction; of a joined set the known cells are
    those that came the same way, where it says which did.
    Raises BadValue for a model without a gauge, an unknown kind or no cells, BundleInvalid for a set of another input.
    """
    loaded = load_bundle(bundle)
    if loaded.gauge is None:
        raise BadValue(f"{loaded.path}: it has no distance to tell unknown cells by.", action="Run `wbcd model calibrate`.")
    if cells < 1 or set(kinds) - set(KINDS):
        raise BadValue(f"cells is {cells} and kinds {', '.join(kinds)}; at least 1, and of {', '.join(KINDS)}.")
    if path not in PATHS:
        raise BadValue(f"path is {path!r}; it must be one of {', '.join(PATHS)}.")
    data = sets.check_matches(sets.load(Path(dataset_path)), loaded.classes, loaded.input, loaded.path)
    classifier = Classifier(loaded, device)
    unseen, split = _unseen(loaded, data)
    held_out = _alike(data, unseen, path)
    if on_warning is not None:
        for sentence in seen.warnings(loaded, data, held_out, split, scheme_of(loaded)):
            on_warning(sentence)
    deltas = torch.from_numpy(data.ri_delta[held_out].astype(np.float32))
    found = classifier.outputs(deltas)
    near = loaded.gauge.distance(found.early.numpy())
    sure = float(tempered(found.logits, loaded.model.temperature).max(axis=1).mean())
    rows = [Row(KNOWN, len(near), float((near > loaded.gauge.threshold).mean()), sure)]
    for number, kind in enumerate(kinds):
        if on_kind is not None:
            on_kind(kind)
        draws = (np.random.SeedSequence(seed, spawn_key=(number, index)) for index in range(cells))
        drawn = [_stranger(kind, draw, index, path) for index, draw in enumerate(draws)]
        rows.append(_row(kind, loaded.gauge, classifier, drawn, near))
    return rows


def _row(kind: str, gauge: Gauge, classifier: Classifier, drawn: Sequence[Cell], near: NDArray[np.float64]) -> Row:
    predictions = classifier.predict(drawn)
    distance = gauge.distance(classifier.outputs_of_cells(drawn).early.numpy())
    strange = np.repeat([False, True], [len(near), len(distance)])
    return Row(
        kind,
        len(drawn),
        far=float((distance > gauge.threshold).mean()),
        sure=float(np.mean([p.probability for p in predictions])),
        auroc=curves.area(*curves.roc(np.concatenate([near, distance]), strange)),
        unclassified=float(np.mean([UNCLASSIFIED in p.flags for p in predictions])),
    )


def _unseen(bundle: Bundle, data: sets.TrainingSet) -> tuple[NDArray[np.intp], str]:
    """All cells of a set none of whose donors the model has seen; of any other the held-out donors, else the held-out cells.

    Without those that the model is known to have seen, and of donors who gave its limits. Also which split they are of. Raises
    BadValue where none is left.
    """
    every = data.indices(sets.ALL)
    if "donors_seen" in bundle.model.training and not seen.donors_of(bundle, data, every):
        cells, split = every, sets.ALL
    else:
        scheme = scheme_of(bundle)
        split = "test_donor" if data.has("test_donor", scheme) else "test"
        cells = data.indices(split, scheme)
    unseen = cells[~(seen.gave_limits(bundle, data, cells) | seen.fitted_to(bundle, data, cells))]
    if not len(unseen):
        raise BadValue(
            f"{data.path}: all its cells that {bundle.model_id} was not trained on are of donors who gave its thresholds.",
            action="Give cells of other donors (of simulated ones: --first-donor).",
        )
    return unseen, split


def _alike(data: sets.TrainingSet, cells: NDArray[np.intp], path: OpticsPath) -> NDArray[np.intp]:
    """Those of ``cells`` that came the strangers' way: another would be told by its sharpness and background alone.

    Of cells that no simulation made, all. Raises BadValue where none came that way.
    """
    joined = data.card.get("joined") or ()
    ways = [part.get("path") for part in joined] or [data.card.get("path")]
    ranges = [numbers for _, numbers in data.origins()] or [range(len(data.label))]
    keep = np.zeros(len(data.label), dtype=bool)
    for way, numbers in zip(ways, ranges, strict=True):
        keep[numbers.start : numbers.stop] = way == path or way not in sets.SIMULATED_PATHS
    found = cells[keep[cells]]
    if not len(found):
        raise BadValue(
            f"{data.path}: none of its cells that the model never saw came by {path}, as the strangers do.",
            action=f"Give a set that was made with --path {path}, or a joined one that holds such cells.",
        )
    return found


def _stranger(kind: str, draw: np.random.SeedSequence, index: int, path: OpticsPath) -> Cell:
    """The largest object that is found in the tomogram of one of ``kind``."""
    rng = np.random.default_rng(draw)
    for _ in range(ATTEMPTS):
        # Most pairs reach the border of the window that a cell is cut out by.
        found = largest_cell(_tomogram(kind, rng, SESSIONS + index, path), cut=kind == "doublet")
        if found is not None:
            return found
    raise BadValue(f"{ATTEMPTS} simulated objects of kind {kind} and none was found in its tomogram.", action="Report this.")


def _tomogram(kind: str, rng: np.random.Generator, session: int, path: OpticsPath) -> Tomogram | None:
    if path == "exact":
        session = SESSIONS + (session - SESSIONS) % EXACT_SESSIONS
        return through_holograms(specimen_of(kind, rng, INSTRUMENT.medium_ri, place_of(rng)), session, rng)
    optics = half_resolution(session=session)
    if kind == "doublet":
        optics = replace(optics, shape=(optics.shape[0], *PAIR))
    return tomogram_of(kind, rng, optics)
