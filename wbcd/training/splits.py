"""Which cells train, which watch and which judge; and whether a class can be told from its donor.

Three schemes, all stored with a set:

    both    whole donors are held out first ("test_donor"), the rest is shuffled 7:1:2 within each class: one training
            answers both questions
    cell    every cell shuffled 7:1:2 within each class, as in the paper: donors are known from training
    donor   whole donors 7:1:2: no donor of "validation" or "test" was seen in training
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]

SPLITS = ("train", "validation", "test", "test_donor")
ALL = "all"
"""Every cell: for a model that was trained on another set."""
SCHEMES = ("both", "cell", "donor")
HELD_OUT_DONORS = 0.1
MIN_DONORS_TO_HOLD_OUT = 5
CONFOUNDED = 0.1
"""A donor that says a tenth of what chance leaves open about the class is worth a warning."""


def make_splits(label: Labels, donor: Labels, seed: int) -> dict[str, NDArray[np.int8]]:
    """Index into :data:`SPLITS` for each cell, of each scheme."""
    return {
        "both": split_of(label, donor, seed),
        "cell": _by_cell(label, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4,)))),
        "donor": _by_donor(label, donor, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(5,)))),
    }


def split_of(label: Labels, donor: Labels, seed: int) -> NDArray[np.int8]:
    """The scheme "both": index into :data:`SPLITS` for each cell.

    Whole donors are held out first (a tenth, at least one, when there are five or more): "test_donor" is the honest figure,
    since shuffling cells lets a network recognise a donor. A donor without whom a class would have no other stays. The
    rest is shuffled 7:1:2 within each class, as in the paper.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    out = np.full(len(label), -1, dtype=np.int8)
    donors = np.unique(donor)
    if len(donors) >= MIN_DONORS_TO_HOLD_OUT:
        wanted = max(1, round(HELD_OUT_DONORS * len(donors)))
        held = _dispensable(rng.permutation(donors), label, donor, wanted)
        out[np.isin(donor, held)] = SPLITS.index("test_donor")
    return _shuffled(label, out, rng)


def _by_cell(label: Labels, rng: np.random.Generator) -> NDArray[np.int8]:
    return _shuffled(label, np.full(len(label), -1, dtype=np.int8), rng)


def _shuffled(label: Labels, out: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.int8]:
    """Fill what is -1 by 7:1:2 within each class."""
    for kind in np.unique(label):
        cells = rng.permutation(np.flatnonzero((label == kind) & (out < 0)))
        train, validation = round(0.7 * len(cells)), round(0.8 * len(cells))
        out[cells[:train]] = 0
        out[cells[train:validation]] = 1
        out[cells[validation:]] = 2
    return out


def _by_donor(label: Labels, donor: Labels, rng: np.random.Generator) -> NDArray[np.int8]:
    """Donors 7:1:2 (at least one each to validation and test where there are three); all train where there are fewer."""
    out = np.zeros(len(label), dtype=np.int8)
    donors = rng.permutation(np.unique(donor))
    if len(donors) < 3:
        return out
    test = _dispensable(donors, label, donor, max(1, round(0.2 * len(donors))))
    rest = ~np.isin(donor, test)
    left = np.array([d for d in donors if d not in test])
    watch = _dispensable(left, label[rest], donor[rest], max(1, round(0.1 * len(donors))))
    out[np.isin(donor, watch)] = SPLITS.index("validation")
    out[np.isin(donor, test)] = SPLITS.index("test")
    return out


def _dispensable(order: NDArray[Any], label: Labels, donor: Labels, wanted: int) -> list[int]:
    """The first ``wanted`` donors of ``order`` that can be taken away without taking a class's last donor."""
    givers = {int(kind): set(np.unique(donor[label == kind]).tolist()) for kind in np.unique(label)}
    taken: list[int] = []
    for one in order.tolist():
        if len(taken) == wanted:
            break
        if all(len(donors - {one}) > 0 for donors in givers.values() if one in donors):
            taken.append(one)
            for donors in givers.values():
                donors.discard(one)
    return taken


def donor_says(label: Labels, donor: Labels) -> tuple[float, float]:
    """How often the class is guessed right (from the donor alone, without it), each cell judged by the others.

    The first guess is the commonest class among the *other* cells of the same donor, the second among all other cells.
    """
    kinds, code = np.unique(label, return_inverse=True)
    _, who = np.unique(donor, return_inverse=True)
    table = np.zeros((who.max() + 1, len(kinds)), dtype=np.int64)
    np.add.at(table, (who, code), 1)
    cells = np.arange(len(code))
    without = np.tile(table.sum(0), (len(code), 1))
    without[cells, code] -= 1
    others = table[who].copy()
    others[cells, code] -= 1
    # A donor of one cell says nothing of it: then the commonest of all is the guess. Ties are shared.
    others = np.where(others.sum(1, keepdims=True) > 0, others, without)
    return _hit(others, code), _hit(without, code)


def _hit(counts: NDArray[np.int64], code: NDArray[np.intp]) -> float:
    best = counts == counts.max(1, keepdims=True)
    return float((best[np.arange(len(code)), code] / best.sum(1)).mean())


def confounding(label: Labels, donor: Labels) -> float:
    """Goodman and Kruskal's lambda (J. Am. Stat. Assoc. 49:732, 1954), left one out: 0 the donor says nothing, 1 all."""
    with_donor, without = donor_says(label, donor)
    return max(0.0, (with_donor - without) / (1 - without)) if without < 1 else 0.0


def warnings_of(label: Labels, donor: Labels, classes: tuple[str, ...]) -> list[str]:
    """Sentences on what a figure from these cells cannot mean."""
    if not len(label):
        return []
    found: list[str] = []
    if len(np.unique(donor)) == 1:
        found.append("All cells are of one donor: nothing can be said of another donor's cells.")
    elif confounding(label, donor) > CONFOUNDED:
        with_donor, without = donor_says(label, donor)
        found.append(
            f"Class and donor are confounded: the donor alone tells {with_donor:.0%} of the cells' classes, {without:.0%} are"
            " guessed without; a network may have learnt donors, so believe only figures on donors it never saw."
        )
    lone = [c for i, c in enumerate(classes) if len(np.unique(donor[label == i])) == 1]
    if lone and len(np.unique(donor)) > 1:
        found.append(f"{', '.join(lone)}: cells of a single donor each; that class cannot be judged on an unseen donor.")
    return found


def counts(label: Labels, splits: Mapping[str, NDArray[np.int8]], classes: tuple[str, ...]) -> dict[str, Any]:
    """Cells a class in each split of each scheme, JSON-ready."""
    return {
        scheme: {
            name: {c: int(((part == i) & (label == k)).sum()) for k, c in enumerate(classes)}
            for i, name in enumerate(SPLITS)
            if (part == i).any()
        }
        for scheme, part in splits.items()
    }
