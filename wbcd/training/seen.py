"""What a model has seen: the cells and the donors behind its weights, so that nobody calls them held out.

A bundle's card names its set by the hash of the content, the scheme of its split, and the donors who trained it or chose its
weights. Simulated donors follow from their number, in whatever set; measured ones are known by a digest of their name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.classification import Bundle
from wbcd.classification.bundle import lessons
from wbcd.training import dataset as sets
from wbcd.training.evaluation import HELD_OUT, scheme_in

FITTED = ("train", "validation")
"""Splits that a training looks at."""
SIMULATED = ("phantoms", "optics", "donor_sd")
"""What simulated cells follow from, on a set's card."""
KEPT = ("cells", "donors", "first_donor", "seed", "path", "recipe_id", "label_by", "joined", "splits_of", *SIMULATED)
"""What a model's card keeps of its set's."""
LESSON = ("data_hash", "split_by", "data", "joined_hashes", "start")
"""What it keeps of the training of the model that it began with, to know what that had seen."""
HOW = ("command", "epochs", "seed", "learning_rate", "precision", "device", "device_name", "training_seconds", "note")
"""What it keeps of it besides, to make it again."""


def facts(data: sets.TrainingSet, split_by: str, start: Bundle | None = None) -> dict[str, Any]:
    """What the card of a model trained on ``data`` keeps of it, JSON-ready; ``start``: the model that it began with."""
    known = donors(data, _fitted(data, split_by))
    found = {
        "data_hash": data.data_hash,
        "split_by": split_by,
        "data": {key: data.card[key] for key in KEPT if key in data.card},
    }
    if "joined_hashes" in data.card:
        found["joined_hashes"] = list(data.card["joined_hashes"])
    if start is not None:
        theirs = start.model.training
        known |= set(theirs.get("donors_seen", ()))
        kept = {key: theirs[key] for key in (*LESSON, *HOW) if key in theirs}
        found["start"] = {"model_id": start.model_id, "simulated": start.model.simulated, **kept}
    return {**found, "donors_seen": sorted(known)}


def of_limits(data: sets.TrainingSet) -> dict[str, Any]:
    """What a model's card keeps of the held-out set that gave its limits: their figures would be of the cells they suit."""
    return {"donors_seen": sorted(donors(data, data.indices(sets.ALL)))}


