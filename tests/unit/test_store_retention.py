"""Retention: what goes is chosen by age and size, only files go, nothing outside the folder is touched, verify knows."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from helpers_store import KEY, opened
from hypothesis import given
from hypothesis import strategies as st

from wbcd.errors import StoreError
from wbcd.report.counts import read_differential
from wbcd.store import Ledger, retention, verification
from wbcd.store.retention import KeptImage
from wbcd.store.volumes import SUFFIX
from wbcd.testing import make_cell, make_measured

DAY_S = 86400.0
NOW_S = 1_800_000_000.0


def image(root: Path, name: str, *, days_old: float, size: int = 1000) -> Path:
    """A folder of the right name, size and age; retention does not look inside."""
    path = root / name[:2] / f"{name}-{KEY[0]}-001{SUFFIX}"
    (path / "0").mkdir(parents=True)
    (path / "0" / "c").write_bytes(b"x" * size)
    os.utime(path, (NOW_S - days_old * DAY_S,) * 2)
    return path


@pytest.fixture
def kept(sqlite_ledger: Ledger, tmp_path: Path) -> tuple[Ledger, Path, list[Path]]:
    """Five images of 1, 10, 20, 30 and 40 days, each named by a row."""
    root = tmp_path / "output"
    images = [image(root, f"{number}a", days_old=max(1, 10 * number)) for number in range(5)]
    for number, path in enumerate(images):
        cell = dataclasses.replace(make_cell(), tomogram_path=str(path))
        sqlite_ledger.commit(make_measured(f"{number}", cell), *KEY)
    return sqlite_ledger, root, images


def test_by_age(kept: tuple[Ledger, Path, list[Path]]) -> None:
    ledger, root, images = kept
    plan = retention.plan(ledger, root, now_s=NOW_S, max_age_s=15 * DAY_S)
    assert [one.path for one in plan.removed] == images[:1:-1]
    assert (plan.kept, plan.kept_bytes, plan.removed_bytes, plan.unnamed) == (2, 2000, 3000, 0)
    assert all(path.is_dir() for path in images)  # a plan changes nothing


def test_by_size_the_oldest_go_first(kept: tuple[Ledger, Path, list[Path]]) -> None:
    ledger, root, images = kept
    plan = retention.plan(ledger, root, now_s=NOW_S, max_bytes=3500)
    assert [one.path for one in plan.removed] == [images[4], images[3]]


def test_files_go_rows_stay_and_verify_knows(kept: tuple[Ledger, Path, list[Path]], tmp_path: Path) -> None:
    ledger, root, images = kept
    url = str(tmp_path / "wbcd.db")
    before = list(ledger.cells(with_thumbnails=True)), read_differential(url)
    plan = retention.plan(ledger, root, now_s=NOW_S, max_age_s=15 * DAY_S, max_bytes=1500)
    removed = list(retention.apply(ledger, root, plan, why="a test"))
    assert {one.path for one in removed} == set(images[1:])
    assert [path.exists() for path in images] == [True, False, False, False, False]
    assert (list(ledger.cells(with_thumbnails=True)), read_differential(url)) == before
    missing = [f for f in verification.check_tomograms(ledger, root) if "missing" in f.message]
    assert missing == []
    assert verification.removed_by_retention(ledger) == {verification.key_of(path) for path in images[1:]}
    assert retention.plan(ledger, root, now_s=NOW_S, max_age_s=15 * DAY_S).removed == ()
    assert list(verification.check_chain(ledger, "event")) == []
    shutil.rmtree(images[0])  # by hand: not by retention
    assert [f.message for f in verification.check_tomograms(ledger, root)] == ["is missing (cell 1)"]


def test_nothing_outside_the_folder_is_touched_and_no_link_is_followed(
    kept: tuple[Ledger, Path, list[Path]], tmp_path: Path
) -> None:
    ledger, root, images = kept
    outside = tmp_path / "outside"
    elsewhere = image(outside, "9a", days_old=100)
    ledger.commit(make_measured("elsewhere", dataclasses.replace(make_cell(), tomogram_path=str(elsewhere))), *KEY)
    shutil.move(images[4], outside / "moved")
    images[4].symlink_to(outside / "moved")  # an image that is a link
    shutil.move(images[3].parent, outside / "3a")
    images[3].parent.symlink_to(outside / "3a")  # a folder of images that is a link
    (images[2] / "0" / "c").unlink()
    (outside / "file").write_text("mine")
    (images[2] / "0" / "c").symlink_to(outside / "file")  # a link inside an image: the link goes, the file stays
    plan = retention.plan(ledger, root, now_s=NOW_S, max_age_s=0.5 * DAY_S)
    assert [one.path for one in plan.removed] == [images[2], images[1], images[0]]
    list(retention.apply(ledger, root, plan, why="a test"))
    assert elsewhere.is_dir()
    assert (outside / "moved" / "0" / "c").is_file()
    assert (outside / "3a").is_dir()
    assert (outside / "file").read_text() == "mine"


def test_what_became_a_link_after_the_plan_is_passed_over(kept: tuple[Ledger, Path, list[Path]], tmp_path: Path) -> None:
    ledger, root, images = kept
    plan = retention.plan(ledger, root, now_s=NOW_S, max_age_s=35 * DAY_S)
    shutil.move(images[4], tmp_path / "moved")
    images[4].symlink_to(tmp_path / "moved")
    assert list(retention.apply(ledger, root, plan, why="a test")) == []
    assert (tmp_path / "moved" / "0" / "c").is_file()


def test_what_no_row_names_is_left_alone(kept: tuple[Ledger, Path, list[Path]]) -> None:
    ledger, root, _ = kept
    orphan = image(root, "7a", days_old=500)
    plan = retention.plan(ledger, root, now_s=NOW_S, max_age_s=400 * DAY_S)
    assert (plan.removed, plan.unnamed) == ((), 1)
    assert orphan.is_dir()


def test_the_journal_is_told_before_anything_goes(
    kept: tuple[Ledger, Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in between: the images are still there and the journal names them; the next retention removes them."""
    ledger, root, images = kept

    def refuses(path: Path) -> None:
        raise StoreError(f"{path}: power cut")

    plan = retention.plan(ledger, root, now_s=NOW_S, max_age_s=15 * DAY_S)
    with monkeypatch.context() as patch:
        patch.setattr(retention, "remove_image", refuses)
        with pytest.raises(StoreError, match="power cut"):
            list(retention.apply(ledger, root, plan, why="a test"))
    assert verification.removed_by_retention(ledger) == {verification.key_of(one.path) for one in plan.removed}
    again = retention.plan(ledger, root, now_s=NOW_S, max_age_s=15 * DAY_S)
    assert len(list(retention.apply(ledger, root, again, why="a test"))) == 3
    assert [path.exists() for path in images] == [True, True, False, False, False]


