"""`wbcd cells`: every counted cell once, with its id, on both databases; and as a stream."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers_store import KEY, RECIPE, opened
from PIL import Image

from wbcd.cli import cli
from wbcd.records import MeasuredCell
from wbcd.report import figures
from wbcd.report.cells import COLUMNS, read_cells
from wbcd.store import Ledger
from wbcd.testing import FakeClock, make_cell, make_measured, make_rejected

OTHER = "model@2"


def cell_of(label: str, probability: float, **more: Any) -> MeasuredCell:
    made = make_cell(label, **more)
    assert made.prediction is not None
    return replace(made, prediction=replace(made.prediction, probability=probability))


def run(url: str, *words: str) -> Result:
    return CliRunner().invoke(cli, ["cells", *words, "--db", url])


def listed(url: str, *words: str) -> list[dict[str, Any]]:
    result = run(url, *words, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def ids(url: str, *words: str) -> list[int]:
    return [row["cell_id"] for row in listed(url, *words)]


@pytest.fixture
def filled(any_url: str) -> str:
    """Cells 1 to 8: of donor-1 a sure one, an unclassified, one that may be another, a refused and a later time point;
    of donor-2 one under two models (6 before, 7 current); 8 of a rejected file."""
    clock = FakeClock()
    with opened(any_url, now=clock.now) as ledger:
        ledger.register(RECIPE, OTHER, {"wbcd": {"simulated": False, "classes": ["b_lymphocyte", "monocyte", "myelocyte"]}})
        first = (
            cell_of("monocyte", 0.99, number=1),
            cell_of("b_lymphocyte", 0.4, number=2, flags=("unknown_cell", "unclassified")),
            cell_of("monocyte", 0.6, number=3, flags=("may_be_b_lymphocyte",)),
            make_cell("monocyte", number=4, accepted=False),
            cell_of("monocyte", 0.97, number=5, time_index=1),
        )
        ledger.commit(make_measured("a", *first, sample="donor-1"), *KEY)
        clock.advance(1)
        ledger.commit(make_measured("b", make_cell("monocyte"), sample="donor-2"), *KEY)
        clock.advance(1)
        ledger.commit(make_measured("b", make_cell("b_lymphocyte", model_id=OTHER), sample="donor-2"), KEY[0], OTHER)
        ledger.commit(replace(make_rejected("r", sample="donor-2"), cells=(make_cell("monocyte"),)), *KEY)
        ledger.review(7, "A. Reader", "myelocyte", "round")
        ledger.review(7, "B. Reader", "monocyte")
    return any_url


def test_the_cells_that_count_each_once(filled: str) -> None:
    assert ids(filled) == [1, 2, 3, 7]
    assert ids(filled, "--refused") == [1, 2, 3, 4, 7, 8]
    assert ids(filled, "--time-points") == [1, 2, 3, 5, 7]
    assert ids(filled, "--all") == [1, 2, 3, 6, 7]
    assert ids(filled, "--sample", "donor-2") == [7]
    assert ids(filled, "--label", "monocyte") == [1, 3]
    assert ids(filled, "--label", "unclassified") == [2]
    assert ids(filled, "--order", "newest") == [7, 3, 2, 1]
    assert ids(filled, "--order", "newest", "--limit", "2") == [7, 3]
    assert ids(filled, "--order", "doubtful") == [2, 3, 7, 1]
    assert ids(filled, "--uncertain") == [2, 3]
    assert ids(filled, "--sample", "donor-2", "--uncertain") == []


def test_everything_that_is_known_of_a_cell(filled: str) -> None:
    (row,) = listed(filled, "--sample", "donor-2")
    assert tuple(row) == COLUMNS
    made = make_cell().morphology
    wanted = {
        "cell_id": 7, "sample": "donor-2", "file": "/watch/b.h5", "number": 1, "time_index": 0, "accepted": True,
        "outcome": "measured", "reason": None, "counted_as": "b_lymphocyte", "label": "b_lymphocyte", "flags": [],
        "volume_fl": made.volume_fl, "dry_mass_pg": made.dry_mass_pg, "mean_ri": made.mean_ri, "sphericity": made.sphericity,
        "review": "monocyte", "reviewer": "B. Reader", "recipe": KEY[0], "model": OTHER, "is_current": True,
    }  # fmt: skip
    assert {name: row[name] for name in wanted} == wanted
    assert row["finished_at"] == "2026-01-01T00:00:02.000+00:00"
    assert listed(filled, "--uncertain")[0]["flags"] == ["unknown_cell", "unclassified"]
    assert [row["is_current"] for row in listed(filled, "--all", "--sample", "donor-2")] == [False, True]


def test_the_same_as_csv(filled: str) -> None:
    result = run(filled, "--csv")
    assert result.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    for row, told in zip(rows, listed(filled), strict=True):
        assert tuple(row) == COLUMNS
        assert (int(row["cell_id"]), row["sample"], row["counted_as"]) == (told["cell_id"], told["sample"], told["counted_as"])
        assert float(row["volume_fl"]) == told["volume_fl"]
        assert json.loads(row["flags"]) == told["flags"]
        assert (row["accepted"], row["review"]) == ("true", told["review"] or "")
    assert run(filled, "--csv", "--json").exit_code == 2
    empty = run(filled, "--csv", "--sample", "donor-1", "--label", "myelocyte").stdout
    assert empty == ",".join(COLUMNS) + "\n"


def test_the_table_of_a_person_fits_80_columns_and_names_the_id(filled: str) -> None:
    with Ledger.open(filled) as ledger:
        long = "plate 3, well A12, donor 7 [cd14]\nforged"
        ledger.commit(make_measured("n", cell_of("monocyte", 0.5), sample=long), *KEY)
    lines = run(filled).stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "volume" in lines[0]
    assert "fL" in lines[1]
    assert "pg" in lines[1]
    (reviewed,) = [line for line in lines if line.split()[:2] == ["7", "donor-2"]]
    assert reviewed.endswith("monocyte")
    assert lines[0].index("review") == reviewed.rindex("monocyte")
    made = make_cell().morphology
    assert f"{made.volume_fl:.1f}" in reviewed
    assert f"{made.mean_ri:.4f}" in reviewed
    assert sum("  plate...orged  " in line for line in lines) == 1
    assert "forged" not in {line.strip() for line in lines}
    assert "5 cells" in lines


def test_an_id_of_the_list_is_what_review_takes(filled: str) -> None:
    (cell,) = ids(filled, "--label", "unclassified")
    done = CliRunner().invoke(cli, ["review", str(cell), "--as", "b_lymphocyte", "--by", "me", "--db", filled])
    assert done.exit_code == 0, done.output
    assert listed(filled, "--label", "unclassified")[0]["review"] == "b_lymphocyte"


def test_a_sample_and_a_class_that_are_not_there(filled: str, tmp_path: Path) -> None:
    for words, told in (
        (("--sample", "donr-1"), "There is no sample 'donr-1'. Did you mean 'donor-1'?"),
        (("--label", "monocytes"), "There is no class 'monocytes'. Did you mean 'monocyte'?"),
    ):
        result = run(filled, *words)
        assert result.exit_code == 65
        assert told in result.output
    known = run(filled, "--label", "myelocyte")  # a class of a model, and no cell is one
    assert (known.exit_code, known.stdout) == (0, "No such cell is counted yet.\n")
    assert run(f"sqlite:///{tmp_path}/absent.db").exit_code == 69


def test_no_cell_yet(any_url: str) -> None:
    assert run(any_url).stdout == "No cells are counted yet.\n"
    assert run(any_url, "--json").stdout == ""


def test_pictures_carry_the_id(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = io.BytesIO()
    Image.fromarray(np.full((120, 150), 255, dtype=np.uint8)).save(png, format="PNG")
    with Ledger.open(filled) as ledger:
        ledger.commit(make_measured("p", make_cell("monocyte", thumbnail_png=png.getvalue()), sample="pictured"), *KEY)
    drawn: list[str] = []
    whole = figures.ImageDraw.ImageDraw.text

    def text(self: Any, at: Any, words: str, *args: Any, **kwargs: Any) -> None:
        drawn.append(words)
        whole(self, at, words, *args, **kwargs)

    monkeypatch.setattr(figures.ImageDraw.ImageDraw, "text", text)
    folder = tmp_path / "new" / "look"
    (row,) = listed(filled, "--sample", "pictured", "--pictures", str(folder))
    made = folder / f"cell-{row['cell_id']}.png"
    assert [path.name for path in folder.iterdir()] == [made.name]
    assert {f"cell id {row['cell_id']}", "monocyte", "sample pictured"} <= set(drawn)
    with Image.open(made) as picture:
        assert picture.size == (300, 164)
        assert picture.getpixel((150, 60)) == (255, 255, 255)
    assert len(listed(filled, "--pictures", str(folder))) == 5  # those whose thumbnail is no picture too
    assert len(list(folder.iterdir())) == 5
    (tmp_path / "file").write_text("")
    assert run(filled, "--pictures", str(tmp_path / "file" / "x")).exit_code != 0


def test_listing_loads_nothing_heavy(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    sqlite_ledger.commit(make_measured("a"), *KEY)
    program = (
        "import sys; from wbcd.cli import cli\n"
        f"try: cli(['cells', '--json', '--db', 'sqlite:///{tmp_path}/wbcd.db'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'sqlalchemy', 'numpy', 'alembic', 'psycopg', 'torch', 'rich', 'PIL'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "[]"
    assert json.loads(said.stdout.splitlines()[0])["cell_id"] == 1


def multiply(path: Path, acquisitions: int, cells: int, samples: int) -> None:
    """Copies of the first cell by SQL: ``cells`` a result, ``acquisitions`` results, spread over ``samples`` samples."""
    connection = sqlite3.connect(path, isolation_level=None)
    number = "WITH RECURSIVE number (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM number WHERE n < {})"
    connection.executescript(
        f"""
        BEGIN;
        {number.format(samples)} INSERT INTO sample SELECT n, 's' || n, first_seen_at FROM sample, number WHERE id = 1;
        {number.format(acquisitions)}
        INSERT INTO acquisition (id, content_id, sample_id, path, size_bytes, mtime_ns, time_points, tries, first_seen_at)
          SELECT n, 'c' || n, n % {samples} + 1, 'p' || n, 1, 1, 1, 0, first_seen_at FROM acquisition, number WHERE id = 1;
        {number.format(acquisitions)}
        INSERT INTO run (id, acquisition_id, recipe_id, model_id, outcome, checks, tries, finished_at, asked_at)
          SELECT n, n, recipe_id, model_id, outcome, checks, 1, finished_at, asked_at FROM run, number WHERE id = 1;
        {number.format(acquisitions * cells)}
        INSERT INTO cell (id, run_id, number, time_index, volume_fl, accepted, checks)
          SELECT n, (n - 1) / {cells} + 1, n, 0, 200.5, 1, checks FROM cell, number WHERE cell.id = 1;
        {number.format(acquisitions * cells)}
        INSERT INTO prediction (cell_id, model_id, label, probability, probabilities, flags, counted_as)
          SELECT n, model_id, label, (n % 1000) / 1000.0, probabilities, flags, label FROM prediction, number WHERE cell_id = 1;
        COMMIT;
        """
    )
    connection.close()


def test_one_sample_of_many_is_read_by_its_index(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    """Of 20,000 cells in 200 samples one sample's are read; a scan of all would look at each."""
    sqlite_ledger.commit(make_measured("a"), *KEY)
    multiply(tmp_path / "wbcd.db", 10_000, 2, 200)
    connection = sqlite3.connect(tmp_path / "wbcd.db")
    for order in ("cell_id", "cell_id DESC", "probability"):
        query = f"EXPLAIN QUERY PLAN SELECT * FROM cell_result WHERE sample = ? AND is_current ORDER BY {order}"
        plan = [row[3] for row in connection.execute(query, ("s7",))]
        assert not [step for step in plan if step.startswith("SCAN")], plan
    connection.close()
    assert sum(1 for _ in read_cells(tmp_path / "wbcd.db", sample="s7")) == 100


def test_what_becomes_of_the_output_is_no_fault_of_the_database(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wbcd cells --csv > full`: the disk of the output, and no sentence names the database."""
    import wbcd.cli.cells as verb

    class Closed:
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

    monkeypatch.setattr(verb.sys, "stdout", Closed())
    for words in (["--csv"], ["--json"], []):
        with pytest.raises(OSError, match="No space left"):  # not NoSpace of the database
            verb.cells.main([*words, "--db", filled], standalone_mode=False)


@pytest.mark.slow
def test_a_million_cells_in_flat_memory(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    sqlite_ledger.commit(make_measured("a"), *KEY)
    multiply(tmp_path / "wbcd.db", 200_000, 5, 200)
    for words in ((), ("--order", "doubtful")):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "wbcd.cli", "cells", *words, "--csv", "--db", f"sqlite:///{tmp_path}/wbcd.db"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            lines = sum(1 for _ in child.stdout)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = status
        print(f"\n{lines} lines in {time.perf_counter() - begun:.1f} s, {usage.ru_maxrss / 1024:.0f} MiB at most {words}")
        assert lines == 1_000_001
        assert usage.ru_maxrss < 150 * 1024