def gave_limits(bundle: Bundle, data: sets.TrainingSet, cells: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which of these cells are of donors of the held-out set that gave the model's limits."""
    limits = bundle.model.measured.get("limits_from", {})
    if "donors_seen" not in limits:
        # A card of an earlier version knows a held-out set by its hash alone.
        given = limits.get("data_hash")
        return np.full(len(cells), given == data.data_hash and given != bundle.model.training.get("data_hash"))
    known = set(limits["donors_seen"])
    return np.isin(data.donor[cells], [donor for donor, key in _keys(data, cells).items() if key in known])


def before(start: Bundle, data: sets.TrainingSet, split_by: str) -> list[str]:
    """Sentences on what of a set's watched and held-out parts a training's first weights had seen already."""
    begun = f"{start.model_id}, with whose weights this training began,"
    found = []
    if "donors_seen" not in start.model.training:
        found.append(f"{begun} does not say which donors it has seen: no figure is surely of unseen ones.")
    for split in ("validation", *HELD_OUT):
        if not data.has(split, split_by):
            continue
        cells = data.indices(split, split_by)
        if known := cells_of(start, data, cells):
            found.append(f"{begun} was trained on, or chosen by, {known} of the {len(cells)} cells of {split!r}.")
        elif split != "validation" and (shared := _shared(start, data, cells, split, split_by)):
            found.append(
                f"{begun} has seen {shared} of the {len(donors(data, cells))} donors of {split!r}: this says nothing of unseen"
                " donors."
            )
        if not known and split != "validation" and shares_sets(start, data):
            found.append(
                f"{begun} was trained on a set with cells or phantoms of this one: how many of {split!r} is not known."
            )
    return found


def donors(data: sets.TrainingSet, cells: NDArray[np.intp]) -> set[str]:
    """Who gave these cells, by keys that mean the same person in every set."""
    return set(_keys(data, cells).values())


def same_set(bundle: Bundle, data: sets.TrainingSet) -> bool:
    """Whether the model was trained on this set: the same content, or the same simulated cells made again elsewhere."""
    return _same(bundle.model.training, bundle.model.simulated, data.card, data.simulated)


def _same(lesson: Mapping[str, Any], simulated: bool, card: Mapping[str, Any], also: bool) -> bool:
    """Whether a card's training, of ``simulated`` cells or not, is of the set of ``card``; ``also``: whether its are.

    Simulated cells follow from their seeds, the last bits of their tomograms from the processor too, and with them the hash.
    What a card of an earlier version does not say is not asked.
    """
    own, theirs = lesson.get("data_hash"), lesson.get("data", {})
    if own is None or own == card.get("data_hash"):
        return own is not None
    if not (also and simulated and "phantoms" in theirs and "seed" in theirs):
        return False
    # Joined from the same cells, but with other splits.
    if ("splits_of" in theirs) != ("splits_of" in card):
        return False
    if "splits_of" in theirs and not _same(_of_card(theirs["splits_of"]), simulated, card["splits_of"], also):
        return False
    # A card leaves these out where they are 0 and none: other people's cells of the same seed must not pass for these.
    one, other = ({"first_donor": 0, "joined": None, **said} for said in (theirs, card))
    return all(one[key] == other.get(key) for key in KEPT if key in one and key != "splits_of")


def cells_of(bundle: Bundle, data: sets.TrainingSet, cells: NDArray[np.intp]) -> int:
    """How many of these cells the model, or one that it began with, was fitted to or chosen by; 0 for another set."""
    return int(fitted_to(bundle, data, cells).sum())


def fitted_to(bundle: Bundle, data: sets.TrainingSet, cells: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which of these cells those are."""
    fitted = np.zeros(len(cells), dtype=np.bool_)
    for lesson, simulated in lessons(bundle.model):
        if (known := _in_common(lesson, simulated, data)) is not None:
            fitted |= np.isin(cells, _fitted(data, scheme_in(lesson))) & (cells < known)
    return fitted


def _in_common(lesson: Mapping[str, Any], simulated: bool, data: sets.TrainingSet) -> int | None:
    """How many of the first cells of ``data`` the lesson was of, in the same splits; None where that cannot be told.

    All where it was of this set; those before the joined ones where one set carries on the other's splits.
    """
    learnt = [lesson, *map(_of_card, _kept(lesson.get("data", {})))]
    for card in ({**data.card, "cells": len(data.label)}, *_kept(data.card)):
        if any(_same(one, simulated, card, data.simulated) for one in learnt):
            return int(card["cells"])
    return None


def _kept(card: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The set whose splits a joined one carries on, the one whose splits that carries on, and so on."""
    while card := card.get("splits_of") or {}:
        yield card


def _of_card(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """As if a training had been of the set."""
    return {**card, "data": card}


def shares_sets(bundle: Bundle, data: sets.TrainingSet) -> bool:
    """Whether this set and one that the model learnt from are not the same, but one was joined from the other, both hold a
    third, or both show the same phantoms."""
    here = _parts(data.card, data.data_hash)
    for lesson, simulated in lessons(bundle.model):
        theirs = _parts({**lesson.get("data", {}), **lesson}, str(lesson.get("data_hash")))
        if _in_common(lesson, simulated, data) is None and here & theirs:
            return True
    return False


def _parts(said: Mapping[str, Any], own: str) -> set[Any]:
    """What a set is made of: hashes, and what its phantoms were drawn from, however many and through whatever optics.

    Where the class of a number is the same in both, the body is: of another donor if they differ in size.
    """
    parts = [said, *(said.get("joined") or [])]
    made = {
        (part.get("seed"), part.get("first_donor", 0), str(said.get("phantoms")))
        for part in parts
        if part.get("path") in sets.SIMULATED_PATHS
    }
    return {own, *(said.get("joined_hashes") or []), *made}


def donors_of(bundle: Bundle, data: sets.TrainingSet, cells: NDArray[np.intp]) -> list[str]:
    """Donors of these cells whom the model has seen; none where its card does not say."""
    return sorted(donors(data, cells) & set(bundle.model.training.get("donors_seen", ())))


def warnings(bundle: Bundle, data: sets.TrainingSet, cells: NDArray[np.intp], split: str, scheme: str) -> list[str]:
    """Sentences on why a figure from these cells is none of unseen cells, of unseen donors or of the same phantoms."""
    found: list[str] = []
    if known := cells_of(bundle, data, cells):
        found.append(
            f"{bundle.model_id} was trained on, or chosen by, {known} of the {len(cells)} judged cells: no held-out figure."
        )
    elif shares_sets(bundle, data):
        found.append(
            f"{data.path.name} and the set that {bundle.model_id} was trained on hold cells or phantoms in common: how many of"
            " these it has seen is not known."
        )
    if shared := _shared(bundle, data, cells, split, scheme):
        found.append(
            f"{bundle.model_id} has seen {shared} of the {len(donors(data, cells))} judged donors: this says nothing of"
            " unseen donors."
        )
    if giving := int(gave_limits(bundle, data, cells).sum()):
        found.append(
            f"{giving} of the {len(cells)} judged cells are of donors who gave {bundle.model_id} its temperature and"
            " thresholds: calibration, prediction sets and the share called unknown are not those of other donors."
        )
    trained_on = bundle.model.training.get("data", {})
    for key in SIMULATED:
        theirs, ours = trained_on.get(key), data.card.get(key)
        if theirs and ours and theirs != ours:
            found.append(f"{bundle.model_id} was trained on {key} of another version ({theirs}; these are {ours}).")
    return found


def _shared(bundle: Bundle, data: sets.TrainingSet, cells: NDArray[np.intp], split: str, scheme: str) -> int:
    """How many donors of these cells it has seen; 0 where it shares them by design: a split by cell says so itself."""
    by_design = split != "test_donor" and scheme != "donor"
    if by_design and any(_in_common(lesson, simulated, data) is not None for lesson, simulated in lessons(bundle.model)):
        return 0
    return len(donors_of(bundle, data, cells))


def _fitted(data: sets.TrainingSet, scheme: str) -> NDArray[np.intp]:
    return np.concatenate([data.indices(split, scheme) for split in FITTED if data.has(split, scheme)])


def _keys(data: sets.TrainingSet, cells: NDArray[np.intp]) -> dict[int, str]:
    """Key of each donor of these cells, by the set's number for him."""
    names = list(data.card.get("donor_names") or [])
    return {donor: _key(data, names, donor) for donor in np.unique(data.donor[cells]).tolist()}


def _key(data: sets.TrainingSet, names: list[str], donor: int) -> str:
    if donor < len(names):
        return hashlib.blake2b(str(names[donor]).encode(), digest_size=8).hexdigest()
    return f"simulated-{donor}" if data.simulated else f"{data.data_hash[:12]}-{donor}"