def test_many_images_share_events(tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "NAMES_PER_EVENT", 2)
    shutil.copy(sqlite_template, tmp_path / "wbcd.db")
    root = tmp_path / "output"
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        for number in range(5):
            path = image(root, f"{number}b", days_old=9)
            ledger.commit(make_measured(f"{number}", dataclasses.replace(make_cell(), tomogram_path=str(path))), *KEY)
        plan = retention.plan(ledger, root, now_s=NOW_S, max_bytes=0)
        assert len(list(retention.apply(ledger, root, plan, why="a test"))) == 5
        assert ledger.read(lambda connection: connection.exec_driver_sql("SELECT COUNT(*) FROM event").scalar()) == 3


images_of_any_kind = st.lists(
    st.builds(
        lambda number, size, age: KeptImage(Path(f"{number}"), size, NOW_S - age),
        st.integers(),
        st.integers(0, 100),
        st.integers(0, 99),
    )
)


@given(images_of_any_kind, st.integers(0, 99) | st.none(), st.integers(0, 2000) | st.none())
def test_the_choice_keeps_its_limits_and_no_older_image_outlives_a_younger(
    images: list[KeptImage], max_age_s: int | None, max_bytes: int | None
) -> None:
    gone, stay = retention.choose(images, now_s=NOW_S, max_age_s=max_age_s, max_bytes=max_bytes)
    assert sorted(map(repr, gone + stay)) == sorted(map(repr, images))
    assert all(g.written_s <= s.written_s for g in gone for s in stay)
    if max_age_s is not None:
        assert all(NOW_S - one.written_s <= max_age_s for one in stay)
    if max_bytes is not None:
        assert sum(one.size_bytes for one in stay) <= max_bytes
    if gone and max_bytes is not None and (max_age_s is None or NOW_S - gone[-1].written_s <= max_age_s):
        assert sum(one.size_bytes for one in (*stay, gone[-1])) > max_bytes  # not one more than needed
