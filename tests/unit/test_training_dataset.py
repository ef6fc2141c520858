"""Training sets: splits, resumption, checks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from helpers_classification import CLASSES, SPEC
from helpers_training import TOY_CELLS, toy_set, toy_source

from wbcd.classification import InputSpec, load_bundle
from wbcd.cli import cli
from wbcd.errors import BadValue, BundleInvalid, StageFailed
from wbcd.training import dataset as sets
from wbcd.training import make_dataset
from wbcd.training.evaluation import evaluate


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


# --- the same cells in another box -------------------------------------------------------------------


def test_a_smaller_box_is_what_the_preparation_would_have_cut(store: Path, tmp_path: Path) -> None:
    whole, spec = sets.load(store), replace(SPEC, shape=(10, 12, 12))
    direct = tmp_path / "direct.zarr"
    make_dataset(direct, TOY_CELLS, donors=6, seed=0, workers=1, spec=spec, classes=CLASSES, source=toy_source)
    made, cut = sets.load(direct), whole.at(spec)
    np.testing.assert_array_equal(cut.ri_delta, made.ri_delta)
    assert cut.input == spec
    assert (cut.phase.shape, cut.amplitude.shape) == (made.phase.shape, made.amplitude.shape)  # type: ignore[union-attr]
    for scheme in sets.SCHEMES:
        np.testing.assert_array_equal(cut.split(scheme), whole.split(scheme))
    assert whole.at(SPEC) is whole


def test_a_coarser_pitch_keeps_place_and_mass(store: Path) -> None:
    whole = sets.load(store)
    coarse = whole.at(InputSpec((6, 10, 10), (1.6, 1.2, 1.2)))
    sums = [d.ri_delta.astype(float).sum((1, 2, 3)) * np.prod(d.input.voxel_um) for d in (whole, coarse)]
    # Points of a hard-edged ball: each sum is off by its own few per cent.
    assert sums[1].mean() == pytest.approx(sums[0].mean(), rel=0.03)
    assert np.corrcoef(*sums)[0, 1] > 0.99
    middle = [float((coarse.ri_delta[0].astype(float).sum((0, axis)) * np.arange(10)).sum()) for axis in (1, 2)]
    assert np.divide(middle, coarse.ri_delta[0].astype(float).sum()) == pytest.approx([4.5, 4.5], abs=0.6)


@pytest.mark.parametrize("wrong", [InputSpec((12, 16, 16), (0.8, 0.4, 0.8)), InputSpec((12, 18, 16), (0.8, 0.8, 0.8))])
def test_what_a_set_does_not_hold_cannot_be_made_of_it(store: Path, wrong: InputSpec) -> None:
    with pytest.raises(BadValue, match="cannot be made of them"):
        sets.load(store).at(wrong)


def test_a_model_of_a_larger_box_is_told_what_to_do(store: Path) -> None:
    with pytest.raises(BundleInvalid) as told:
        sets.check_matches(sets.load(store), CLASSES, InputSpec((12, 18, 16), (0.8, 0.8, 0.8)), Path("model"))
    assert told.value.advice == "Ask for no finer pitch and no larger box, or make another set."
    assert "configuration" not in told.value.sentence()


def test_cells_are_made_in_the_box_and_at_the_pitch_that_is_asked_for(tmp_path: Path) -> None:
    """Of the same phantoms: the usual set's cell is the middle of the larger one, and the mean of the finer."""
    usual, large, fine = (tmp_path / name for name in ("usual.zarr", "large.zarr", "fine.zarr"))
    words = ["dataset", "make", "--cells", "1", "--donors", "1", "--seed", "3", "--workers", "1", "--path", "ideal"]
    for out, more in (
        (usual, []),
        (large, ["--shape", "50,75,75", "--pitch", "0.4,0.2,0.2"]),
        (fine, ["--shape", "40,128,128", "--pitch", "0.4,0.1,0.1"]),
    ):
        done = CliRunner().invoke(cli, [*words, str(out), *more])
        assert done.exit_code == 0, done.output
        assert "nothing can be trained so" in done.output
    small, whole, sharp = (sets.load(path) for path in (usual, large, fine))
    assert (whole.input.shape, sharp.input.voxel_um) == ((50, 75, 75), (0.4, 0.1, 0.1))
    assert whole.ri_delta.shape[1:] == (50, 75, 75)
    np.testing.assert_array_equal(whole.at(small.input).ri_delta, small.ri_delta)
    averaged = sharp.ri_delta[0].astype(np.float64).reshape(40, 64, 2, 64, 2).mean(axis=(2, 4))
    stored = small.ri_delta[0].astype(np.float64)
    assert averaged.sum() == pytest.approx(stored.sum(), rel=0.02)
    assert np.corrcoef(averaged.ravel(), stored.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("path", "shape", "pitch", "said"),
    [
        ("fast", "40,64,64", "0.4,0.05,0.05", "shows 20 x 15 x 15 um at 0.2 x 0.1 x 0.1 um"),
        ("fast", "60,64,64", "0.4,0.2,0.2", "a box of 24 x 12.8 x 12.8 um"),
        ("fast", "40,64,64", "0.2,0.2,0.2", "by fast it is 0.4"),
    ],
)
def test_what_the_simulation_does_not_show_is_not_made_up(tmp_path: Path, path: str, shape: str, pitch: str, said: str) -> None:
    words = ["dataset", "make", str(tmp_path / "set.zarr"), "--cells", "4", "--path", path, "--shape", shape, "--pitch", pitch]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 78
    assert said in done.output
    assert not (tmp_path / "set.zarr").exists()


