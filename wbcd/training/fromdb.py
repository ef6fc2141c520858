"""A training set from what the daemon stored: kept tomograms of accepted cells, labelled by their sample or by a person.

A cell's reviewed label wins over its sample's (the view ``cell_label``). Of a time lapse only the first time point is taken.
Of each acquisition the cells are those of its current recipe, the one that was asked for last, or of the recipe that is named;
a cell that several models classified under it is one cell. Donors are the samples, or what a table says of every sample.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import zarr
from sqlalchemy import select

from wbcd.classification import InputSpec
from wbcd.classification.medium import medium_ri, noise_ri
from wbcd.classification.preparation import delta_from
from wbcd.errors import BadValue, WbcdError
from wbcd.records import NAME, NAME_RULE, Cell, Optics, Triple
from wbcd.simulation.cells import CLASSES
from wbcd.simulation.microscope import INSTRUMENT_ID
from wbcd.simulation.optics import INSTRUMENT
from wbcd.store import CellLabel, Ledger, StoredCell, read_tomogram, schema
from wbcd.store.answers import ANSWER_S
from wbcd.store.engine import READ_ONLY, make_engine
from wbcd.store.failures import foreign_errors
from wbcd.store.urls import parse_url
from wbcd.store.verification import locate
from wbcd.training import dataset as sets
from wbcd.training.card import finish
from wbcd.training.pictures import projected

OPTICS = ("objective_na", "wavelength_um")
"""What the database knows of an acquisition's instrument and a model can be told of."""

