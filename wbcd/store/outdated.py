"""Which current results were made by an older algorithm: their recipe names an older version of a stage, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, select

from wbcd.recipe import Recipe, differing_parameters, older_algorithms
from wbcd.store import schema
from wbcd.store.ledger import Ledger
from wbcd.store.queries import is_current

WITH_NUMBERS: Final = ("measured", "rejected")
"""Outcomes that an algorithm has a part in: of what was set aside nothing was computed, and a new recipe tries it again."""


@dataclass(frozen=True, slots=True)
class OldRecipe:
    """A stored recipe of older algorithms. ``older``: stage -> version that it was, None where none was stored."""

    recipe_id: str
    parameters: Mapping[str, Any]
    older: Mapping[str, int | None]

    def sentence(self, today: Recipe) -> str:
        """What was otherwise, without a full stop: the stages, and parameters that ``today`` sets to something else."""
        counted = [f"{stage} {version}" for stage, version in self.older.items() if version is not None]
        made = f"made by older algorithms ({', '.join(counted)})" if counted else "made before algorithms had versions"
        other = differing_parameters(self.parameters, today)
        return f"{made}, and with another {', '.join(other)}" if other else made


def old_recipes(ledger: Ledger) -> dict[str, OldRecipe]:
    """The stored recipes of older algorithms, by their id."""
    recipe = schema.recipe.c
    stored = ledger.read(lambda connection: connection.execute(select(recipe.id, recipe.parameters).order_by(recipe.id)).all())
    found = (OldRecipe(recipe_id, parameters, older_algorithms(parameters)) for recipe_id, parameters in stored)
    return {one.recipe_id: one for one in found if one.older}


def count_outdated(ledger: Ledger) -> tuple[int, int]:
    """Current results, measured or rejected: those that an older algorithm made, and all."""
    run = schema.run.c
    query = select(run.recipe_id, func.count()).where(is_current(), run.outcome.in_(WITH_NUMBERS)).group_by(run.recipe_id)
    counts = ledger.read(lambda connection: {row[0]: int(row[1]) for row in connection.execute(query)})
    old = old_recipes(ledger)
    return sum(n for recipe_id, n in counts.items() if recipe_id in old), sum(counts.values())
