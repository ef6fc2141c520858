"""`wbcd demo` from its first line to its last, on a few cells; and what it must never do to a folder."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers_spheres import tiny_bundle

from wbcd.cli import cli


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 78
    assert "not made by a demo" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


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
    assert outcomes == len(truth) == 4
    assert counted >= 2