LabelBy: TypeAlias = Literal["sample", "review"]
OnPart: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Source:
    """One cell to be taken: its row, the label that holds, the class and the donor as indices."""

    cell: StoredCell
    given: CellLabel
    label: int
    donor: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be in the set, in the order of the store, and what was left out, by reason."""

    sources: tuple[Source, ...]
    classes: tuple[str, ...]
    donors: tuple[str, ...]
    recipe_id: str
    left_out: Mapping[str, int]

    @property
    def digest(self) -> str:
        """Of every cell, its label, its purity and its donor: a resumed run must mean the same cells."""
        rows = [(s.cell.cell_id, s.given.label, s.given.purity, self.donors[s.donor]) for s in self.sources]
        return hashlib.blake2b(repr(rows).encode(), digest_size=20).hexdigest()


def dataset_from_db(
    url: str | Path,
    out: str | Path,
    *,
    label_by: LabelBy = "sample",
    classes: tuple[str, ...] | None = None,
    donors: Mapping[str, str] | None = None,
    recipe_id: str | None = None,
    spec: InputSpec | None = None,
    seed: int = 0,
    simulated: bool | None = None,
    on_part: OnPart | None = None,
    root: Path | None = None,
) -> tuple[str, Plan]:
    """Write the set; returns its hash and what was taken. Run again with the same database content, it goes on.

    ``classes``: take only these labels, in this order. ``donors``: sample name -> donor. ``recipe_id``: instead of each
    acquisition's current recipe; needed where those are several. ``simulated``: None asks the database whether the simulated
    microscope wrote any of the files. ``root``: the output folder as it lies now; without it the tomograms are sought where
    the rows say.
    Raises BadValue when nothing can be taken, naming why; where ``donors`` lacks a sample; and where ``simulated`` is False
    though the simulated microscope wrote a file.
    """
    out, asked, spec = Path(out), spec, spec or InputSpec()
    with Ledger.open(url, create=False) as ledger:
        chosen = plan(ledger, label_by, classes=classes, donors=donors, recipe_id=recipe_id)
    acquisitions, morphology = _ask(url, chosen.recipe_id)
    # Unasked, a crop that is smaller than the usual box is padded with medium, as the classifier pads it.
    if asked is not None:
        sets.check_window(spec, tuple(morphology["crop_shape"]), tuple(morphology["crop_voxel_um"]), "a stored cell's crop")
    threshold = float(morphology["threshold_ri"])
    theirs = {s.cell.content_id: acquisitions[s.cell.content_id] for s in chosen.sources}
    from_simulator = [s.cell for s in chosen.sources if theirs[s.cell.content_id].instrument_id == INSTRUMENT_ID]
    if simulated is False and from_simulator:
        first = from_simulator[0]
        raise BadValue(
            f"{len(from_simulator)} of {len(chosen.sources)} cells are of the simulated microscope; the first is of"
            f" {first.path} (sample {first.sample!r}).",
            action="Leave out --measured: a simulated figure always says so.",
        )
    was_simulated = bool(from_simulator) if simulated is None else simulated
    card = _card(chosen, label_by, spec, seed, was_simulated)
    sets.create(out, len(chosen.sources), {**card, "instrument": _ranges(theirs.values())})
    total = len(chosen.sources)
    for part in sets.missing_parts(out):
        cells = sets.part_range(part, total)
        sets.write_part(out, part, [_sample(chosen.sources[i], spec, threshold, root) for i in cells])
        if on_part is not None:
            on_part(cells.stop, total)
    return finish(out), chosen


def plan(
    ledger: Ledger,
    label_by: LabelBy,
    *,
    classes: tuple[str, ...] | None = None,
    donors: Mapping[str, str] | None = None,
    recipe_id: str | None = None,
) -> Plan:
    """Which stored cells make the set; without ``donors`` each sample is one. Raises BadValue."""
    if label_by not in ("sample", "review"):
        raise BadValue(f"label_by is {label_by!r}; it must be 'sample' or 'review'.", action="Choose one of them.")
    left_out: dict[str, int] = {}
    current = {run.content_id: (run.recipe_id, run.model_id) for run in ledger.current()}
    wanted = current if recipe_id is None else {content_id: (recipe_id, model) for content_id, (_, model) in current.items()}
    cells = ledger.cells(recipe_id=recipe_id, outcome="measured")  # a rejected acquisition has no cell that counts
    taken = list(_usable(cells, ledger.cell_labels(), label_by, classes, wanted, left_out))
    recipes = sorted({cell.recipe_id for cell, _ in taken})
    if len(recipes) > 1:
        raise BadValue(
            f"the current results of the labelled cells are of {len(recipes)} recipes: {', '.join(recipes)}.",
            action="Choose one with --recipe, or bring them together with `wbcd reprocess`: their numbers do not compare.",
        )
    if not taken:
        told = "; ".join(f"{n} {why}" for why, n in left_out.items()) or "the database holds no accepted cell"
        raise BadValue(
            f"no cell can be taken: {told}.",
            action="Label samples with `wbcd label`, and process with --keep-tomograms ([output] keep_tomograms).",
        )
    there = {given.label for _, given in taken}
    kinds = classes or _in_order(there)
    if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
        raise BadValue(f"the class {twice[0]!r} is given twice.", action="Give each class once (--classes).")
    if empty := [kind for kind in kinds if kind not in there]:
        raise BadValue(
            f"no cell of class {empty[0]!r} can be taken; there are cells of {', '.join(sorted(there))}.",
            action="Correct --classes.",
        )
    if wrong := [kind for kind in kinds if not NAME.fullmatch(kind)]:
        raise BadValue(
            f"a class is called {wrong[0]!r}; its name must be {NAME_RULE}.",
            action="Label the sample or review the cells anew under another name, or choose others with --classes.",
        )
    if donors is not None:
        _check_donors(donors, {cell.sample for cell, _ in taken}, left_out)
    of = [cell.sample if donors is None else donors[cell.sample] for cell, _ in taken]
    names = tuple(sorted(set(of)))
    sources = tuple(
        Source(cell, given, kinds.index(given.label), names.index(donor))
        for (cell, given), donor in zip(taken, of, strict=True)
    )
    return Plan(sources, kinds, names, recipes[0], left_out)


def _check_donors(donors: Mapping[str, str], samples: set[str], left_out: dict[str, int]) -> None:
    """Raises BadValue where a sample has no donor: as one of its own, its person could be in training and in test."""
    if missing := sorted(samples - donors.keys()):
        raise BadValue(
            f"the table of donors has no row for {len(missing)} of {len(samples)} samples: {_first_of(missing)}.",
            action="Add a row with the donor of each; a sample of a donor with no other gets a name of its own.",
        )
    if unused := donors.keys() - samples:
        left_out["rows of the table of donors are of no sample with a cell in the set"] = len(unused)


def _first_of(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


def _usable(
    cells: Iterable[StoredCell],
    labels: Mapping[int, CellLabel],
    label_by: LabelBy,
    classes: tuple[str, ...] | None,
    wanted: Mapping[str, tuple[str, str]],
    left_out: dict[str, int],
) -> Iterable[tuple[StoredCell, CellLabel]]:
    """Cells with a label and a tomogram, one for each cell of an acquisition; counts what it leaves out.

    ``wanted``: content id -> recipe that is taken, and model whose row is taken where no other was reviewed.
    """
    seen: dict[tuple[str, str, int], tuple[StoredCell, CellLabel]] = {}
    for cell in cells:
        given = labels.get(cell.cell_id)
        recipe, model = wanted.get(cell.content_id, ("", ""))
        why = _NOT_CURRENT[given is not None and given.source == "review"] if cell.recipe_id != recipe else None
        why = why or _why_not(cell, given, label_by, classes)
        if why is not None or given is None:
            left_out[why or ""] = left_out.get(why or "", 0) + 1
            continue
        key = (cell.content_id, cell.recipe_id, cell.number)
        # Of one cell under several models the reviewed row wins, then the current one, then the first.
        if key not in seen or _rank(cell, given, model) > _rank(*seen[key], model):
            seen[key] = (cell, given)
    return seen.values()


_NOT_CURRENT = {
    False: "are of a result that is not current",
    True: "were reviewed in a result that is not current (review them again, or choose its recipe with --recipe)",
}


def _rank(cell: StoredCell, given: CellLabel, model: str) -> tuple[bool, bool]:
    return given.source == "review", cell.model_id == model


def _why_not(cell: StoredCell, given: CellLabel | None, label_by: LabelBy, classes: tuple[str, ...] | None) -> str | None:
    if cell.time_index != 0:
        return "are of a later time point"
    if given is None:
        return "have no label"
    if label_by == "review" and given.source != "review":
        return "were not reviewed"
    if classes is not None and given.label not in classes:
        return "have another label"
    if cell.tomogram_path is None:
        return "have no kept tomogram"
    return None


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """The four of the paper first, in its order, then others by name: a set of the four has the shipped model's order."""
    known = [c for c in CLASSES if c in labels]
    return (*known, *sorted(labels - set(known)))


