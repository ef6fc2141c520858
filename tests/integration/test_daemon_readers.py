"""The daemon's isolated readers: no file takes the reader of another that is still being read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers_acquisition import ri_volume, tcf_file
from helpers_line import MemoryLedger, RecordingLog, fake_stages, quick_config

from wbcd.acquisition import ReadDefaults, identify
from wbcd.config import LimitSettings
from wbcd.daemon.assembly import ReaderPool
from wbcd.daemon.line import Timing, examine
from wbcd.daemon.pipeline import Pipeline
from wbcd.errors import InputError
from wbcd.recipe import Recipe
from wbcd.records import RiSeries

DEFAULTS = ReadDefaults()


@pytest.fixture
def pool():
    made = ReaderPool(LimitSettings())
    yield made
    made.close()


def junk(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"junk{number}.h5" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(b"This is a text file." * (number + 1))
    return paths


def test_failing_reads_do_not_take_a_waiting_series_its_reader(tmp_path, pool):
    series = pool.read(identify(tcf_file(tmp_path / "a.TCF", [ri_volume(), ri_volume()])), defaults=DEFAULTS)[1]
    volumes = iter(series)
    first = next(volumes)
    for path in junk(tmp_path, 4):
        with pytest.raises(InputError):
            pool.read(identify(path), defaults=DEFAULTS)
    other = pool.read(identify(tcf_file(tmp_path / "b.TCF", [ri_volume()])), defaults=DEFAULTS)[1]
    np.testing.assert_array_equal(first.ri, next(volumes).ri)
    assert len(list(other)) == 1
    assert len(pool._readers) == 2  # the series kept one; all else shared the other


@pytest.mark.parametrize("taken", [0, 1])
def test_an_abandoned_series_gives_its_reader_back(tmp_path, pool, taken):
    for number in range(3):
        path = tcf_file(tmp_path / f"{number}.TCF", [ri_volume(), ri_volume() + np.float32(0.001 * number)])
        _ticket, series = pool.read(identify(path), defaults=DEFAULTS)
        assert isinstance(series, RiSeries)
        for _ in range(taken):
            next(iter(series))
        series.close()
        assert list(series) == []
    assert len(pool._readers) == 1


def test_examining_closes_the_series_also_when_a_stage_fails(tmp_path, pool):
    def fails(*_):
        raise ValueError("this tomogram is strange")

    ticket, series = pool.read(identify(tcf_file(tmp_path / "a.TCF", [ri_volume(), ri_volume()])), defaults=DEFAULTS)
    (end,) = examine(ticket, series, fake_stages(judge_tomogram=fails), Recipe(), Timing())
    assert "strange" in end.error.message
    assert [reader.busy for reader in pool._readers] == [False]


def test_a_series_before_three_junk_files_is_measured(tmp_path, pool):
    """The first series is examined only after the junk was read: the order in which a reader could be taken away."""
    paths = [tcf_file(tmp_path / "a.TCF", [ri_volume()]), *junk(tmp_path, 3)]
    paths.append(tcf_file(tmp_path / "z.TCF", [ri_volume() + np.float32(0.001)]))
    log, ledger = RecordingLog(), MemoryLedger()
    stages = fake_stages(
        identify=identify,
        read=lambda acquisition: pool.read(acquisition, defaults=DEFAULTS),
        find_cells=lambda tomogram, recipe, first: [log.wait_for("outcome", 3), []][1],
    )
    pipeline = Pipeline(quick_config(tmp_path, **{"limits.max_tries": 1}), stages, lambda: ledger, log=log)
    pipeline.start()
    try:
        assert all(pipeline.offer(path) for path in paths)
        log.wait_for("outcome", 5)
    finally:
        pipeline.stop(20.0)
    judged = [outcome for outcome in ledger.outcomes.values() if outcome.kind == "rejected"]
    assert {outcome.acquisition.path.name: (outcome.kind, outcome.reason) for outcome in judged} == {
        "a.TCF": ("rejected", "empty_field"),
        "z.TCF": ("rejected", "empty_field"),
    }


def test_a_zarr_folder_that_cannot_be_listed_gets_its_row(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    path.mkdir()
    scandir = os.scandir

    def denying(at):
        if isinstance(at, int) and str(Path(f"/proc/self/fd/{at}").readlink()).endswith(".zarr"):
            raise PermissionError(13, "Permission denied")
        return scandir(at)

    monkeypatch.setattr(os, "scandir", denying)
    log, ledger = RecordingLog(), MemoryLedger()
    pipeline = Pipeline(
        quick_config(tmp_path, **{"limits.max_tries": 1}), fake_stages(identify=identify), lambda: ledger, log=log
    )
    pipeline.start()
    try:
        assert pipeline.offer(path)
        (told,) = log.wait_for("outcome")
    finally:
        pipeline.stop(20.0)
    assert (told["outcome"], told["reason"]) == ("set_aside", "input.not_readable")
    assert "cannot be listed" in told["message"]
