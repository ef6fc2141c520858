"""`wbcd demo` from its first line to its last, on a few cells; and what it must never do to a folder."""

from __future__ import annotations

import errno
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers_spheres import tiny_bundle

from wbcd.cli import cli
from wbcd.cli.demo import Places, acquisitions, prepare
from wbcd.simulation.defects import planned_defect


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 78
    assert "not made by a demo" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_emptied_is_a_sentence_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(tmp_path / "demo")
    prepare(places)
    prepare(places)  # its own folder: emptied and made anew

    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    monkeypatch.setattr("wbcd.cli.demo.shutil.rmtree", busy)
    result = CliRunner().invoke(cli, ["demo", "--out", str(places.root)])
    assert result.exit_code == 78
    assert "cannot be emptied" in result.output
    (tmp_path / "file").write_text("")
    assert "not a folder" in CliRunner().invoke(cli, ["demo", "--out", str(tmp_path / "file")]).output


@pytest.mark.parametrize(("cells", "defects", "least_good"), [(40, 0.1, 44), (40, 0.0, 44), (3, 0.25, 4), (40, 1.0, 0)])
def test_a_tenth_more_good_ones_are_made_than_are_asked_for(cells: int, defects: float, least_good: int) -> None:
    total = acquisitions(cells, defects)
    bad = sum(planned_defect(defects, index, "hologram") is not None for index in range(total))
    assert total - bad >= least_good


@pytest.mark.slow
def test_the_whole_demo_with_three_cells(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "wbcd.cli", "demo", "--cells", "3", "--defects", "0.25", "--out", out, "--model", bundle]
    result = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert result.returncode == 0, result.stderr
    assert "simulated — research use only" in result.stdout
    assert f"sqlite3 {out}/wbcd.db 'select * from differential_count'" in result.stdout
    assert (out / "representative-cells.png").read_bytes().startswith(b"\x89PNG")
    truth = [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]
    connection = sqlite3.connect(out / "wbcd.db")
    (outcomes,) = connection.execute("SELECT COUNT(*) FROM run").fetchone()
    (counted,) = connection.execute("SELECT SUM(n) FROM differential_count").fetchone()
    connection.close()
    assert outcomes == len(truth) == 6
    assert counted >= 3
