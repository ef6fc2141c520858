"""How well could anybody do? Classifiers that know what no instrument shows; of simulated sets only.

Two bounds on what a network can reach with tomograms: classifiers on everything that was drawn for a phantom, and the same
network on the phantoms themselves, free of noise and of optics (a set made with ``--path ideal``). What lies between the
better of them and a network on tomograms is what optics and training cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.errors import BadValue
from wbcd.simulation.cells import parameters_of, phantoms_digest
from wbcd.training import dataset as sets
from wbcd.training.baselines import classical
from wbcd.training.evaluation import Evaluation
from wbcd.training.make import ATTEMPTS
from wbcd.training.simulated import DONOR_SD, phantom_of

CLASSIFIERS = ("svm", "lda", "tree")
FAR = 0.3
"""A drawn volume whose logarithm is farther from the measured one belongs to an attempt that found no cell."""


def by_parameters(data: sets.TrainingSet, splits: Sequence[str]) -> dict[str, dict[str, Evaluation]]:
    """Classifiers on the phantoms' own parameters, fitted on "train": {name: {split: evaluation}}.

    Raises BadValue where the set's phantoms cannot be drawn again.
    """
    return classical(replace(data, morphology=parameters(data)), splits, names=CLASSIFIERS)


def parameters(data: sets.TrainingSet) -> NDArray[np.float32]:
    """What was drawn for each cell [n, parameters]: the phantoms follow from the card's seed. Raises BadValue."""
    card = data.card
    if data.simulated and card.get("joined"):
        raise BadValue(
            f"{data.path}: is joined of {len(card['joined'])} sets; what was drawn for a cell follows from its own set's seed.",
            action="Give one of the sets that it was joined from.",
        )
    if not data.simulated or card.get("path") not in sets.SIMULATED_PATHS:
        raise BadValue(
            f"{data.path}: its cells are not phantoms; nobody knows their true parameters.",
            action="Give a set that `wbcd dataset make` made.",
        )
    for key, ours in (("phantoms", phantoms_digest()), ("donor_sd", DONOR_SD)):
        if card.get(key) != ours:
            raise BadValue(
                f"{data.path}: {key} is {card.get(key)!r}; this version draws {ours!r}.",
                action="Make the set again with this version.",
            )
    return np.array([list(_drawn(data, index).values()) for index in range(len(data.label))], dtype=np.float32)


def _drawn(data: sets.TrainingSet, index: int) -> dict[str, float]:
    kind, donor = data.classes[data.label[index]], int(data.donor[index])
    seen = float(data.morphology[index, sets.SIX.index("volume_fl")])
    seed, first = int(data.card["seed"]), int(data.card.get("first_donor", 0))
    # Nearly always the first attempt is the one, and drawing a phantom takes a while.
    tries = (phantom_of(kind, donor, seed, index, attempt, first) for attempt in range(ATTEMPTS))
    found: Any = next((p for p in tries if abs(math.log(p.volume_fl / seen)) < FAR), None)
    return parameters_of(found or phantom_of(kind, donor, seed, index, 0, first))


def check_same_cells(data: sets.TrainingSet, ideal: sets.TrainingSet) -> None:
    """Raises BadValue unless ``ideal`` shows the same phantoms in the same order."""
    keys = ("seed", "donors", "first_donor", "donor_sd", "phantoms", "classes")
    same = all(ideal.card.get(key) == data.card.get(key) for key in keys)
    shown = all(np.array_equal(a, b) for a, b in ((ideal.label, data.label), (ideal.donor, data.donor)))
    if ideal.card.get("path") != "ideal" or not same or not shown:
        raise BadValue(
            f"{ideal.path}: does not show the phantoms of {data.path} themselves.",
            action="Make it with the same cells, donors and seed, and `--path ideal`.",
        )
