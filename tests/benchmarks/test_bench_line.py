"""The main job's speed and memory: files to committed rows through `wbcd process`, with the shipped model."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wbcd.simulation.microscope import simulate

CELLS = 12
LIMIT_S = {"hologram": 5.0, "tcf": 1.0}
LIMIT_GIB = 4.0


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file_format", ["hologram", "tcf"])
def test_files_to_committed_rows(file_format: str, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    for _ in simulate(incoming, CELLS, 11, format=file_format):  # type: ignore[arg-type]
        pass
    command = [sys.executable, "-m", "wbcd.cli", "process", str(incoming), "--json", "--db", f"sqlite:///{tmp_path}/wbcd.db"]
    arrivals = []
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            arrivals.append(time.monotonic())
            assert json.loads(line)["outcome"] in ("measured", "rejected")
    assert child.returncode == 0
    assert len(arrivals) == CELLS
    sustained = (arrivals[-1] - arrivals[0]) / (CELLS - 1)
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"\n{file_format}: {sustained:.2f} s a cell sustained, first after {arrivals[0] - began:.1f} s, peak {peak_gib:.2f} GiB"
    )
    assert sustained <= LIMIT_S[file_format]
    assert peak_gib < LIMIT_GIB
