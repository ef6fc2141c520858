"""Several sets in one: who is who, what may be joined, and that a training of it is a training like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from helpers_training import toy_set

from wbcd.classification import load_bundle
from wbcd.cli import cli
from wbcd.errors import BadValue
from wbcd.training import dataset as sets
from wbcd.training import seen, train
from wbcd.training.evaluation import evaluate
from wbcd.training.fit import PRESETS, Training
from wbcd.training.join import join
from wbcd.training.judge import judge_models
from wbcd.training.oracle import parameters
from wbcd.training.splits import continue_splits, missing_classes
from wbcd.training.unknown import calibrate


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """70 and 60 cells: a part of the whole lies across their border. Donors 0 to 5 and 4 to 9."""
    folder = tmp_path_factory.mktemp("two")
    return toy_set(folder / "a.zarr", 70, seed=1), toy_set(folder / "b.zarr", 60, seed=2, first_donor=4)


def named(path: Path, names: list[str]) -> Path:
    """The set as if a database had named its donors."""
    group = zarr.open_group(path, mode="r+", zarr_format=3)
    group.attrs.update({"donor_names": names, "path": "database"})
    return path


def test_every_cell_is_there_once_and_whose_it_was(two: tuple[Path, Path], tmp_path: Path) -> None:
    digest = join(two, tmp_path / "both.zarr", seed=3)
    a, b, both = (sets.load(path) for path in (*two, tmp_path / "both.zarr"))
    assert both.data_hash == digest
    for name in ("ri_delta", "label", "donor", "morphology", "phase", "amplitude", "purity", "cell_id"):
        np.testing.assert_array_equal(getattr(both, name), np.concatenate([getattr(a, name), getattr(b, name)]))
    assert both.card["donors"] == 10
    assert set(both.donor[both.indices("test_donor")]).isdisjoint(both.donor[both.indices("train")])
    # Whoever is in both sets is one donor: all of them train, or none.
    assert seen.donors(both, both.indices(sets.ALL)) == {f"simulated-{n}" for n in range(10)}


def test_an_interrupted_one_goes_on(two: tuple[Path, Path], tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        join(two, tmp_path / "both.zarr", on_part=kill)
    assert sets.missing_parts(tmp_path / "both.zarr") == [1, 2]
    told: list[tuple[int, int]] = []
    digest = join(two, tmp_path / "both.zarr", on_part=lambda *done: told.append(done))
    assert told == [(128, 130), (130, 130)]
    assert digest == join(two, tmp_path / "again.zarr")


def test_named_donors_keep_their_names(tmp_path: Path) -> None:
    a = named(toy_set(tmp_path / "a.zarr", 40, seed=1, donors=2), ["mueller", "abel"])
    b = named(toy_set(tmp_path / "b.zarr", 40, seed=2, donors=2), ["abel", "zoe"])
    join((a, b), tmp_path / "both.zarr")
    both = sets.load(tmp_path / "both.zarr")
    assert both.card["donor_names"] == ["abel", "mueller", "zoe"]
    theirs = [["mueller", "abel"][n] for n in sets.load(a).donor] + [["abel", "zoe"][n] for n in sets.load(b).donor]
    assert [both.card["donor_names"][n] for n in both.donor] == theirs


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"simulated": False}, "simulated is False"),
        ({"recipe_id": "another"}, "recipe_id is 'another'"),
        ({"phantoms": "others"}, "phantoms is 'others'"),
        ({"classes": ["large", "small"]}, "classes is"),
        ({"complete": False}, "not complete"),
        ({"format_version": 1}, "of version 1"),
        ({"donor_names": ["a", "b"]}, "its donors are named"),
        ({"path": "fast", "seed": 1}, "again"),
        ({"donor_names": ["a"], "donor": 2}, "names 1 donors"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    a, b = (toy_set(tmp_path / f"{n}.zarr", 8, seed=n, donors=2) for n in (1, 2))
    zarr.open_group(b, mode="r+", zarr_format=3).attrs.update({k: v for k, v in change.items() if k != "donor"})
    if "donor" in change:
        zarr.open_group(a, mode="r+", zarr_format=3).attrs.update({"donor_names": ["a", "b"]})
    if "path" in change:
        zarr.open_group(a, mode="r+", zarr_format=3).attrs.update({"path": "exact"})
    with pytest.raises(BadValue, match=says):
        join((a, b), tmp_path / "both.zarr")
    assert not (tmp_path / "both.zarr").exists() or "donor" in change


@pytest.mark.parametrize("key", ["seed", "donors", "data_hash", "recipe_id"])
def test_a_card_that_lacks_something_is_named(tmp_path: Path, key: str) -> None:
    a, b = (toy_set(tmp_path / f"{n}.zarr", 8, seed=n, donors=2) for n in (1, 2))
    for path in (a, b):
        attributes = zarr.open_group(path, mode="r+", zarr_format=3).attrs
        kept = {k: v for k, v in attributes.items() if k != key}
        attributes.clear()
        attributes.update(kept)
    with pytest.raises(BadValue, match=f"1.zarr: its card has no {key}"):
        join((a, b), tmp_path / "both.zarr")


def test_cells_of_one_database_in_two_sets_are_found(tmp_path: Path) -> None:
    """Made twice of the same cells, with other splits: another hash, the same tomograms."""
    a = named(toy_set(tmp_path / "a.zarr", 20, seed=1, donors=2), ["abel", "zoe"])
    b = named(toy_set(tmp_path / "b.zarr", 20, seed=1, donors=2), ["abel", "zoe"])
    group = zarr.open_group(b, mode="r+", zarr_format=3)
    group.attrs.update({"seed": 7, "complete": False})
    sets.finish(b)
    assert sets.load(a).data_hash != sets.load(b).data_hash
    with pytest.raises(BadValue, match=r"b\.zarr: 20 of its 20 cells are in .*a\.zarr"):
        join((a, b), tmp_path / "both.zarr")


def test_what_a_joined_set_is_made_of_is_remembered(tmp_path: Path) -> None:
    """As if simulated: a part of it, alone or in another one, is not joined to it again; a new seed 0 is."""
    paths = [toy_set(tmp_path / f"{n}.zarr", 8, seed=n, donors=2, first_donor=2 * n) for n in (1, 2, 3, 0)]
    for path in paths:
        zarr.open_group(path, mode="r+", zarr_format=3).attrs.update({"path": "fast"})
    a, b, c, zero = paths
    join((a, b), tmp_path / "ab.zarr")
    with pytest.raises(BadValue, match="again"):
        join((tmp_path / "ab.zarr", a), tmp_path / "aba.zarr")
    join((c, tmp_path / "ab.zarr"), tmp_path / "cab.zarr")
    card = sets.read_attributes(tmp_path / "cab.zarr")
    assert [part["seed"] for part in card["joined"]] == [3, 1, 2]
    assert card["joined_hashes"] == [sets.read_attributes(path)["data_hash"] for path in (c, a, b)]
    assert card["donors"] == 6
    assert card["path"] == "joined"
    join((tmp_path / "ab.zarr", zero), tmp_path / "ab0.zarr")
    with pytest.raises(BadValue, match="is joined of 2 sets"):
        parameters(sets.load(tmp_path / "ab.zarr"))


def test_the_instruments_are_those_that_every_set_states(tmp_path: Path) -> None:
    a, b = (toy_set(tmp_path / f"{n}.zarr", 8, seed=n, donors=2) for n in (1, 2))
    for path, stated in ((a, {"objective_na": [1.15, 1.2]}), (b, {"objective_na": [1.2, 1.25], "wavelength_um": [0.5, 0.5]})):
        zarr.open_group(path, mode="r+", zarr_format=3).attrs.update({"instrument": stated})
    join((a, b), tmp_path / "both.zarr")
    assert sets.read_attributes(tmp_path / "both.zarr")["instrument"] == {"objective_na": [1.15, 1.25]}


def test_one_set_alone_or_the_same_twice_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="at least 2"):
        join(two[:1], tmp_path / "both.zarr")
    with pytest.raises(BadValue, match="70 of its 70 cells are in"):
        join((two[0], two[0]), tmp_path / "both.zarr")


def test_a_model_of_a_joined_set_knows_it_again_and_its_parts(two: tuple[Path, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["dataset", "join", *map(str, two), "--out", str(tmp_path / "both.zarr")])
    assert result.exit_code == 0, result.output
    both, part = sets.load(tmp_path / "both.zarr"), sets.load(two[0])
    of_both = load_bundle(train(tmp_path / "both.zarr", tmp_path / "run", width=3, epochs=1, device="cpu").bundle)
    of_part = load_bundle(train(two[0], tmp_path / "part", width=3, epochs=1, device="cpu").bundle)
    assert seen.same_set(of_both, both)
    assert not seen.same_set(of_both, part)
    assert not seen.same_set(of_part, both)
    cells = both.indices("train")
    assert seen.cells_of(of_both, both, cells) == len(cells)
    for bundle, data in ((of_both, part), (of_part, both)):
        said = seen.warnings(bundle, data, data.indices("test"), "test", "both")
        assert any("in common" in text for text in said), said
    other = sets.load(toy_set(tmp_path / "other.zarr", 60, seed=9, first_donor=200))
    assert seen.warnings(of_both, other, other.indices("test"), "test", "both") == []
    shown = CliRunner().invoke(cli, ["dataset", "show", str(tmp_path / "both.zarr")])
    assert "2 joined sets" in shown.output


def test_the_parts_of_a_joined_set_are_judged_apart(two: tuple[Path, Path], tmp_path: Path) -> None:
    """One figure over both would hide that a model fails on one of two instruments."""
    a = toy_set(tmp_path / "a.zarr", 70, seed=1)
    b = toy_set(tmp_path / "b.zarr", 60, seed=2, first_donor=10)
    for path, how in ((a, "fast"), (b, "exact")):
        zarr.open_group(path, mode="r+", zarr_format=3).attrs.update({"path": how})
    join((a, b), tmp_path / "both.zarr", seed=3)
    both = sets.load(tmp_path / "both.zarr")
    assert [(name, cells) for name, cells in both.origins()] == [
        ("1: simulated (fast), seed 1", range(70)),
        ("2: simulated (exact), seed 2", range(70, 130)),
    ]
    assert sets.load(two[0]).origins() == []
    made = train(a, tmp_path / "run", width=3, epochs=4, device="cpu").bundle
    facts = judge_models([made], tmp_path / "both.zarr", split="all", out=tmp_path / "report").facts
    first, second = facts["parts"]
    assert (first["n"], second["n"]) == (70, 60)
    of_a, of_b = (evaluate(made, path, "all", device="cpu") for path in (a, b))
    assert first["accuracy"] == pytest.approx(of_a.accuracy)
    assert second["accuracy"] == pytest.approx(of_b.accuracy)
    told = CliRunner().invoke(cli, ["evaluate", str(made), str(tmp_path / "both.zarr"), "--split", "all"])
    assert "part 2: simulated (exact), seed 2" in told.output
    assert "| 1: simulated (fast), seed 1 | 70 |" in (tmp_path / "report" / "report.md").read_text()
    assert judge_models([made], a, split="all").facts["parts"] == []


def test_a_calibrated_models_card_tells_the_parts_apart(two: tuple[Path, Path], tmp_path: Path) -> None:
    join(two, tmp_path / "both.zarr", seed=3)
    made = train(tmp_path / "both.zarr", tmp_path / "run", width=3, epochs=1, device="cpu").bundle
    calibrate(made, tmp_path / "both.zarr", tmp_path / "calibrated", acceptance=0.5, coverage=0.5, device="cpu")
    measured = load_bundle(tmp_path / "calibrated").model.measured
    for split in ("test", "test_donor"):
        row = measured[split]
        assert sum(part["n"] for part in row["parts"]) == row["n"]
        right = sum(part["accuracy"] * part["n"] for part in row["parts"])
        assert right == pytest.approx(row["accuracy"] * row["n"])
        assert all(0 <= part["unclassified"] <= 1 for part in row["parts"])


def test_counts_that_are_not_the_cells_are_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    join(two, tmp_path / "both.zarr")
    group = zarr.open_group(tmp_path / "both.zarr", mode="r+", zarr_format=3)
    joined = [dict(part) for part in group.attrs["joined"]]
    joined[0]["cells"] = 71
    group.attrs["joined"] = joined
    with pytest.raises(BadValue, match="holds 130 cells; the sets it was joined from have 131"):
        sets.load(tmp_path / "both.zarr").origins()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A, B and C; AB carries on A's splits, ABC those of AB; "anew" are A and B with other splits. A holds out donor 3."""
    folder = tmp_path_factory.mktemp("chain")
    made = {"a": toy_set(folder / "a.zarr", 70, seed=1), "b": toy_set(folder / "b.zarr", 60, seed=2, first_donor=2)}
    made["c"] = toy_set(folder / "c.zarr", 40, seed=4, first_donor=3)
    for name in "abc":
        zarr.open_group(made[name], mode="r+", zarr_format=3).attrs.update({"path": "fast", "phantoms": "p"})
    for name, parts in (("ab", "a b"), ("abc", "ab c")):
        made[name] = folder / f"{name}.zarr"
        asked = ["dataset", "join", *(str(made[part]) for part in parts.split()), "--out", str(made[name]), "--keep-splits"]
        result = CliRunner().invoke(cli, asked)
        assert result.exit_code == 0, result.output
    made["anew"] = folder / "anew.zarr"
    join((made["a"], made["b"]), made["anew"], seed=5)
    return made


