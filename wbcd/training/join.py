"""Several sets made into one: cells of two instruments or sites, or fast simulated ones and some through holograms.

Donors keep who they are: simulated ones their number, measured ones their name, so that a person in two sets is one donor and
never in training and test both. Splits are drawn anew over all cells, or those of the first set are kept and carried on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wbcd.errors import BadValue
from wbcd.training import dataset as sets
from wbcd.training import seen
from wbcd.training.card import finish
from wbcd.training.pictures import Pictures

OnPart = Callable[[int, int], None]

JOINED = "joined"
"""Path of such a set."""
NEEDED = ("cells", "donors", "seed", "data_hash", "classes", "input", "recipe_id", "pictures")
SAME = ("format_version", "classes", "input", "simulated", "six", "recipe_id", "phantoms", "donor_sd", "optics")
"""What the cards must agree in: cells of two recipes or two versions of the phantoms are two kinds of cells."""
MADE_FROM = ("cells", "donors", "first_donor", "seed", "path", "label_by")
"""What is kept of each; by it the same simulated cells are known again."""
TOLD = ("pictures", "label_by")
"""Texts of the cards that may differ."""


def join(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    seed: int = 0,
    keep_splits: bool = False,
    on_part: OnPart | None = None,
) -> str:
    """Write ``out``, the cells of all of ``paths`` in their order; returns its hash. Run again, it goes on.

    ``seed``: of the splits. ``keep_splits``: the first set's cells stay in the splits that it gave them, and whoever it holds
    out stays held out, so that a model of the first may be trained on. ``on_part``: told (cells done, cells).

    Raises BadValue where a set is incomplete, or of other classes, input, recipe or kind than the first, or shows cells of
    another one again; or where ``out`` is something else.
    """
    given, out = [Path(path) for path in paths], Path(out)
    cards = [sets.read_attributes(path) for path in given]
    _check(given, cards)
    names = sorted({str(name) for card in cards for name in card.get("donor_names") or []})
    total = sum(int(card["cells"]) for card in cards)
    if out.exists() and ("splits_of" in sets.read_attributes(out)) != keep_splits:
        begun = "without" if keep_splits else "with"
        raise BadValue(f"{out}: was begun {begun} --keep-splits.", action="Give the same options to go on, or another folder.")
    kept = {"splits_of": {key: cards[0][key] for key in ("data_hash", *seen.KEPT) if key in cards[0]}} if keep_splits else {}
    sets.create(out, total, {**_card(cards, names, seed), **kept})
    missing = set(sets.missing_parts(out))
    pending: list[sets.CellSample] = []
    for number, sample in _samples(given, cards, names, missing):
        pending.append(sample)
        part = number // sets.PART
        if number + 1 == sets.part_range(part, total).stop:
            sets.write_part(out, part, pending)
            pending = []
            if on_part is not None:
                on_part(number + 1, total)
    return finish(out, sets.splits_of(given[0]) if keep_splits else None)


def _samples(
    paths: Sequence[Path], cards: Sequence[Mapping[str, Any]], names: Sequence[str], missing: set[int]
) -> Iterator[tuple[int, sets.CellSample]]:
    """Number in the joined set and cell, of the parts that are not written."""
    first = 0
    for path, card in zip(paths, cards, strict=True):
        wanted = [n for n in range(first, first + int(card["cells"])) if n // sets.PART in missing]
        if wanted:
            yield from _samples_of(path, card, names, first, wanted)
        first += int(card["cells"])


def _samples_of(
    path: Path, card: Mapping[str, Any], names: Sequence[str], first: int, wanted: Sequence[int]
) -> Iterator[tuple[int, sets.CellSample]]:
    # The set is let go when its cells are through: two of them need not fit into memory.
    data = sets.load(path)
    own = [str(name) for name in card.get("donor_names") or []]
    if own and not 0 <= data.donor.min() <= data.donor.max() < len(own):
        raise BadValue(
            f"{path}: donor runs from {data.donor.min()} to {data.donor.max()}; the card names {len(own)} donors.",
            action="Make the set again.",
        )
    for number in wanted:
        donor = int(data.donor[number - first])
        yield number, _sample(data, number - first, names.index(own[donor]) if own else donor)


def _sample(data: sets.TrainingSet, index: int, donor: int) -> sets.CellSample:
    if data.phase is None or data.amplitude is None:
        raise BadValue(f"{data.path}: has no pictures.", action="Make the set again with this version.")
    return sets.CellSample(
        ri_delta=data.ri_delta[index].astype(np.float32),
        label=int(data.label[index]),
        donor=donor,
        six=tuple(float(v) for v in data.morphology[index]),
        pictures=Pictures(data.phase[index], data.amplitude[index]),
        purity=math.nan if data.purity is None else float(data.purity[index]),
        cell_id=-1 if data.cell_id is None else int(data.cell_id[index]),
        noise_ri=math.nan if data.noise_ri is None else float(data.noise_ri[index]),
    )


def _check(paths: Sequence[Path], cards: Sequence[Mapping[str, Any]]) -> None:
    if len(cards) < 2:
        raise BadValue(f"{len(cards)} sets are given; at least 2 can be joined.")
    first = cards[0]
    for path, card in zip(paths, cards, strict=True):
        if card.get("complete") is not True:
            raise BadValue(f"{path}: the set is not complete.", action="Run the command that makes it again; it goes on.")
        if card.get("format_version") != sets.FORMAT_VERSION:
            raise BadValue(f"{path}: is of version {card.get('format_version')}; it must be {sets.FORMAT_VERSION}.")
        if absent := [key for key in NEEDED if key not in card]:
            raise BadValue(f"{path}: its card has no {absent[0]}.", action="Make the set again with this version.")
        for key in SAME:
            if card.get(key) != first.get(key):
                raise BadValue(
                    f"{path}: {key} is {card.get(key)!r}; that of {paths[0]} is {first.get(key)!r}.",
                    action="Join sets of one kind only.",
                )
        if bool(card.get("donor_names")) != bool(first.get("donor_names")):
            raise BadValue(f"{path}: its donors are {'named' if card.get('donor_names') else 'numbered'}; not so {paths[0]}'s.")
    _check_no_cell_twice(paths, cards)


def _check_no_cell_twice(paths: Sequence[Path], cards: Sequence[Mapping[str, Any]]) -> None:
    """A cell that is there twice would be in training and in test."""
    drawn_by: dict[object, Path] = {}
    for path, card in zip(paths, cards, strict=True):
        for part in _parts(card):
            # Phantoms follow from seed and donors: through holograms they are the same cells again.
            if part.get("path") in sets.SIMULATED_PATHS:
                drawn = (part["seed"], part.get("first_donor", 0))
                if drawn_by.setdefault(drawn, path) is not path:
                    raise BadValue(f"{path}: shows cells of {drawn_by[drawn]} again.", action="Make it with another seed.")
    stored: dict[bytes, Path] = {}
    for path, card in zip(paths, cards, strict=True):
        if all(part.get("path") in sets.SIMULATED_PATHS for part in _parts(card)):
            continue
        cells = [hashlib.blake2b(cell.tobytes(), digest_size=16).digest() for cell in sets.load(path).ri_delta]
        if twice := sum(cell in stored for cell in cells):
            other = next(stored[cell] for cell in cells if cell in stored)
            raise BadValue(
                f"{path}: {twice} of its {len(cells)} cells are in {other} too.", action="Join sets of different cells."
            )
        stored.update(dict.fromkeys(cells, path))


def _parts(card: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a set was joined from, or itself."""
    return list(card.get("joined") or [card])


