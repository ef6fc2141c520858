"""Which cells train, which watch and which judge; and whether a class can be told from its donor.

Three schemes, all stored with a set:

    both    whole donors are held out first ("test_donor"), the rest is shuffled 7:1:2 within each class: one training
            answers both questions
    cell    every cell shuffled 7:1:2 within each class, as in the paper: donors are known from training
    donor   whole donors 7:1:2: no donor of "validation" or "test" was seen in training
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]

SPLITS = ("train", "validation", "test", "test_donor")
TEST_DONOR = SPLITS.index("test_donor")
ALL = "all"
"""Every cell: for a model that was trained on another set."""
SCHEMES = ("both", "cell", "donor")
HELD_OUT_DONORS = 0.2
MIN_DONORS_TO_HOLD_OUT = 5
CONFOUNDED = 0.1
"""A donor that says a tenth of what chance leaves open about the class is worth a warning."""
SHUFFLES = 199
"""Deals of the donors to the cells; that chance tells more than each of them happens once in 200 sets."""


def make_splits(label: Labels, donor: Labels, seed: int) -> dict[str, NDArray[np.int8]]:
    """Index into :data:`SPLITS` for each cell, of each scheme."""
    return {
        "both": split_of(label, donor, seed),
        "cell": _by_cell(label, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4,)))),
        "donor": _by_donor(label, donor, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(5,)))),
    }


def continue_splits(
    label: Labels, donor: Labels, seed: int, kept: Mapping[str, NDArray[np.int8]]
) -> dict[str, NDArray[np.int8]]:
    """Splits of cells the first of whom have some already: these stay, and so does a donor that they hold out or train on.

    ``kept``: each scheme's of the first cells. Of donors whom they do not know as many are held out as all donors together
    ask for, as far as no class loses its last.
    """
    first = len(kept["both"])
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(7,)))
    known = np.unique(donor[:first])
    new = rng.permutation(np.setdiff1d(donor, known))
    both, cell = (np.concatenate([kept[s], np.full(len(label) - first, -1, dtype=np.int8)]) for s in ("both", "cell"))
    held = np.unique(donor[:first][kept["both"] == TEST_DONOR])
    donors = len(known) + len(new)
    if donors >= MIN_DONORS_TO_HOLD_OUT:
        free = ~np.isin(donor, held)
        wanted = max(0, max(1, round(HELD_OUT_DONORS * donors)) - len(held))
        held = np.union1d(held, _dispensable(new, label[free], donor[free], wanted))
    both[np.isin(donor, held)] = TEST_DONOR
    theirs = dict(zip(donor[:first].tolist(), kept["donor"].tolist(), strict=True))
    return {
        "both": _shuffled(label, both, rng),
        "cell": _shuffled(label, cell, rng),
        "donor": _by_donor(label, donor, rng, theirs),
    }


def split_of(label: Labels, donor: Labels, seed: int) -> NDArray[np.int8]:
    """The scheme "both": index into :data:`SPLITS` for each cell.

    Whole donors are held out first (a fifth, at least one, when there are five or more): "test_donor" is the honest figure,
    since shuffling cells lets a network recognise a donor. A donor without whom a class would have no other stays. The
    rest is shuffled 7:1:2 within each class, as in the paper.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    out = np.full(len(label), -1, dtype=np.int8)
    donors = np.unique(donor)
    if len(donors) >= MIN_DONORS_TO_HOLD_OUT:
        wanted = max(1, round(HELD_OUT_DONORS * len(donors)))
        held = _dispensable(rng.permutation(donors), label, donor, wanted)
        out[np.isin(donor, held)] = TEST_DONOR
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


def _by_donor(
    label: Labels, donor: Labels, rng: np.random.Generator, dealt: Mapping[int, int] | None = None
) -> NDArray[np.int8]:
    """Donors 7:1:2 (at least one each to validation and test where there are three); all train where there are fewer.

    Both parts get a donor of each class that has three, if need be by taking more donors than that. ``dealt``: where some
    donors are already; they stay, and the others fill what misses.
    """
    out, dealt = np.zeros(len(label), dtype=np.int8), dealt or {}
    donors = rng.permutation(np.unique(donor)).tolist()
    watch, test = ([one for one in donors if dealt.get(one) == SPLITS.index(name)] for name in ("validation", "test"))
    if len(donors) >= 3:
        gives: dict[int, set[int]] = {one: set() for one in donors if one not in {*watch, *test}}
        for one, kind in np.unique(np.stack([donor, label], axis=1), axis=0).tolist():
            if one in gives:
                gives[one].add(kind)
        fixed = dealt.keys()
        test += _covering(gives, max(1, round(0.2 * len(donors))) - len(test), keep=2, fixed=fixed)
        left = {one: kinds for one, kinds in gives.items() if one not in test}
        watch += _covering(left, max(1, round(0.1 * len(donors))) - len(watch), keep=1, fixed=fixed)
    out[np.isin(donor, watch)] = SPLITS.index("validation")
    out[np.isin(donor, test)] = SPLITS.index("test")
    return out