def test_kept_splits_move_no_cell_and_no_donor(chain: dict[str, Path]) -> None:
    a, ab, abc = (sets.load(chain[name]) for name in ("a", "ab", "abc"))
    held = set(a.donor[a.indices("test_donor")].tolist())
    assert held == {3}
    for old, new in ((a, ab), (ab, abc)):
        for scheme in sets.SCHEMES:
            np.testing.assert_array_equal(new.split(scheme)[: len(old.label)], old.split(scheme))
        out = set(new.donor[new.indices("test_donor")].tolist())
        assert held <= out
        assert out.isdisjoint(new.donor[new.split("both") != sets.SPLITS.index("test_donor")].tolist())
        held = out
    assert len(held) == 2, "of the new ones one more"


def test_kept_splits_carry_a_training_on(chain: dict[str, Path], tmp_path: Path) -> None:
    """What a model of the first set has not seen stays unseen when it is trained on with further cells, however often."""
    given = {name: sets.load(chain[name]) for name in ("a", "ab", "abc", "b", "anew")}
    models, start = {}, None
    for name in ("a", "ab", "abc"):
        start = train(chain[name], tmp_path / name, width=3, epochs=1, device="cpu", start=start).bundle
        models[name] = load_bundle(start)
    for learnt, bundle in models.items():
        for name in ("a", "ab", "abc"):
            data = given[name]
            for split in ("test", "test_donor"):
                cells = data.indices(split)
                assert seen.cells_of(bundle, data, cells) == 0, (learnt, name)
                assert seen.warnings(bundle, data, cells, split, "both") == [], (learnt, name)
            known = min(len(given[learnt].label), len(data.label))
            cells = data.indices("train")
            assert seen.cells_of(bundle, data, cells) == int((cells < known).sum()), (learnt, name)
    begun = [text for text in models["abc"].model.training["warnings"] if "with whose weights" in text]
    assert [text.split("cells of ")[-1] for text in begun] == ["'validation'."], "it was chosen by those, and that is all"
    for name in ("b", "anew"):
        data = given[name]
        cells = data.indices("test")
        assert any("in common" in t for t in seen.warnings(models["abc"], data, cells, "test", "both")), name
    assert any("how many of 'test' is not known" in t for t in seen.before(models["ab"], given["anew"], "both"))


