"""How long reading takes, and how much memory, at the sizes of the instruments."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_acquisition import holograms, wbcd_file

from wbcd.acquisition import FolderWatcher, IsolatedReader, identify, read
from wbcd.simulation.files import write_tcf

pytestmark = pytest.mark.benchmark


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


@pytest.mark.parametrize("options", [{"version": "1.3"}, {"version": "1.6", "tile_shape": (64, 128, 128), "overlap": 8}])
def test_a_whole_field_of_an_ht_2h(tmp_path, options):
    field = np.full((210, 732, 732), 1.337, np.float32)
    field += np.random.default_rng(0).integers(0, 30, (732, 732)).astype(np.float32) / 1e4
    path = write_tcf(tmp_path / "field.TCF", [field], voxel_um=(0.19, 0.09, 0.09), **options)
    del field
    with IsolatedReader() as reader:
        reader.start()
        start = time.perf_counter()
        (tomogram,) = reader.read(identify(path))[1]
        seconds, peak = time.perf_counter() - start, peak_mib(reader._child.pid)
    print(f"\nTCF {options['version']} {tomogram.ri.shape}: {seconds:.1f} s, reader's peak {peak:.0f} MiB")
    assert peak < 2048


def test_holograms_of_one_cell(tmp_path):
    path = wbcd_file(tmp_path / "a.h5", holograms(angles=49, size=512))
    with IsolatedReader() as reader:
        reader.start()
        start = time.perf_counter()
        for _ in range(20):
            reader.read(identify(path))
        seconds = (time.perf_counter() - start) / 20
    print(f"\n49 x 512 x 512 uint8, identified and read in isolation: {1000 * seconds:.0f} ms")
    assert seconds < 0.5


CELL_S = 2.7
"""What one cell of 13 MB of holograms takes in all (docs/benchmarks.md)."""


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_what_the_isolation_costs(tmp_path):
    """CPU time of both processes together, which a busy machine does not change; the wall clock's best beside it."""
    path = wbcd_file(tmp_path / "a.h5", holograms(angles=49, size=512))
    ticket, turns = identify(path), 40
    with IsolatedReader(root=tmp_path) as reader:
        reader.read(ticket)
        child = reader._child.pid
        walls: dict[str, list[float]] = {"isolated": [], "here": []}
        begin = time.process_time() + cpu_of(child)
        for _ in range(turns):
            start = time.perf_counter()
            reader.read(ticket)
            walls["isolated"].append(time.perf_counter() - start)
        isolated = (time.process_time() + cpu_of(child) - begin) / turns
    begin = time.process_time()
    for _ in range(turns):
        start = time.perf_counter()
        read(ticket, root=tmp_path)
        walls["here"].append(time.perf_counter() - start)
    here = (time.process_time() - begin) / turns
    share = (isolated - here) / CELL_S
    best = {name: min(times) for name, times in walls.items()}
    print(
        f"\n13 MB of holograms read: CPU {1000 * here:.1f} ms here, {1000 * isolated:.1f} ms isolated: {100 * share:.2f} % of a"
        f" cell's {CELL_S} s; wall (best of {turns}) {1000 * best['here']:.1f} and {1000 * best['isolated']:.1f} ms"
    )
    assert share < 0.05


def test_a_backlog_of_20000_files(tmp_path):
    for index in range(20_000):
        (tmp_path / f"{index}.h5").write_bytes(b"1")
    watcher = FolderWatcher(tmp_path, quiet_s=0.0)
    start = time.perf_counter()
    found = watcher.poll(0.0)
    seconds = time.perf_counter() - start
    print(f"\n20,000 files listed and given out: {seconds:.2f} s")
    assert len(found) == 20_000
    assert seconds < 10.0