def test_a_model_of_a_smaller_box_is_trained_and_measured_on_the_same_set(store: Path, tmp_path: Path) -> None:
    words = ["train", str(store), str(tmp_path / "run"), "--epochs", "1", "--width", "2", "--device", "cpu"]
    result = CliRunner().invoke(cli, [*words, "--shape", "10,12,12", "--pitch", "0.8,1.0,1.0", "--json"])
    assert result.exit_code == 0, result.output
    bundle = load_bundle(tmp_path / "run" / "bundle")
    assert bundle.input == InputSpec((10, 12, 12), (0.8, 1.0, 1.0))
    measured = evaluate(bundle.path, store, "test", device="cpu")
    assert measured.n == len(sets.load(store).indices("test"))
    assert measured.accuracy == pytest.approx(json.loads(result.stdout)["evaluations"]["test"]["accuracy"])
    bad = CliRunner().invoke(cli, [*words, "--shape", "10,12"])
    assert bad.exit_code == 2
    assert "not three whole numbers above 0" in bad.output


def test_a_set_is_named_once(tmp_path: Path) -> None:
    twice = CliRunner().invoke(cli, ["dataset", "make", str(tmp_path / "a.zarr"), "--out", str(tmp_path / "b.zarr")])
    assert twice.exit_code == 2
    assert "named twice" in twice.output
    never = CliRunner().invoke(cli, ["dataset", "make", "--cells", "8"])
    assert never.exit_code == 2
    assert "No set to make" in never.output
    made = CliRunner().invoke(cli, ["dataset", "make", "--cells", "1", "--out", str(tmp_path / "c.zarr"), "--workers", "1"])
    assert made.exit_code == 0, made.output
    assert len(sets.load(tmp_path / "c.zarr").label) == 1


def test_other_numbers_are_other_donors(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a.zarr", 12, donors=3, first_donor=40, spec=SPEC, classes=CLASSES, source=toy_source, workers=1)
    data = sets.load(tmp_path / "a.zarr")
    assert set(data.donor.tolist()) == {40, 41, 42}
    assert data.card["first_donor"] == 40
    with pytest.raises(BadValue, match="first_donor is -1"):
        make_dataset(tmp_path / "b.zarr", 12, first_donor=-1, source=toy_source)


@pytest.mark.parametrize(("first", "donors"), [(40_000, 2), (32_767, 2), (-1, 2)])
def test_a_donor_whose_number_no_set_holds_is_refused_before_anything_is_made(tmp_path: Path, first: int, donors: int) -> None:
    with pytest.raises(BadValue, match=f"first_donor is {first}"):
        toy_set(tmp_path / "far.zarr", cells=4, donors=donors, first_donor=first)
    assert not (tmp_path / "far.zarr").exists()
    assert sets.load(toy_set(tmp_path / "last.zarr", cells=4, donors=2, first_donor=32_766)).donor.max() == 32_767
