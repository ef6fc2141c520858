"""Outcomes that are not final, samples that stay, files of two machines, what is current: on both databases."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from helpers_store import KEY, MODEL_ID, RECIPE, RECIPE_ID, opened
from hypothesis import given
from sqlalchemy import text

from wbcd.errors import StoreError, TooLarge
from wbcd.records import Acquisition, SetAside, SourceFormat
from wbcd.report.counts import read_differential
from wbcd.store import Ledger
from wbcd.store.rows import clean_text, raw_text
from wbcd.testing import make_acquisition, make_cell, make_measured, make_rejected

OTHER = (RECIPE_ID, "other@2")


def rows(ledger: Ledger, query: str) -> list[tuple[Any, ...]]:
    return ledger.read(lambda connection: [tuple(row) for row in connection.execute(text(query))])


def kinds(ledger: Ledger) -> list[str]:
    return [row[0] for row in rows(ledger, "SELECT kind FROM event ORDER BY id")]


def set_aside(name: str, sample: str = "S1") -> SetAside:
    return SetAside(make_acquisition(name, sample=sample), TooLarge(f"{name} is too large."))


@pytest.fixture
def two_models(any_ledger: Ledger) -> Ledger:
    any_ledger.register(RECIPE, OTHER[1], {"wbcd": {"simulated": True}})
    return any_ledger


# --- samples ------------------------------------------------------------------------------------------------


def test_a_second_model_moves_no_committed_count_to_another_sample(two_models: Ledger, any_url: str) -> None:
    for name in ("a", "b", "c"):
        two_models.commit(make_measured(name, sample="donor-A"), *KEY)
    two_models.label_sample("donor-A", "monocyte", by="R")
    for name in ("a", "b"):
        cell = make_cell("monocyte", model_id=OTHER[1])
        two_models.begin(make_acquisition(name, sample="donor-B"))
        two_models.commit(make_measured(name, cell, sample="donor-B"), *OTHER)
    counts = {(row.sample, row.model): row.n for row in read_differential(any_url, every=True)}
    assert counts == {("donor-A", MODEL_ID): 3, ("donor-A", OTHER[1]): 2}
    assert len(two_models.cell_labels("donor-A")) == 5
    assert kinds(two_models).count("sample_conflict") == 2
    assert "stays there" in rows(two_models, "SELECT message FROM event ORDER BY id LIMIT 1")[0][0]


def test_optics_and_path_of_what_is_counted_stay(two_models: Ledger) -> None:
    first = make_measured("a")
    ticket = first.acquisition
    two_models.sighted(ticket.path, 1, 2, ticket.content_id)
    two_models.commit(first, *KEY)
    copy = dataclasses.replace(ticket, path=Path("/watch/copy.h5"), medium_ri=1.34, instrument_id="another")
    two_models.sighted(copy.path, 1, 2, copy.content_id)
    two_models.begin(copy)
    second = dataclasses.replace(make_measured("a", make_cell(model_id=OTHER[1])), acquisition=copy)
    two_models.commit(second, *OTHER)
    assert rows(two_models, "SELECT path, medium_ri, instrument_id FROM acquisition") == [("/watch/a.h5", 1.337, "simulated")]


def test_moving_is_a_verb_of_its_own_and_in_the_journal(any_ledger: Ledger, any_url: str) -> None:
    for name in ("a", "b"):
        any_ledger.commit(make_measured(name, sample="donor-A"), *KEY)
    content_id = make_acquisition("a").content_id
    assert any_ledger.move_sample([content_id], "donor-B", by="R", note="wrong dish") == 1
    assert any_ledger.move_sample([content_id], "donor-B", by="R") == 0
    assert {row.sample: row.n for row in read_differential(any_url)} == {"donor-A": 1, "donor-B": 1}
    ((details,),) = rows(any_ledger, "SELECT details FROM event WHERE kind = 'sample_moved'")
    for word in ("donor-A", "donor-B", "wrong dish", content_id):
        assert word in str(details)
    with pytest.raises(StoreError, match="no acquisition"):
        any_ledger.move_sample(["x"], "donor-B", by="R")


def test_an_unread_ticket_takes_its_sample_from_the_reading(any_ledger: Ledger, any_url: str) -> None:
    unread = dataclasses.replace(make_acquisition("a", sample="unassigned"), format=None)
    any_ledger.commit(SetAside(unread, TooLarge("too large")), *KEY)
    (row,) = any_ledger.set_aside(*KEY) or [None]
    assert row is None  # no file holds it
    any_ledger.sighted(unread.path, 1, 2, unread.content_id)
    (row,) = any_ledger.set_aside(*KEY)
    any_ledger.reopen([row.run_id], "a test")
    any_ledger.commit(make_measured("a", sample="donor-A"), *KEY)
    assert [(row.sample, row.n) for row in read_differential(any_url)] == [("donor-A", 1)]


# --- opened again -----------------------------------------------------------------------------------------


def test_a_reopened_outcome_stands_until_it_is_replaced_and_stays_in_the_journal(any_ledger: Ledger, any_url: str) -> None:
    outcome = set_aside("a")
    ticket = outcome.acquisition
    any_ledger.sighted(ticket.path, 1, 2, ticket.content_id)
    assert any_ledger.commit(outcome, *KEY, conditions={"max_file_bytes": 5}) is outcome
    assert any_ledger.commit(make_measured("a"), *KEY) is None  # it stands
    (row,) = any_ledger.set_aside(*KEY, reasons=["input.too_large"])
    assert row.conditions == {"max_file_bytes": 5}
    assert any_ledger.reopen([row.run_id], "the limit was raised", by="R") == {row.run_id}
    assert any_ledger.reopen([row.run_id], "again") == set()
    assert any_ledger.known(ticket.content_id, *KEY) is None
    assert any_ledger.reopened(*KEY) == [ticket.path]
    assert rows(any_ledger, "SELECT outcome FROM run") == [("set_aside",)]
    assert any_ledger.counted([ticket.path], *KEY) == {}
    any_ledger.begin(ticket)
    measured = make_measured("a", make_cell(number=1), make_cell("monocyte", number=2))
    assert any_ledger.commit(measured, *KEY) is measured
    assert any_ledger.commit(make_measured("a"), *KEY) is None
    assert rows(any_ledger, "SELECT outcome, reason, tries FROM run") == [("measured", None, 1)]
    assert sum(row.n for row in read_differential(any_url)) == 2
    assert any_ledger.reopened(*KEY) == []
    assert kinds(any_ledger) == ["outcome_reopened", "outcome_replaced"]
    ((details,),) = rows(any_ledger, "SELECT details FROM event WHERE kind = 'outcome_replaced'")
    assert "a is too large" in str(details)


def test_a_replaced_count_leaves_its_figures_in_the_journal(any_ledger: Ledger, any_url: str) -> None:
    any_ledger.commit(make_measured("a"), *KEY)
    any_ledger.sighted("/watch/a.h5", 1, 2, make_acquisition("a").content_id)
    (row,) = any_ledger.set_aside(*KEY, ended=("measured",))
    assert any_ledger.reopen([row.run_id], "a retry") == set()  # what counts is not opened by chance
    any_ledger.reopen([row.run_id], "its background was corrected", ended=("measured",))
    assert [row.n for row in read_differential(any_url)] == [1]  # it counts until it is replaced
    any_ledger.commit(make_rejected("a"), *KEY)
    assert read_differential(any_url) == []
    assert rows(any_ledger, "SELECT COUNT(*) FROM cell") == [(0,)]
    ((details,),) = rows(any_ledger, "SELECT details FROM event WHERE kind = 'outcome_replaced'")
    assert "169.39" in str(details)


def test_an_answer_that_was_lost_is_told_from_another_outcome(any_ledger: Ledger) -> None:
    at = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
    outcome = make_measured("a")
    assert any_ledger.commit(outcome, *KEY, at=at) is outcome
    assert any_ledger.commit(outcome, *KEY, at=at) is outcome  # repeated after a lost answer: it was stored
    assert any_ledger.commit(outcome, *KEY, at=at + dt.timedelta(seconds=1)) is None  # another's
    assert rows(any_ledger, "SELECT COUNT(*) FROM run") == [(1,)]


def test_what_a_person_has_read_is_not_opened_again(any_ledger: Ledger) -> None:
    any_ledger.commit(make_measured("a"), *KEY)
    (cell,) = any_ledger.cells()
    any_ledger.review(cell.cell_id, "R", "monocyte")
    ((run_id,),) = rows(any_ledger, "SELECT id FROM run")
    assert any_ledger.reopen([run_id], "no") == set()
    assert "outcome_reopened" not in kinds(any_ledger)


def reopened_count(ledger: Ledger, name: str = "a") -> int:
    """A counted acquisition, opened again; the id of its outcome."""
    ticket = make_acquisition(name)
    ledger.sighted(ticket.path, 1, 2, ticket.content_id)
    ledger.commit(make_measured(name), *KEY)
    (row,) = ledger.set_aside(*KEY, ended=("measured",))
    assert ledger.reopen([row.run_id], "a test", ended=("measured",)) == {row.run_id}
    return row.run_id


def test_a_count_is_not_lost_to_a_file_that_cannot_be_processed_again(any_ledger: Ledger, any_url: str) -> None:
    reopened_count(any_ledger)
    any_ledger.begin(make_acquisition("a"))
    assert any_ledger.commit(set_aside("a"), *KEY) is None
    assert [row.n for row in read_differential(any_url)] == [1]
    assert rows(any_ledger, "SELECT outcome, reopened_at FROM run") == [("measured", None)]
    assert rows(any_ledger, "SELECT tries FROM acquisition") == [(0,)]
    assert kinds(any_ledger)[-1] == "outcome_kept"


def test_a_review_between_opening_and_replacing_keeps_what_was_read(any_ledger: Ledger) -> None:
    reopened_count(any_ledger)
    (cell,) = any_ledger.cells()
    any_ledger.review(cell.cell_id, "R", "monocyte")
    assert any_ledger.commit(make_rejected("a"), *KEY) is None
    assert rows(any_ledger, "SELECT outcome, reopened_at FROM run") == [("measured", None)]
    assert [one.cell_id for one in any_ledger.cells()] == [cell.cell_id]


def test_a_replacement_undoes_no_move(any_ledger: Ledger, any_url: str) -> None:
    reopened_count(any_ledger)
    any_ledger.move_sample([make_acquisition("a").content_id], "donor-B", by="R")
    any_ledger.commit(make_measured("a", make_cell("monocyte"), sample="S1"), *KEY)
    assert [(row.sample, row.label) for row in read_differential(any_url)] == [("donor-B", "monocyte")]
    assert kinds(any_ledger)[-2:] == ["sample_conflict", "outcome_replaced"] or "sample_conflict" in kinds(any_ledger)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM prediction",
        "DELETE FROM cell",
        "DELETE FROM run",
        "UPDATE run SET outcome = 'rejected', reason = 'x'",
        "UPDATE run SET finished_at = asked_at, tries = 9",
    ],
)
def test_the_database_refuses_to_change_an_outcome_that_stands(any_ledger: Ledger, statement: str) -> None:
    any_ledger.commit(make_measured("a"), *KEY)
    with pytest.raises(StoreError, match=r"stands|FOREIGN KEY|foreign key"):
        any_ledger._write(lambda connection: connection.execute(text(statement)))
    assert rows(any_ledger, "SELECT outcome FROM run") == [("measured",)]
    assert rows(any_ledger, "SELECT COUNT(*) FROM prediction") == [(1,)]


# --- companions -------------------------------------------------------------------------------------------


def sight(ledger: Ledger, ticket: Acquisition, **companions: str | None) -> None:
    ledger.sighted(ticket.path, 1, 2, ticket.content_id, companions=sorted(companions.items()))


def with_companions(outcome: Any, **companions: str | None) -> Any:
    ticket = dataclasses.replace(outcome.acquisition, companions=tuple(sorted(companions.items())))
    return dataclasses.replace(outcome, acquisition=ticket)


def test_a_companion_that_comes_or_changes_opens_what_counted_nothing(any_ledger: Ledger) -> None:
    ticket = make_acquisition("a")
    sight(any_ledger, ticket, bg=None)
    any_ledger.commit(with_companions(set_aside("a"), bg=None), *KEY)
    sight(any_ledger, ticket, bg=None)
    assert any_ledger.reopened(*KEY) == []
    sight(any_ledger, ticket, bg="1")
    assert any_ledger.reopened(*KEY) == [ticket.path]
    any_ledger.commit(with_companions(make_rejected("a"), bg="1"), *KEY)
    sight(any_ledger, ticket, bg="1")
    assert any_ledger.reopened(*KEY) == []
    sight(any_ledger, ticket, bg="2")
    assert any_ledger.reopened(*KEY) == [ticket.path]


def test_a_companion_that_changes_after_the_count_is_flagged_once(any_ledger: Ledger) -> None:
    ticket = make_acquisition("a")
    sight(any_ledger, ticket, bg="1")
    any_ledger.commit(with_companions(make_measured("a"), bg="1"), *KEY)
    sight(any_ledger, ticket, bg="1")
    sight(any_ledger, ticket, bg=None)  # taken away: says nothing of the numbers
    assert kinds(any_ledger) == []
    for _ in range(2):
        sight(any_ledger, ticket, bg="2")
    assert kinds(any_ledger) == ["companions_changed"]
    assert any_ledger.known(ticket.content_id, *KEY).companions == {"bg": "1"}


def test_a_note_that_comes_where_there_was_none_is_flagged(any_ledger: Ledger) -> None:
    ticket = make_acquisition("a")
    sight(any_ledger, ticket)
    any_ledger.commit(make_measured("a"), *KEY)
    sight(any_ledger, ticket, notes="1")
    assert kinds(any_ledger) == ["companions_changed"]
    assert any_ledger.known(ticket.content_id, *KEY).companions == {}


def test_another_copy_with_another_background_flags_nothing(any_ledger: Ledger) -> None:
    ticket = make_acquisition("a")
    sight(any_ledger, ticket, bg="1")
    any_ledger.commit(with_companions(make_measured("a"), bg="1"), *KEY)
    sight(any_ledger, dataclasses.replace(ticket, path=Path("/watch/other/a.h5")), bg="2")
    assert kinds(any_ledger) == []


def test_files_that_name_a_companion_inside_are_found_by_it(any_ledger: Ledger) -> None:
    ticket = make_acquisition("a")
    any_ledger.sighted(ticket.path, 1, 2, ticket.content_id, companions=[("ref.h5", None)])
    any_ledger.sighted("/watch/sub/b.h5", 1, 2, "other", companions=[("ref.h5", None)])
    assert any_ledger.companion_names() == {"/watch/ref.h5", "/watch/sub/ref.h5"}
    assert any_ledger.dependents(Path("/watch/ref.h5")) == [ticket.path]


def test_what_waits_for_a_companion_stands_in_the_backlog(any_ledger: Ledger) -> None:
    ticket = make_acquisition("a")
    any_ledger.begin(ticket)
    any_ledger.wait_for(ticket.content_id, "a.tif waits for its background")
    backlog = dict(rows(any_ledger, "SELECT state, n FROM backlog"))
    assert backlog == {"waiting": 0, "begun": 0, "retried": 0, "companion": 1}
    assert any_ledger.begin(ticket) == 1  # waiting costs no try
    assert dict(rows(any_ledger, "SELECT state, n FROM backlog"))["companion"] == 0


def test_odd_names_come_back_as_they_are_on_disk(any_ledger: Ledger) -> None:
    path, companion = Path("/watch/caf\udce9_sp.tif"), "caf\udce9_bg.tif"
    for _ in range(3):
        any_ledger.sighted(path, 1, 2, "c1", companions=[(companion, "1")])
        assert any_ledger.remembered(path).companions == {companion: "1"}
    ticket = dataclasses.replace(make_acquisition("a"), path=path)
    any_ledger.sighted(path, 1, 2, ticket.content_id)
    any_ledger.begin(ticket)
    assert [Path(one.path) for one in any_ledger.unfinished()] == [path]
    any_ledger.commit(dataclasses.replace(set_aside("a"), acquisition=ticket), *KEY)
    (row,) = any_ledger.set_aside(*KEY, paths=[str(path)])
    any_ledger.reopen([row.run_id], "a test")
    assert any_ledger.reopened(*KEY) == [path]


@given(st.text())
def test_what_the_store_writes_is_read_back(text_of_a_file: str) -> None:
    assert raw_text(clean_text(text_of_a_file)) == text_of_a_file


@given(st.binary())
def test_what_the_store_writes_of_a_path_is_read_back(name: bytes) -> None:
    assert raw_text(clean_text(os.fsdecode(name))) == os.fsdecode(name)


def test_a_file_that_cannot_be_read_now_has_not_changed(any_ledger: Ledger) -> None:
    ticket = make_acquisition("a")
    any_ledger.sighted(ticket.path, 1, 2, ticket.content_id)
    any_ledger.commit(make_measured("a"), *KEY)
    any_ledger.sighted(ticket.path, 1, 2, "unread-" + "0" * 33)
    assert kinds(any_ledger) == []


def test_a_ticket_that_is_taken_back_looks_like_no_other_database(any_url: str) -> None:
    with opened(any_url) as daemon, opened(any_url) as process:
        unread = dataclasses.replace(make_acquisition("u"), content_id="unread-" + "1" * 33, format=None)
        process.sighted(unread.path, 1, 2, unread.content_id)
        process.commit(SetAside(unread, TooLarge("too large")), *KEY)
        daemon.event("started", "it has seen the newest outcome")
        process.retire_unread(unread.content_id, unread.path)
        daemon.event("started", "and goes on")
        assert "database_replaced" not in kinds(daemon)


def test_what_two_output_folders_may_hold_is_settled_in_each(any_ledger: Ledger, tmp_path: Path) -> None:
    ticket, one, two = make_acquisition("a"), tmp_path / "one", tmp_path / "two"
    for root in (one, two, one):
        any_ledger.begin(ticket, volumes_root=root)
    any_ledger.commit(set_aside("a"), *KEY)
    assert any_ledger.volumes_to_settle(one) == any_ledger.volumes_to_settle(two) == [ticket.content_id]
    any_ledger.discard_volumes(ticket.content_id, one, lambda named: None)
    assert (any_ledger.volumes_to_settle(one), any_ledger.volumes_to_settle(two)) == ([], [ticket.content_id])
    any_ledger.discard_volumes(ticket.content_id, two, lambda named: None)
    assert any_ledger.volumes_to_settle(two) == []


# --- two machines -----------------------------------------------------------------------------------------


def test_two_machines_with_the_same_path_are_apart(postgres_url: str) -> None:
    with opened(postgres_url, host="left") as left, opened(postgres_url, host="right") as right:
        for name, ledger in (("l", left), ("r", right)):
            ticket = dataclasses.replace(make_acquisition(name), path=Path("/data/0001.h5"))
            for _ in range(3):
                ledger.sighted(ticket.path, 1, 2, ticket.content_id)
                ledger.commit(dataclasses.replace(make_measured(name), acquisition=ticket), *KEY)
        assert kinds(left) == []
        assert left.remembered("/data/0001.h5").content_id != right.remembered("/data/0001.h5").content_id
        left.begin(make_acquisition("begun"))
        assert [one.content_id for one in right.unfinished()] == []
        left.sighted("/data/begun.h5", 1, 2, make_acquisition("begun").content_id)
        right.sighted("/data/begun.h5", 1, 2, make_acquisition("begun").content_id)
        left.gone("/data/begun.h5")
        right.gone("/data/begun.h5")  # the last to hold it did not begin it: it is the other machine's to close
        assert [one.tries for one in left.unfinished()] == [1]


def test_a_row_of_no_machine_is_taken_over(postgres_url: str) -> None:
    with opened(postgres_url) as old:
        old.sighted("/data/0001.h5", 1, 2, "c1")
    with opened(postgres_url, host="left") as left:
        assert left.remembered("/data/0001.h5").content_id == "c1"
        left.sighted("/data/0001.h5", 1, 2, "c1", state="s")
        assert rows(left, "SELECT host, path, state FROM source_file") == [("left", "/data/0001.h5", "s")]


# --- one acquisition in two formats -----------------------------------------------------------------------


def in_format(name: str, form: SourceFormat, **changes: Any) -> Any:
    ticket = dataclasses.replace(make_acquisition(name), format=form, **changes)
    return dataclasses.replace(make_measured(name), acquisition=ticket)


def test_side_by_side_the_instrument_may_be_called_otherwise(any_ledger: Ledger) -> None:
    any_ledger.commit(in_format("a", SourceFormat.HOLOGRAMS), *KEY, once_per_acquisition=True)
    twin = in_format("b", SourceFormat.TCF, acquisition_id="a", instrument_id="SN-1")
    assert any_ledger.commit(twin, *KEY, once_per_acquisition=True).kind == "set_aside"


def test_the_second_of_two_formats_is_told_and_not_counted(any_ledger: Ledger, any_url: str) -> None:
    any_ledger.commit(in_format("a", SourceFormat.HOLOGRAMS), *KEY, once_per_acquisition=True)
    twin = in_format("b", SourceFormat.TCF, acquisition_id="a")
    stored = any_ledger.commit(twin, *KEY, once_per_acquisition=True)
    assert (stored.kind, stored.error.code) == ("set_aside", "input.same_acquisition")
    assert "/watch/a.h5" in stored.error.message
    assert [row.n for row in read_differential(any_url)] == [1]
    assert any_ledger.known(twin.acquisition.content_id, *KEY).reason == "input.same_acquisition"


@pytest.mark.parametrize(
    "changes",
    [
        {"acquisition_id": "another"},
        {"acquisition_id": "a", "instrument_id": "another", "path": Path("/elsewhere/b.TCF")},
        {"acquisition_id": None},
    ],
)
def test_others_are_counted(any_ledger: Ledger, changes: dict[str, Any]) -> None:
    any_ledger.commit(in_format("a", SourceFormat.HOLOGRAMS), *KEY, once_per_acquisition=True)
    twin = in_format("b", SourceFormat.TCF, **changes)
    assert any_ledger.commit(twin, *KEY, once_per_acquisition=True) is twin


@pytest.mark.parametrize("form", [form for form in SourceFormat if form != SourceFormat.HOLOGRAMS])
@pytest.mark.parametrize("name", ["sample001_Tomog.mat", "cell1.ome.tif", "cell1.zarr.zip", "a.TCF"])
def test_a_file_s_name_is_no_id_of_the_instrument_s(any_ledger: Ledger, form: SourceFormat, name: str) -> None:
    """Two donors' folders hold files of one name; what stands in for an id is the name's."""
    by_name = name.partition(".")[0]
    first = in_format("a", SourceFormat.TIFF_PAIR, acquisition_id=by_name, path=Path("/watch/donorA") / f"{by_name}_sp.tif")
    any_ledger.commit(first, *KEY, once_per_acquisition=True)
    twin = in_format("b", form, acquisition_id=by_name, path=Path("/watch/donorB") / name)
    assert any_ledger.commit(twin, *KEY, once_per_acquisition=True) is twin


@pytest.mark.parametrize("tcf_first", [True, False])
def test_the_vendor_s_export_beside_its_tcf(any_ledger: Ledger, tcf_first: bool) -> None:
    files = [
        in_format("a", SourceFormat.TCF, acquisition_id="u-1", path=Path("/watch/s/20210407.HZ-001.TCF")),
        in_format("b", SourceFormat.RI_TIFF, acquisition_id=None, path=Path("/watch/s/20210407.HZ-001_HT3D_0.00.TIFF")),
    ]
    first, second = files if tcf_first else reversed(files)
    assert any_ledger.commit(first, *KEY, once_per_acquisition=True) is first
    assert any_ledger.commit(second, *KEY, once_per_acquisition=True).kind == "set_aside"
    elsewhere = in_format("c", SourceFormat.RI_TIFF, acquisition_id=None, path=Path("/watch/t/20210407.HZ-001_HT3D_0.00.TIFF"))
    assert any_ledger.commit(elsewhere, *KEY, once_per_acquisition=True) is elsewhere


def test_of_two_formats_one_counts_whatever_the_recipe(two_models: Ledger) -> None:
    """Counted twice by configuration once, and then once under another model, whichever comes first."""
    one, twin = in_format("a", SourceFormat.HOLOGRAMS), in_format("b", SourceFormat.TCF, acquisition_id="a")
    for outcome in (one, twin):
        two_models.commit(outcome, *KEY)

    def under_the_other(outcome: Any) -> Any:
        return dataclasses.replace(outcome, cells=(make_cell(model_id=OTHER[1]),))

    assert two_models.commit(under_the_other(twin), *OTHER, once_per_acquisition=True).kind == "set_aside"
    assert two_models.commit(under_the_other(one), *OTHER, once_per_acquisition=True).kind == "measured"


def test_by_configuration_both_are_counted(any_ledger: Ledger) -> None:
    any_ledger.commit(in_format("a", SourceFormat.HOLOGRAMS), *KEY)
    twin = in_format("b", SourceFormat.TCF, acquisition_id="a")
    assert any_ledger.commit(twin, *KEY, once_per_acquisition=False) is twin


# --- what is current --------------------------------------------------------------------------------------


def current(ledger: Ledger) -> list[tuple[Any, ...]]:
    return rows(ledger, "SELECT acquisition_id, model FROM current_run ORDER BY acquisition_id")


def test_the_current_result_is_the_one_that_was_asked_for_last(two_models: Ledger) -> None:
    names = ("a", "b")
    for name in names:
        ticket = make_acquisition(name)
        two_models.sighted(ticket.path, 1, 2, ticket.content_id)
        two_models.commit(make_measured(name), *KEY)
    two_models.commit(make_measured("a", make_cell(model_id=OTHER[1])), *OTHER)
    assert [model for _, model in current(two_models)] == [OTHER[1], MODEL_ID]
    two_models.ask(make_acquisition("a").content_id, *KEY)
    assert [model for _, model in current(two_models)] == [MODEL_ID, MODEL_ID]
    two_models.ask(make_acquisition("a").content_id, *OTHER)
    assert not two_models.ask_for_all(*KEY)  # the first daemon: what was asked for by hand stays
    assert [model for _, model in current(two_models)] == [OTHER[1], MODEL_ID]
    assert not two_models.ask_for_all(*KEY)
    two_models.ask_for_all(*OTHER)
    assert two_models.ask_for_all(*KEY)  # back to what it worked by before: its results are current again
    assert [model for _, model in current(two_models)] == [MODEL_ID, MODEL_ID]


def test_runs_name_the_version_that_made_them(any_ledger: Ledger) -> None:
    from wbcd import __version__

    any_ledger.commit(make_measured("a"), *KEY)
    assert rows(any_ledger, "SELECT wbcd_version FROM run") == [(__version__,)]
    assert rows(any_ledger, "SELECT sample, label, is_current FROM cell_result") in (
        [("S1", "b_lymphocyte", True)],
        [("S1", "b_lymphocyte", 1)],
    )


# --- volumes ----------------------------------------------------------------------------------------------


def test_volumes_are_removed_only_beside_what_any_row_names(two_models: Ledger, tmp_path: Path) -> None:
    cell = dataclasses.replace(make_cell(), tomogram_path="/out/ab/kept.ome.zarr")
    two_models.begin(make_acquisition("a"), volumes_root=tmp_path)
    two_models.commit(make_measured("a", cell), *KEY)
    assert two_models.volumes_to_settle(tmp_path) == []
    content_id = make_acquisition("a").content_id
    two_models.begin(make_acquisition("a"), volumes_root=tmp_path)
    told: list[Any] = []
    two_models.discard_volumes(content_id, tmp_path, told.append)
    assert told == []  # in hand: what it keeps is not named yet
    two_models.commit(set_aside("a"), *OTHER)
    assert two_models.volumes_to_settle(tmp_path) == [content_id]
    two_models.discard_volumes(content_id, tmp_path, told.append)
    assert told == [["/out/ab/kept.ome.zarr"]]
    assert two_models.volumes_to_settle(tmp_path) == []


def test_a_commit_that_names_what_is_gone_stores_nothing(any_ledger: Ledger) -> None:
    def gone() -> None:
        raise StoreError("it is gone")

    with pytest.raises(StoreError, match="it is gone"):
        any_ledger.commit(make_measured("a"), *KEY, check=gone)
    assert rows(any_ledger, "SELECT COUNT(*) FROM run") == [(0,)]


def test_the_outcome_of_a_file_without_bytes_goes_when_it_can_be_read(any_ledger: Ledger) -> None:
    ticket = dataclasses.replace(make_acquisition("a"), content_id="unread-" + "0" * 33, format=None)
    any_ledger.sighted(ticket.path, 1, 2, ticket.content_id)
    any_ledger.commit(SetAside(ticket, TooLarge("too large")), *KEY)
    any_ledger.retire_unread(ticket.content_id, ticket.path)
    assert rows(any_ledger, "SELECT COUNT(*) FROM run") == rows(any_ledger, "SELECT COUNT(*) FROM acquisition") == [(0,)]
    assert any_ledger.remembered(ticket.path) is None
    assert kinds(any_ledger) == ["outcome_replaced"]