def test_other_splits_of_the_same_cells_are_another_set(chain: dict[str, Path], tmp_path: Path) -> None:
    """Simulated sets are known again by what they follow from; splits that are kept follow from the set that they are of."""
    for name, first in (("x", "ab"), ("y", "anew")):
        join((chain[first], chain["c"]), tmp_path / f"{name}.zarr", keep_splits=True)
    x, y = sets.load(tmp_path / "x.zarr"), sets.load(tmp_path / "y.zarr")
    made_elsewhere = replace(x, card={**x.card, "data_hash": "f" * 40})
    of_x = load_bundle(train(tmp_path / "x.zarr", tmp_path / "run", width=3, epochs=1, device="cpu").bundle)
    assert seen.same_set(of_x, made_elsewhere)
    assert not seen.same_set(of_x, y)
    cells = y.indices("test")
    assert any("in common" in t for t in seen.warnings(of_x, y, cells, "test", "both"))
    assert seen.warnings(of_x, x, x.indices("test"), "test", "both") == []


def test_another_choice_of_splits_does_not_go_on_with_a_set(chain: dict[str, Path]) -> None:
    with pytest.raises(BadValue, match=r"ab\.zarr: was begun with --keep-splits"):
        join((chain["a"], chain["b"]), chain["ab"])
    with pytest.raises(BadValue, match=r"anew\.zarr: was begun without --keep-splits"):
        join((chain["a"], chain["b"]), chain["anew"], seed=5, keep_splits=True)


