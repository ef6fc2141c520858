"""Training sets: splits, resumption, checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers_classification import CLASSES, SPEC
from helpers_training import TOY_CELLS, toy_set, toy_source

from wbcd.errors import BadValue, StageFailed
from wbcd.training import dataset as sets
from wbcd.training import make_dataset


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_set(tmp_path_factory.mktemp("set") / "toy.zarr")


def test_a_set_holds_what_its_card_says(store: Path) -> None:
    data = sets.load(store)
    assert data.ri_delta.shape == (TOY_CELLS, *SPEC.shape)
    assert data.ri_delta.dtype == np.float16
    assert data.classes == CLASSES
    assert np.bincount(data.label).tolist() == [TOY_CELLS // 2] * 2
    assert np.bincount(data.donor).tolist() == [TOY_CELLS // 6] * 6
    assert data.card["simulated"] is True
    volume = data.morphology[:, sets.SIX.index("volume_fl")]
    assert volume[data.label == 1].mean() > 2 * volume[data.label == 0].mean()


def test_splits_are_7_1_2_in_each_class_and_share_no_cell(store: Path) -> None:
    data = sets.load(store)
    parts = {split: data.indices(split) for split in sets.SPLITS}
    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == list(range(TOY_CELLS))
    held = set(data.donor[parts["test_donor"]].tolist())
    assert len(held) == 1
    assert not held & set(data.donor[np.concatenate([parts[s] for s in ("train", "validation", "test")])].tolist())
    rest = TOY_CELLS - len(parts["test_donor"])
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        counts = np.bincount(data.label[parts[split]], minlength=2)
        assert np.abs(counts - share * rest / 2).max() <= 1


def test_few_donors_are_not_held_out() -> None:
    split = sets.split_of(np.arange(40) % 2, np.arange(40) % 3, 0)
    assert set(split.tolist()) == {0, 1, 2}


def test_the_same_seed_gives_the_same_set_whatever_the_order(store: Path, tmp_path: Path) -> None:
    first = sets.load(store).data_hash
    again = make_dataset(tmp_path / "b.zarr", TOY_CELLS, donors=6, workers=1, spec=SPEC, classes=CLASSES, source=toy_source)
    other = make_dataset(
        tmp_path / "c.zarr", TOY_CELLS, donors=6, seed=1, workers=1, spec=SPEC, classes=CLASSES, source=toy_source
    )
    assert again == first
    assert other != first


def test_a_stopped_run_goes_on_and_ends_the_same(store: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise Stop

    path = tmp_path / "d.zarr"
    with pytest.raises(Stop):
        make_dataset(path, TOY_CELLS, donors=6, workers=1, spec=SPEC, classes=CLASSES, source=toy_source, on_part=stop)
    assert len(sets.missing_parts(path)) == sets.part_count(TOY_CELLS) - 2
    with pytest.raises(BadValue, match="not complete"):
        sets.load(path)
    seen.clear()
    progress: list[int] = []
    make_dataset(
        path,
        TOY_CELLS,
        donors=6,
        workers=1,
        spec=SPEC,
        classes=CLASSES,
        source=toy_source,
        on_part=lambda d, t: progress.append(d),
    )
    assert progress[0] == min(3 * sets.PART, TOY_CELLS)
    assert progress[-1] == TOY_CELLS
    assert sets.load(path).data_hash == sets.load(store).data_hash


def test_another_set_in_the_folder_is_kept(store: Path) -> None:
    with pytest.raises(BadValue, match="seed"):
        make_dataset(store, TOY_CELLS, donors=6, seed=5, workers=1, spec=SPEC, classes=CLASSES, source=toy_source)
    with pytest.raises(BadValue, match="cells"):
        make_dataset(store, 10, donors=6, workers=1, spec=SPEC, classes=CLASSES, source=toy_source)


def test_a_changed_value_is_noticed(tmp_path: Path) -> None:
    path = toy_set(tmp_path / "e.zarr", cells=8)
    group = zarr.open_group(path, mode="r+")
    group["label"][0] = 1 - int(group["label"][0])
    with pytest.raises(BadValue, match="data_hash"):
        sets.load(path)


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    zarr.create_group(tmp_path / "group.zarr")
    for path in (tmp_path / "nothing", tmp_path / "file", tmp_path / "group.zarr"):
        with pytest.raises(BadValue, match=path.name):
            sets.load(path)


def test_an_unknown_or_empty_split_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="nonsense"):
        sets.load(store).indices("nonsense")
    few = sets.load(toy_set(tmp_path / "few.zarr", cells=4, donors=1))
    with pytest.raises(BadValue, match="test_donor"):
        few.indices("test_donor")


def nothing(kind: str, donor: int, draw: np.random.SeedSequence) -> None:
    return None


def test_a_source_that_finds_nothing_gives_up_by_name(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="in 8 draws"):
        make_dataset(tmp_path / "f.zarr", 4, donors=1, workers=1, spec=SPEC, classes=CLASSES, source=nothing)


@pytest.mark.parametrize("bad", [{"cells": 0}, {"workers": 0}, {"donors": 0}, {"path": "slow"}])
def test_senseless_arguments_are_refused(tmp_path: Path, bad: dict[str, object]) -> None:
    given = {"cells": 4, "workers": 1, "donors": 1, **bad}
    with pytest.raises(BadValue):
        make_dataset(tmp_path / "g.zarr", **given)  # type: ignore[arg-type]
