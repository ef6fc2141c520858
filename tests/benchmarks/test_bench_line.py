"""The main job's speed and memory: files to committed rows through `wbcd process`, with the shipped model."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from wbcd.simulation.files import write_tcf
from wbcd.simulation.microscope import simulate

CELLS = 12
LIMIT_S = {"hologram": 5.0, "tcf": 1.0}
LIMIT_GIB = 4.0
MEDIUM_RI = 1.337
LARGE_SHAPE = (210, 732, 732)
LARGE_VOXEL_UM = (0.2, 0.1, 0.1)


class TreeMemory:
    """Peak memory of a process and all its children, in GiB, looked at every ``every_s`` seconds from a thread.

    The sum of the proportional set sizes: pages that processes share are counted once, which neither the largest resident
    set (of one process alone) nor the sum of them (shared pages again and again) does.
    """

    def __init__(self, pid: int, every_s: float = 0.25) -> None:
        self._root = psutil.Process(pid)
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="tree-memory")
        self.peak_gib = 0.0
        self.looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._ended.is_set():
            self.peak_gib = max(self.peak_gib, self._now_gib())
            self.looks += 1
            self._ended.wait(self._every_s)

    def _now_gib(self) -> float:
        try:
            tree = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0.0
        return sum(map(_pss, tree)) / 2**30


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended between the list and the look
        return 0


def processed(incoming: Path, folder: Path) -> tuple[list[dict[str, Any]], list[float], TreeMemory]:
    """Each outcome of `wbcd process`, when it came (s from the start), and the memory of the whole process tree."""
    command = [sys.executable, "-m", "wbcd.cli", "process", str(incoming), "--json", "--db", f"sqlite:///{folder}/wbcd.db"]
    made, arrivals = [], []
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child, TreeMemory(child.pid) as memory:
        assert child.stdout is not None
        for line in child.stdout:
            arrivals.append(time.monotonic() - began)
            made.append(json.loads(line))
    assert child.returncode == 0
    assert memory.looks > 5
    return made, arrivals, memory


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file_format", ["hologram", "tcf"])
def test_files_to_committed_rows(file_format: str, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    for _ in simulate(incoming, CELLS, 11, format=file_format):  # type: ignore[arg-type]
        pass
    made, arrivals, memory = processed(incoming, tmp_path)
    assert len(made) == CELLS
    assert {one["outcome"] for one in made} <= {"measured", "rejected"}
    sustained = (arrivals[-1] - arrivals[0]) / (CELLS - 1)
    print(
        f"\n{file_format}: {sustained:.2f} s a cell sustained, first after {arrivals[0]:.1f} s, "
        f"peak {memory.peak_gib:.2f} GiB (PSS of the process tree)"
    )
    assert sustained <= LIMIT_S[file_format]
    assert memory.peak_gib < LIMIT_GIB


def twenty_spheres() -> NDArray[np.float32]:
    """RI [z, y, x] of 5 x 4 spheres of 3 to 4 um radius, 14 um apart, in a medium; each at its own depth."""
    ri = np.full(LARGE_SHAPE, MEDIUM_RI, np.float32)
    rng = np.random.default_rng(20)
    for row in range(4):
        for column in range(5):
            centre_um = (rng.uniform(16, 26), 11.0 + 17.0 * row, 8.0 + 14.0 * column)
            _fill(ri, centre_um, rng.uniform(3.0, 4.0), rng.uniform(1.365, 1.385))
    return ri


def _fill(ri: NDArray[np.float32], centre_um: tuple[float, float, float], radius_um: float, value: float) -> None:
    box = tuple(
        slice(int((c - radius_um) / pitch) - 1, int((c + radius_um) / pitch) + 2)
        for c, pitch in zip(centre_um, LARGE_VOXEL_UM, strict=True)
    )
    places = np.ix_(
        *(np.arange(s.start, s.stop) * pitch - c for s, pitch, c in zip(box, LARGE_VOXEL_UM, centre_um, strict=True))
    )
    ri[box][sum(place**2 for place in places) <= radius_um**2] = value


@pytest.mark.benchmark
@pytest.mark.timeout(900)
def test_the_largest_volume_of_the_instrument_fits_into_memory(tmp_path: Path) -> None:
    """The vendor's whole field, 210 x 732 x 732 voxels of uint16, with twenty objects at once."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    write_tcf(
        incoming / "field.TCF",
        [twenty_spheres()],
        version="1.3",
        voxel_um=LARGE_VOXEL_UM,
        medium_ri=MEDIUM_RI,
        title="spheres-001",
    )
    (made,), arrivals, memory = processed(incoming, tmp_path)
    found = len(made["cells"]) + len(made.get("refused_cells", ()))
    print(
        f"\n210 x 732 x 732: {found} spheres in {arrivals[0]:.1f} s, peak {memory.peak_gib:.2f} GiB (PSS of the process tree)"
    )
    assert made["outcome"] == "measured", made
    assert found == 20
    assert memory.peak_gib < LIMIT_GIB