def _covering(gives: Mapping[int, set[int]], wanted: int, *, keep: int, fixed: Collection[int] = ()) -> list[int]:
    """``wanted`` donors, first those that give the most classes not taken yet, else in the order given.

    No class loses its last donor; of donors that add as much, those are preferred whose classes keep ``keep`` others. Of
    these more than ``wanted`` are taken where that adds a class. None where none is wanted; none of ``fixed`` ever.
    """
    left = Counter(kind for kinds in gives.values() for kind in kinds)
    free, missing = {one: kinds for one, kinds in gives.items() if one not in fixed}, set(left)
    taken: list[int] = []
    if wanted <= 0:
        return taken

    def worth(one: int) -> tuple[int, bool]:
        return len(free[one] & missing), all(left[kind] > keep for kind in free[one])

    while True:
        full = len(taken) >= wanted
        least = keep if full else 1
        best = max((one for one in free if all(left[kind] > least for kind in free[one])), key=worth, default=None)
        if best is None or (full and not free[best] & missing):
            return taken
        kinds = free.pop(best)
        taken.append(best)
        missing -= kinds
        left.subtract(kinds)


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
    """How often the class is guessed right (from the donor alone, without it).

    The first guess is the commonest class among the cells of the same donor, the second among all cells. No cell is left out:
    where classes are as large as each other that would make its own the smallest, and the guess always wrong.
    """
    told, without, _ = _guessed(label, donor)
    return told / len(label), without / len(label)


def _guessed(label: Labels, donor: Labels) -> tuple[int, int, NDArray[np.int64]]:
    """Cells guessed right (from the donor, without it, from donors dealt to the cells at random [SHUFFLES])."""
    kinds, code = np.unique(label, return_inverse=True)
    donors, who = np.unique(donor, return_inverse=True)

    def told(dealt: NDArray[np.intp]) -> int:
        table = np.bincount(dealt * len(kinds) + code, minlength=len(donors) * len(kinds))
        return int(table.reshape(len(donors), len(kinds)).max(axis=1).sum())

    rng = np.random.default_rng(0)
    dealt = np.array([told(rng.permutation(who)) for _ in range(SHUFFLES)], dtype=np.int64)
    return told(who), int(np.bincount(code).max()), dealt


def confounding(label: Labels, donor: Labels) -> float:
    """Goodman and Kruskal's lambda (J. Am. Stat. Assoc. 49:732, 1954) above chance: 0 the donor says nothing, 1 all.

    The commonest class of a donor is guessed as often as that of all cells or more, whatever the donors mean, the more so
    the fewer cells each has; so the baseline is what donors dealt at random tell, which is never less than the largest class.
    """
    told, _, dealt = _guessed(label, donor)
    chance = float(dealt.mean())
    return max(0.0, (told - chance) / (len(label) - chance)) if chance < len(label) else 0.0


def _confounded(label: Labels, donor: Labels) -> bool:
    """Whether the donor says much of the class, and more than in every deal."""
    told, _, dealt = _guessed(label, donor)
    return confounding(label, donor) > CONFOUNDED and told > int(dealt.max())


def warnings_of(label: Labels, donor: Labels, classes: tuple[str, ...]) -> list[str]:
    """Sentences on what a figure from these cells cannot mean."""
    if not len(label):
        return []
    found: list[str] = []
    if len(np.unique(donor)) == 1:
        found.append("All cells are of one donor: nothing can be said of another donor's cells.")
    elif _confounded(label, donor):
        with_donor, without = donor_says(label, donor)
        found.append(
            f"Class and donor are confounded: the donor alone tells {with_donor:.0%} of the cells' classes, {without:.0%} are"
            " guessed without; a network may have learnt donors, so believe only figures on donors it never saw."
        )
    lone = [c for i, c in enumerate(classes) if len(np.unique(donor[label == i])) == 1]
    if lone and len(np.unique(donor)) > 1:
        found.append(f"{', '.join(lone)}: cells of a single donor each; that class cannot be judged on an unseen donor.")
    return found


def missing_classes(label: Labels, splits: Mapping[str, NDArray[np.int8]], classes: tuple[str, ...]) -> list[str]:
    """Sentences on classes that training, or another part with cells, lacks; ``splits``: index into SPLITS, by scheme."""
    found: list[str] = []
    for scheme, part in splits.items():
        trained = np.unique(label[part == SPLITS.index("train")])
        if lost := [classes[k] for k in np.setdiff1d(np.arange(len(classes)), trained)]:
            found.append(f"{', '.join(lost)}: no cell in training (by {scheme}): no network can learn that class.")
        if len(trained) and not (part == SPLITS.index("validation")).any():
            found.append(f"no cell is in validation (by {scheme}): nothing can be trained so; more cells or donors are needed.")
        for i, name in enumerate(SPLITS[1:], start=1):
            lacking = np.setdiff1d(trained, label[part == i])
            if (part == i).any() and len(lacking):
                found.append(
                    f"{', '.join(classes[k] for k in lacking)}: in training, but no cell in {name} (by {scheme}); figures there"
                    " say nothing of that class, more donors or cells of it are needed."
                )
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
