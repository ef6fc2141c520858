"""The data card: what a set holds, where it comes from and what it cannot show, as JSON and as a page beside the set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.classification.bundle import write_file
from wbcd.names import in_markdown
from wbcd.training import dataset as sets
from wbcd.training.dataset import SIX, TrainingSet
from wbcd.training.splits import SCHEMES, confounding, counts, missing_classes, warnings_of


def card_paths(path: Path) -> tuple[Path, Path]:
    """``cells.zarr`` -> ``cells.card.json`` and ``cells.card.md``, beside it: a Zarr folder holds nothing but Zarr."""
    stem = path.name.removesuffix(".zarr")
    return path.with_name(f"{stem}.card.json"), path.with_name(f"{stem}.card.md")


def finish(path: Path, kept: Mapping[str, NDArray[np.int8]] | None = None) -> str:
    """:func:`wbcd.training.dataset.finish`, and the card beside the set."""
    digest = sets.finish(path, kept)
    write_card(path, sets.read_attributes(path), sets.load(path))
    return digest


def write_card(path: Path, attributes: Mapping[str, Any], data: TrainingSet) -> None:
    """Both files of a complete set."""
    card = data_card(attributes, data)
    as_json, as_page = card_paths(path)
    write_file(as_json, (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())
    write_file(as_page, page(path.name, card).encode())


def data_card(attributes: Mapping[str, Any], data: TrainingSet) -> dict[str, Any]:
    """The attributes and what was counted in the arrays, JSON-ready."""
    return {
        **attributes,
        "confounding": round(confounding(data.label, data.donor), 4),
        "warnings": all_warnings(data),
        "purity": purities(data),
        "six_mean_sd": _six(data),
        "cells_by_split": counts(data.label, {s: data.split(s) for s in SCHEMES}, data.classes),
        "cells_by_donor": {
            str(d): {c: int(((data.donor == d) & (data.label == k)).sum()) for k, c in enumerate(data.classes)}
            for d in np.unique(data.donor)
        },
    }


def all_warnings(data: TrainingSet) -> list[str]:
    """Sentences on what figures from this set cannot mean, and on parts of its splits that lack a class."""
    by_scheme = {scheme: data.split(scheme) for scheme in SCHEMES}
    return [*warnings_of(data.label, data.donor, data.classes), *missing_classes(data.label, by_scheme, data.classes)]


def stored_warnings(path: Path) -> list[str]:
    """Those on the card beside a complete set: the set itself is gigabytes."""
    return list(json.loads(card_paths(path)[0].read_text())["warnings"])


def purities(data: TrainingSet) -> dict[str, float | None]:
    """Mean purity of each class's labels; None where none is known."""
    found: dict[str, float | None] = {}
    for k, name in enumerate(data.classes):
        values = np.array([]) if data.purity is None else data.purity[data.label == k]
        known = values[np.isfinite(values)]
        found[name] = float(known.mean(dtype=np.float64)) if len(known) else None
    return found


def _six(data: TrainingSet) -> dict[str, dict[str, list[float]]]:
    return {
        name: {
            c: [float(v) for v in (column[data.label == k].mean(), column[data.label == k].std())]
            for k, c in enumerate(data.classes)
            if (data.label == k).any()
        }
        for name, column in zip(SIX, data.morphology.T.astype(np.float64), strict=True)
    }


def _careful(warnings: Sequence[str]) -> list[str]:
    return ["## What to be careful of", "", *(f"- {in_markdown(text)}" for text in warnings), ""] if warnings else []


def page(name: str, card: Mapping[str, Any]) -> str:
    """The card for a person."""
    what = "simulated" if card.get("simulated", True) else "measured"
    classes = list(card["classes"])
    spec = card["input"]
    pitch = " x ".join(f"{v:g}" for v in spec["voxel_um"])
    lines = [
        f"# {in_markdown(name)}",
        "",
        f"{card['cells']} **{what}** cells of {len(card['cells_by_donor'])} donors. Research use only; not for diagnosis.",
        "",
        f"{' x '.join(map(str, spec['shape']))} voxels (z, y, x) of {pitch} um around each cell.",
        f"Made from {card.get('origin', 'the simulated microscope')}; recipe {card['recipe_id']};"
        f" phase and amplitude from {card['pictures']}.",
        "",
        f"Data hash (BLAKE2b-160): `{card['data_hash']}`",
        "",
        *_careful(card["warnings"]),
        "## Cells",
        "",
        "| scheme | part | " + " | ".join(classes) + " |",
        "|---|---|" + "---|" * len(classes),
    ]
    for scheme, parts in card["cells_by_split"].items():
        for part, row in parts.items():
            lines.append(f"| {scheme} | {part} | " + " | ".join(str(row[c]) for c in classes) + " |")
    lines += ["", "| donor | " + " | ".join(classes) + " |", "|---|" + "---|" * len(classes)]
    names = card.get("donor_names") or []
    for donor, row in card["cells_by_donor"].items():
        shown = names[int(donor)] if int(donor) < len(names) else donor
        lines.append(f"| {in_markdown(shown)} | " + " | ".join(str(row[c]) for c in classes) + " |")
    lines += [
        "",
        "## The six parameters, mean and SD",
        "",
        "| | " + " | ".join(classes) + " |",
        "|---|" + "---|" * len(classes),
    ]
    for parameter, row in card["six_mean_sd"].items():
        cells = [f"{row[c][0]:.4g} ± {row[c][1]:.2g}" if c in row else "" for c in classes]
        lines.append(f"| {parameter} | " + " | ".join(cells) + " |")
    purity = {c: v for c, v in card["purity"].items() if v is not None}
    lines += ["", "## Labels", "", f"Labelled by: {card.get('label_by', 'the simulation')}."]
    if "label_by" in card:
        lines += [f"- {c}: {100 * v:.1f} % of the labels are right, as the sorting states it." for c, v in purity.items()]
    return "\n".join(lines) + "\n"
