"""The shipped models and simulated objects of no class: by their distance they can tell each kind from cells of new donors."""

from __future__ import annotations

from pathlib import Path

import pytest

from wbcd.simulation.unknown import KINDS
from wbcd.training import make_dataset
from wbcd.training.strangers import Row, meet_strangers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("set") / "cells.zarr"
    make_dataset(made, 200, donors=10, first_donor=2000, workers=2)
    return made


@pytest.fixture(scope="module", params=["reference", "reference-two"])
def rows(request: pytest.FixtureRequest, cells: Path) -> dict[str, Row]:
    return {row.kind: row for row in meet_strangers(request.param, cells, cells=20, seed=4, device="cpu")}


def test_known_cells_of_new_donors_are_mostly_let_pass(rows: dict[str, Row]) -> None:
    # 40 cells; the threshold promises 99 %, and the session of each donor is another.
    assert rows["known cells"].far <= 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_lies_far_from_all_classes(rows: dict[str, Row], kind: str) -> None:
    auroc = rows[kind].auroc
    assert auroc is not None
    assert auroc >= 0.95


def test_few_cells_of_the_marrow_and_the_blood_beside_pass_for_one_of_the_classes(rows: dict[str, Row]) -> None:
    """A network that was taught on for two classes alone let five of six neutrophils pass."""
    for kind in ("neutrophil", "eosinophil", "erythroblast"):
        assert rows[kind].unclassified >= 0.7, kind
