"""`cell.tomogram_path`: absolute as it is written; older rows, and those of folders that moved, are found by every reader."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers_store import KEY

from wbcd.cli.outcomes import object_of
from wbcd.config import Config
from wbcd.daemon.assembly import _keeper
from wbcd.records import Cell, Prediction
from wbcd.store import Ledger, retention, verification
from wbcd.store.volumes import read_tomogram, write_tomogram
from wbcd.testing import make_acquisition, make_cell, make_measured
from wbcd.training import fromdb


def a_cell() -> Cell:
    ri = np.random.default_rng(1).normal(1.35, 0.01, (8, 16, 16)).astype(np.float32)
    return Cell(1, ri, ri > 1.35, (0.2, 0.1, 0.1), 1.337, (0.0, 0.0, 0.0))


def test_the_daemon_writes_absolute_paths_whatever_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.load(None, {}, {"output.dir": "results", "output.keep_tomograms": True, "output.tomogram_window": "fixed"})
    stated = _keeper(config)(a_cell(), make_acquisition("a"), Prediction("m@1", "monocyte", 0.9, {"monocyte": 0.9}))
    assert stated is not None
    assert Path(stated).is_absolute()
    assert Path(stated).parents[1] == tmp_path / "results"
    assert read_tomogram(Path(stated))[1]["label"] == "monocyte"


@pytest.fixture(params=["absolute", "relative to a folder long left", "relative to the output folder", "moved"])
def stored(request: pytest.FixtureRequest, sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A ledger with one cell whose row states its tomogram in one of four ways, and where that lies now."""
    root = tmp_path / "wbcd-output"
    image = write_tomogram(root, a_cell(), acquisition=make_acquisition("a"), recipe_id=KEY[0])
    key = image.relative_to(root)
    stated = {
        "absolute": str(image),
        "relative to a folder long left": f"wbcd-output/{key}",
        "relative to the output folder": str(key),
        "moved": str(image),
    }[request.param]
    if request.param == "moved":
        root = root.rename(tmp_path / "elsewhere")
    cell = dataclasses.replace(make_cell(), tomogram_path=stated)
    sqlite_ledger.commit(make_measured("a", cell), *KEY)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return SimpleNamespace(ledger=sqlite_ledger, root=root, image=root / key)


def test_verify_finds_it(stored: Any) -> None:
    assert list(verification.check_tomograms(stored.ledger, stored.root)) == []


def test_retention_knows_it_as_ours(stored: Any) -> None:
    plan = retention.plan(stored.ledger, stored.root, now_s=time.time() + 10, max_age_s=1)
    assert [(one.path, plan.unnamed) for one in plan.removed] == [(stored.image, 0)]


def test_process_prints_where_it_lies(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = stored.ledger.known(make_acquisition("a").content_id, *KEY)
    (cell,) = object_of(known, Path("a.h5"), stored.root)["cells"]
    assert cell["tomogram"] == str(stored.image)
    monkeypatch.chdir(stored.root.parent)  # the output folder as most people give it
    (cell,) = object_of(known, Path("a.h5"), Path(stored.root.name))["cells"]
    assert cell["tomogram"] == str(stored.image)


def test_a_training_set_is_made_of_it(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def noted(path: Path) -> Any:
        read.append(path)
        raise ValueError("read far enough")

    monkeypatch.setattr(fromdb, "read_tomogram", noted)
    source = SimpleNamespace(cell=next(iter(stored.ledger.cells())))
    with pytest.raises(fromdb.BadValue, match="read far enough"):
        fromdb._sample(source, None, 1.35, stored.root)  # type: ignore[arg-type]
    assert read == [stored.image]