def _sample(source: Source, spec: InputSpec, threshold_ri: float, root: Path | None) -> sets.CellSample:
    stored = source.cell
    stated = str(stored.tomogram_path)
    path = Path(stated) if root is None else locate(root, stated)
    try:
        ri, provenance = read_tomogram(path)
        cell, optics = _cell(stored, ri, provenance, _pitch(path), threshold_ri)
    except (WbcdError, KeyError, TypeError, ValueError) as error:
        raise BadValue(
            f"{path}: the tomogram of cell {stored.cell_id} cannot be used: {error}.",
            action="Process the acquisition again with --keep-tomograms, or restore the output folder.",
        ) from error
    medium = medium_ri(cell)
    delta = delta_from(cell, spec, medium)
    purity = 1.0 if source.given.source == "review" else source.given.purity
    return sets.CellSample(
        ri_delta=delta,
        label=source.label,
        donor=source.donor,
        six=sets.six_of(stored.morphology),
        pictures=projected(delta, spec, optics),
        purity=math.nan if purity is None else float(purity),
        cell_id=stored.cell_id,
        noise_ri=noise_ri(cell, medium),
    )


def _pitch(path: Path) -> Triple:
    """Voxel size (z, y, x) in um of the full resolution, as OME-Zarr 0.5 states it."""
    ome: Any = zarr.open_group(str(path), mode="r", zarr_format=3).attrs["ome"]
    scale = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    z, y, x = (float(v) for v in scale)
    return z, y, x


