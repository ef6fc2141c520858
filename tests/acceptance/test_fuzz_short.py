"""The short form of ``make fuzz``: some hundred spoiled acquisitions through the real line, and some through a real daemon."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.run_fuzz import feed_daemon
from helpers_fuzz import FAULTS, MOST_UNNOTICED, Judge, make_case, make_corpus, mutate_bytes, mutate_hdf5, remove_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = 120
HDF5_FILES = ("sealed", "plain", "float", "uint16", "tiled", "raw")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def judge(corpus: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    made = Judge(tmp_path_factory.mktemp("fuzz") / "watch", corpus)
    yield made
    made.close()


def test_no_case_is_a_fault(judge: Judge, corpus: dict[str, Path]) -> None:
    found: Counter[str] = Counter()
    faults = []
    for seed in range(10_000_000, 10_000_000 + CASES):
        name, kind, path = make_case(seed, corpus, judge.folder)
        result = judge(name, path)
        remove_case(path)
        found[result.verdict] += 1
        if result.verdict in FAULTS:
            faults.append((seed, name, kind, result))
    assert not faults
    # The cases are neither all harmless nor all hopeless.
    assert found["refused"] > CASES / 3
    assert found["same"] > CASES / 10
    assert found["unnoticed"] <= 3 + MOST_UNNOTICED * CASES


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(HDF5_FILES), seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=3))
def test_structures_changed_one_after_another(judge: Judge, corpus: dict[str, Path], name: str, seeds: list[int]) -> None:
    path = judge.folder / f"twisted{corpus[name].suffix}"
    path.write_bytes(corpus[name].read_bytes())
    try:
        for seed in seeds:
            try:
                mutate_hdf5(path, random.Random(seed), judge.folder.parent / "outside.h5")
            except (OSError, ValueError, TypeError, RuntimeError, KeyError, OverflowError):
                break  # what h5py refuses to write is left half-changed
        assert judge(name, path).verdict not in FAULTS
    finally:
        remove_case(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_sealed_file_is_the_truth_or_refused(judge: Judge, corpus: dict[str, Path], seed: int) -> None:
    """Whatever happens to its bytes: not even a flag is needed."""
    path = judge.folder / "sealed-again.h5"
    path.write_bytes(mutate_bytes(corpus["sealed"].read_bytes(), random.Random(seed))[1])
    try:
        assert judge("sealed", path).verdict in ("same", "refused")
    finally:
        remove_case(path)


def test_a_case_follows_from_its_seed(corpus: dict[str, Path], tmp_path: Path) -> None:
    for seed in range(20):
        made = []
        for turn in ("first", "second"):
            folder = tmp_path / turn
            folder.mkdir(exist_ok=True)
            name, kind, path = make_case(seed, corpus, folder)
            files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
            made.append((name, kind, [(file.name, file.read_bytes()) for file in files if not file.is_symlink()]))
        assert made[0][:2] == made[1][:2]
        if made[0][1].startswith(("bytes", "zarr")):
            assert made[0] == made[1]


def test_a_daemon_lives_through_them_and_each_file_has_its_outcome(tmp_path: Path) -> None:
    found = feed_daemon(tmp_path / "site", 20_000_000, 24, timeout_s=300.0)
    assert found["exit_status"] == 0, (tmp_path / "site" / "daemon.log").read_text()[-2000:]
    assert found["without_an_outcome"] == []
    assert sum(found["outcomes"].values()) >= 18  # some cases are one another's copies