def test_a_class_of_held_out_donors_alone_is_told_and_not_trained(tmp_path: Path) -> None:
    a = toy_set(tmp_path / "a.zarr", 60, seed=1, donors=5)
    group = zarr.open_group(a, mode="r+", zarr_format=3)
    kept = sets.splits_of(a)
    label, donor = (np.asarray(group[name][:]).astype(int) for name in ("label", "donor"))
    held = donor[kept["both"] == sets.SPLITS.index("test_donor")][0]
    alone = np.concatenate([np.where(donor == held, label, 0), [1, 1]])
    found = continue_splits(alone, np.concatenate([donor, [held, held]]), 0, kept)
    assert set(found["both"][alone == 1].tolist()) == {sets.SPLITS.index("test_donor")}
    told = missing_classes(alone, {"both": found["both"]}, ("small", "large"))
    assert told[0].startswith("large: no cell in training (by both)")
    data = replace(sets.load(a), label=alone[:60], splits={**kept, "both": found["both"][:60]})
    with pytest.raises(BadValue, match=r"no cell of large is in training \(by both\)"):
        Training(data, tmp_path / "run", PRESETS["modern"], epochs=1, width=3, seed=0, device="cpu")


def test_a_trainings_card_tells_the_parts_apart(two: tuple[Path, Path], tmp_path: Path) -> None:
    join(two, tmp_path / "both.zarr", seed=3)
    bundle = load_bundle(train(tmp_path / "both.zarr", tmp_path / "run", width=3, epochs=1, device="cpu").bundle)
    for split in ("test", "test_donor"):
        row = bundle.model.measured[split]
        assert [part["part"][:2] for part in row["parts"]] == ["1:", "2:"]
        assert sum(part["n"] for part in row["parts"]) == row["n"]
        assert all(0 <= part["unclassified"] < 0.2 for part in row["parts"])
