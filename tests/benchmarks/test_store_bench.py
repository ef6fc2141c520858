"""How long the store takes: commits, counts of many cells, kept tomograms."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_store import KEY, opened

from wbcd.records import Cell
from wbcd.report.counts import read_status
from wbcd.store.volumes import write_tomogram
from wbcd.testing import make_acquisition, make_cell, make_measured

pytestmark = pytest.mark.benchmark
THUMBNAIL = np.random.default_rng(0).bytes(20_000)


def test_commits_a_second(any_url: str) -> None:
    with opened(any_url) as ledger:
        started = time.perf_counter()
        for number in range(1000):
            outcome = make_measured(f"{number}", make_cell(thumbnail_png=THUMBNAIL))
            ledger.sighted(outcome.acquisition.path, 1, 1, outcome.acquisition.content_id)
            ledger.begin(outcome.acquisition)
            ledger.commit(outcome, *KEY)
        seconds = time.perf_counter() - started
    print(f"\n{any_url.partition(':')[0]}: 1,000 acquisitions (sighted, begun, committed) in {seconds:.1f} s")
    assert seconds < 60


def test_status_of_a_large_database(tmp_path: Path) -> None:
    path = tmp_path / "wbcd.db"
    with opened(str(path)) as ledger:
        ledger.commit(make_measured("first", make_cell(thumbnail_png=THUMBNAIL)), *KEY)
    multiply(path, 100_000)
    started = time.perf_counter()
    status = read_status(path)
    seconds = time.perf_counter() - started
    program = f"from wbcd.report.counts import read_status; read_status({str(path)!r})"
    whole = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    print(f"\nstatus of 100,001 acquisitions and cells: {seconds:.2f} s; in a new process {time.perf_counter() - whole:.2f} s")
    assert status.measured == 100_001
    assert seconds < 1.5


def multiply(path: Path, count: int) -> None:
    """Copies of the first acquisition, straight by SQL, pictures of 2 kB included."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    for number in range(2, count + 2):
        connection.execute(
            "INSERT INTO acquisition "
            "(id, content_id, sample_id, path, size_bytes, mtime_ns, time_points, tries, first_seen_at) "
            "SELECT ?1, 'c' || ?1, sample_id, 'p' || ?1, 1, 1, 1, 0, first_seen_at FROM acquisition WHERE id = 1",
            (number,),
        )
        connection.execute(
            "INSERT INTO run (id, acquisition_id, recipe_id, model_id, outcome, checks, tries, finished_at) "
            "SELECT ?1, ?1, recipe_id, model_id, outcome, checks, 1, finished_at FROM run WHERE id = 1",
            (number,),
        )
        connection.execute(
            "INSERT INTO cell (id, run_id, number, time_index, accepted, checks, thumbnail_png) "
            "SELECT ?1, ?1, 1, 0, 1, checks, randomblob(2000) FROM cell WHERE id = 1",
            (number,),
        )
        connection.execute(
            "INSERT INTO prediction (cell_id, model_id, label, probability, probabilities, flags, counted_as) "
            "SELECT ?1, model_id, label, 1, probabilities, flags, ?2 FROM prediction WHERE cell_id = 1",
            (number, ("b_lymphocyte", "t_lymphocyte", "monocyte")[number % 3]),
        )
        connection.execute(
            "INSERT INTO source_file (host, path, size_bytes, mtime_ns, content_id, seen_at) "
            "VALUES ('', 'p' || ?1, 1, 1, 'c' || ?1, '')",
            (number,),
        )
    connection.execute("COMMIT")
    connection.close()


def test_tomograms_a_second(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(1.337, 1e-3, (100, 150, 150)).astype(np.float32)
    cell = Cell(1, noise, noise > 1.338, (0.2, 0.1, 0.1), 1.337, (0.0, 15.0, 16.0))
    started = time.perf_counter()
    for number in range(10):
        write_tomogram(tmp_path, cell, acquisition=make_acquisition(f"{number}"), recipe_id="r")
    seconds = (time.perf_counter() - started) / 10
    print(f"\none tomogram of 100 x 150 x 150, three levels, verified and forced to disk: {seconds:.2f} s")
    assert seconds < 1.0
