"""What a model has seen: the cells and the donors behind its weights, so that nobody calls them held out.

A bundle's card names its set by the hash of the content, the scheme of its split, and the donors who trained it or chose its
weights. Simulated donors follow from their number, in whatever set; measured ones are known by a digest of their name.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.classification import Bundle
from wbcd.training import dataset as sets
from wbcd.training.evaluation import HELD_OUT, scheme_of

FITTED = ("train", "validation")
"""Splits that a training looks at."""
SIMULATED = ("phantoms", "optics", "donor_sd")
"""What simulated cells follow from, on a set's card."""
KEPT = ("cells", "donors", "first_donor", "seed", "path", "recipe_id", "label_by", "joined", *SIMULATED)
"""What a model's card keeps of its set's."""


def facts(data: sets.TrainingSet, split_by: str, start: Bundle | None = None) -> dict[str, Any]:
    """What the card of a model trained on ``data`` keeps of it, JSON-ready; ``start``: the model that it began with."""
    known = donors(data, _fitted(data, split_by))
    begun: dict[str, Any] = {}
    if start is not None:
        known |= set(start.model.training.get("donors_seen", ()))
        begun["start"] = {"model_id": start.model_id, "simulated": start.model.simulated}
        if "data_hash" in start.model.training:
            begun["start"]["data_hash"] = start.model.training["data_hash"]
    return {
        **begun,
        "data_hash": data.data_hash,
        "split_by": split_by,
        "data": {key: data.card[key] for key in KEPT if key in data.card},
        "donors_seen": sorted(known),
    }


def before(start: Bundle, data: sets.TrainingSet, split_by: str) -> list[str]:
    """Sentences on what of a set's held-out parts a training's first weights had seen already."""
    found = []
    for split in HELD_OUT:
        if data.has(split, split_by):
            cells = data.indices(split, split_by)
            known, shared = cells_of(start, data, cells), donors_of(start, data, cells)
            what = f"{known} of the {len(cells)} cells" if known else f"{len(shared)} of the {len(donors(data, cells))} donors"
            if known or shared:
                found.append(
                    f"{start.model_id}, with whose weights this training began, has seen {what} of {split!r}: no held-out"
                    " figure."
                )
    return found


def donors(data: sets.TrainingSet, cells: NDArray[np.intp]) -> set[str]:
    """Who gave these cells, by keys that mean the same person in every set."""
    names = list(data.card.get("donor_names") or [])
    return {_key(data, names, one) for one in np.unique(data.donor[cells]).tolist()}


def same_set(bundle: Bundle, data: sets.TrainingSet) -> bool:
    """Whether the model was trained on this set: the same content, or the same simulated cells made again elsewhere.

    Simulated cells follow from their seeds, the last bits of their tomograms from the processor too, and with them the hash.
    What a card of an earlier version does not say is not asked.
    """
    own, theirs = bundle.model.training.get("data_hash"), bundle.model.training.get("data", {})
    if own is None or own == data.data_hash:
        return own is not None
    if not (data.simulated and bundle.model.simulated and "phantoms" in theirs and "seed" in theirs):
        return False
    # A card leaves the first donor out where that is 0: other people's cells of the same seed must not pass for these.
    one, other = ({"first_donor": 0, **said} for said in (theirs, data.card))
    return all(one[key] == other.get(key) for key in KEPT if key in one)


def cells_of(bundle: Bundle, data: sets.TrainingSet, cells: NDArray[np.intp]) -> int:
    """How many of these cells the model was fitted to or chosen by; 0 where it comes from another set."""
    if not same_set(bundle, data):
        return 0
    return int(np.isin(cells, _fitted(data, scheme_of(bundle))).sum())


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
    same = same_set(bundle, data)
    shared = donors_of(bundle, data, cells)
    # The split by cell shares its donors by design, and says so.
    if shared and (not same or split == "test_donor" or scheme == "donor"):
        found.append(
            f"{bundle.model_id} has seen {len(shared)} of the {len(donors(data, cells))} judged donors: this says nothing of"
            " unseen donors."
        )
    trained_on = bundle.model.training.get("data", {})
    for key in SIMULATED:
        theirs, ours = trained_on.get(key), data.card.get(key)
        if theirs and ours and theirs != ours:
            found.append(f"{bundle.model_id} was trained on {key} of another version ({theirs}; these are {ours}).")
    return found


def _fitted(data: sets.TrainingSet, scheme: str) -> NDArray[np.intp]:
    return np.concatenate([data.indices(split, scheme) for split in FITTED if data.has(split, scheme)])


def _key(data: sets.TrainingSet, names: list[str], donor: int) -> str:
    if donor < len(names):
        return hashlib.blake2b(str(names[donor]).encode(), digest_size=8).hexdigest()
    return f"simulated-{donor}" if data.simulated else f"{data.data_hash[:12]}-{donor}"
