"""Two minutes of the soak; an hour of it is `make soak`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "soak" / "soak.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_minutes_of_the_soak(tmp_path: Path) -> None:
    out = tmp_path / "soak"
    done = subprocess.run([sys.executable, SOAK, "--minutes", "2", "--out", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads((out / "soak.json").read_text())
    assert figures["contents"] > 0
    assert sum(figures["kills"].values()) > 0
    assert {path.name for path in out.glob("*.png")} == {"soak-memory.png", "soak-outcomes.png"}