def _cell(
    stored: StoredCell, ri: Any, provenance: Mapping[str, Any], voxel_um: Triple, threshold_ri: float
) -> tuple[Cell, Optics]:
    """The crop as the classifier saw it, and the optics of its acquisition (the reference instrument's where not stored)."""
    medium = float(provenance["medium_ri"])
    if provenance.get("source_content_id") != stored.content_id:
        raise ValueError(f"it is of acquisition {provenance.get('source_content_id')}, not of {stored.content_id}")
    given = {"wavelength_um": provenance.get("wavelength_um"), "objective_na": provenance.get("objective_na")}
    optics = replace(INSTRUMENT, medium_ri=medium, **{k: float(v) for k, v in given.items() if v is not None})
    # The crop holds the cell alone: neighbours were replaced by medium when it was cut.
    mask = ri > np.float32(threshold_ri)
    return Cell(stored.number, ri, mask, voxel_um, medium, stored.centre_um), optics


def _ask(url: str | Path, recipe_id: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """What is known of each acquisition's instrument, by content id, and how the recipe cuts and measures cells."""
    target = parse_url(url)
    engine = make_engine(target, answer_s=ANSWER_S)
    seen, recipe = schema.acquisition.c, schema.recipe.c
    try:
        with foreign_errors(target), engine.connect().execution_options(**READ_ONLY) as connection:
            rows = connection.execute(select(seen.content_id, seen.instrument_id, *(seen[name] for name in OPTICS))).all()
            parameters = connection.execute(select(recipe.parameters).where(recipe.id == recipe_id)).scalar_one()
    finally:
        engine.dispose()
    return {row.content_id: row for row in rows}, parameters["morphology"]


def _ranges(acquisitions: Iterable[Any]) -> dict[str, list[float]]:
    """Least and greatest of each property that every acquisition states."""
    rows = list(acquisitions)
    found = {name: [getattr(row, name) for row in rows] for name in OPTICS}
    return {name: [min(values), max(values)] for name, values in found.items() if None not in values}


def _card(chosen: Plan, label_by: LabelBy, spec: InputSpec, seed: int, simulated: bool) -> dict[str, Any]:
    return {
        "origin": "a database of wbcd",
        "pictures": "projections of the tomograms",
        "classes": list(chosen.classes),
        "seed": seed,
        "donors": len(chosen.donors),
        "donor_names": list(chosen.donors),
        "path": "database",
        "label_by": label_by,
        "simulated": simulated,
        "input": sets.spec_to_card(spec),
        "recipe_id": chosen.recipe_id,
        "six": list(sets.SIX),
        "cells_digest": chosen.digest,
    }


def read_donors(path: Path) -> dict[str, str]:
    """Sample -> donor from a CSV file with the columns ``sample`` and ``donor``, once a sample. Raises BadValue naming what."""
    try:
        # Excel puts a byte-order mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadValue(f"{path}: cannot be read as CSV: {error}.", action="Save the table as CSV in UTF-8.") from error
    found: dict[str, str] = {}
    twice: list[str] = []
    for line, row in enumerate(rows, start=2):
        sample, donor = row.get("sample"), row.get("donor")
        if not sample or not donor:
            raise BadValue(
                f"{path}: line {line} has sample {sample!r} and donor {donor!r}; both columns are needed.",
                action="Give the columns sample and donor, separated by commas, and both in each line.",
            )
        if sample in found:
            twice.append(sample)
        found[sample] = donor
    if twice := sorted(set(twice)):
        raise BadValue(
            f"{path}: {len(twice)} samples have more than one row: {_first_of(twice)}.", action="Keep one row for each sample."
        )
    return found