def _card(cards: Sequence[Mapping[str, Any]], names: list[str], seed: int) -> dict[str, Any]:
    same = {key: cards[0][key] for key in SAME if key in cards[0] and key != "format_version"}
    told = {key: " and ".join(dict.fromkeys(str(c[key]) for c in cards if key in c)) for key in TOLD}
    parts = [part for card in cards for part in _parts(card)]
    numbers = {int(part.get("first_donor", 0)) + n for part in parts for n in range(int(part["donors"]))}
    return {
        **same,
        "origin": f"{len(parts)} joined sets",
        "path": JOINED,
        **{key: text for key, text in told.items() if text},
        "seed": seed,
        **({"donors": len(names), "donor_names": names} if names else {"donors": len(numbers)}),
        "instrument": _ranges(cards),
        "joined": [{key: part[key] for key in MADE_FROM if key in part} for part in parts],
        "joined_hashes": [h for card in cards for h in card.get("joined_hashes") or [card["data_hash"]]],
    }


def _ranges(cards: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Of what every set states: one that does not say could be of any instrument."""
    stated = [card.get("instrument", {}) for card in cards]
    common = [name for name in stated[0] if all(name in one for one in stated)]
    return {name: [min(one[name][0] for one in stated), max(one[name][1] for one in stated)] for name in common}
