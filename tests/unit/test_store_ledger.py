"""The ledger on both databases: exactly once, append-only, counted tries, nothing that a file says can break a row."""

from __future__ import annotations

import dataclasses
import math
import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_store import KEY, MODEL_ID, RECIPE, RECIPE_ID, opened

from wbcd.errors import DatabaseUnavailable, NoSpace, SchemaMismatch, StoreError, Truncated
from wbcd.records import Acquisition, SetAside
from wbcd.report.counts import read_differential, read_status
from wbcd.store import CellLabel, Ledger
from wbcd.store.engine import Retry, WriterLock
from wbcd.store.schema import SCHEMA_REVISION
from wbcd.store.urls import parse_url
from wbcd.testing import FakeClock, make_acquisition, make_cell, make_measured, make_rejected, memory_ledger


def test_an_outcome_comes_back_as_it_went_in(any_ledger: Ledger) -> None:
    outcome = make_measured("a", make_cell("b_lymphocyte"), make_cell("monocyte", number=2, accepted=False))
    any_ledger.begin(outcome.acquisition)
    any_ledger.commit(outcome, *KEY)
    stored = any_ledger.known(outcome.acquisition.content_id, *KEY)
    assert stored is not None
    assert (stored.outcome, stored.reason, stored.tries, stored.sample) == ("measured", None, 1, "S1")
    assert stored.seconds == 1.5
    assert stored.checks == outcome.verdict.as_json()
    good, bad = stored.cells
    assert good.morphology == outcome.cells[0].morphology
    assert good.centre_um == (0.5, 15.0, 16.0)
    assert (good.label, good.probability, good.probabilities) == ("b_lymphocyte", 0.9, {"b_lymphocyte": 0.9, "other": 0.1})
    assert (good.accepted, bad.accepted, bad.reason) == (True, False, "volume_fl")


def test_a_rejection_and_a_setting_aside_keep_their_reason(any_ledger: Ledger) -> None:
    rejected = make_rejected("r")
    broken = SetAside(make_acquisition("t"), Truncated("t.h5 ends after 5 of 9 bytes."), 0.1)
    any_ledger.commit(rejected, *KEY)
    any_ledger.commit(broken, *KEY)
    one = any_ledger.known(rejected.acquisition.content_id, *KEY)
    two = any_ledger.known(broken.acquisition.content_id, *KEY)
    assert one is not None
    assert two is not None
    assert (one.outcome, one.reason, one.message) == ("rejected", "fringe_contrast", rejected.message)
    assert (two.outcome, two.reason) == ("set_aside", "input.truncated")
    assert two.message == broken.error.sentence()


def test_the_first_outcome_stands(any_ledger: Ledger, any_url: str) -> None:
    any_ledger.commit(make_measured("a", make_cell("monocyte")), *KEY)
    any_ledger.commit(make_measured("a", make_cell("b_lymphocyte")), *KEY)
    any_ledger.commit(dataclasses.replace(make_rejected("a")), *KEY)
    assert [(row.label, row.n) for row in read_differential(any_url)] == [("monocyte", 1)]
    assert read_status(any_url).outcomes == 1


def test_another_recipe_is_another_row(any_ledger: Ledger, any_url: str) -> None:
    other = dataclasses.replace(RECIPE, morphology=dataclasses.replace(RECIPE.morphology, threshold_ri=1.345))
    any_ledger.register(other, MODEL_ID, {})
    any_ledger.commit(make_measured("a"), *KEY)
    any_ledger.commit(make_measured("a"), other.recipe_id, MODEL_ID)
    found = read_differential(any_url, every=True)
    assert {(row.recipe, row.total) for row in found} == {(RECIPE_ID, 1), (other.recipe_id, 1)}
    assert [row.recipe for row in read_differential(any_url)] == [other.recipe_id]  # what was asked for last


def test_tries_are_counted_until_an_outcome(any_ledger: Ledger) -> None:
    acquisition = make_acquisition("a")
    assert [any_ledger.begin(acquisition) for _ in range(3)] == [1, 2, 3]
    (open_one,) = any_ledger.unfinished()
    assert (open_one.content_id, open_one.tries) == (acquisition.content_id, 3)
    any_ledger.commit(make_measured("a"), *KEY)
    assert any_ledger.unfinished() == []
    stored = any_ledger.known(acquisition.content_id, *KEY)
    assert stored is not None
    assert stored.tries == 3
    assert any_ledger.begin(acquisition) == 1


def test_tries_survive_the_process(any_url: str) -> None:
    for expected in (1, 2):
        with opened(any_url) as one:
            assert one.begin(make_acquisition("a")) == expected


def test_the_sample_that_reading_found_replaces_the_ticket_s(any_ledger: Ledger, any_url: str) -> None:
    any_ledger.begin(make_acquisition("a", sample="unassigned"))
    any_ledger.commit(make_measured("a", sample="donor 7"), *KEY)
    assert [row.sample for row in read_differential(any_url)] == ["donor 7"]


def test_a_ticket_that_was_not_read_leaves_what_reading_found(any_ledger: Ledger, any_url: str) -> None:
    other = dataclasses.replace(RECIPE, morphology=dataclasses.replace(RECIPE.morphology, threshold_ri=1.345))
    any_ledger.register(other, MODEL_ID, {})
    any_ledger.commit(make_measured("a", sample="S1"), *KEY)
    counted = make_acquisition("a")
    unread = Acquisition(counted.content_id, counted.path, counted.size_bytes, counted.mtime_ns)
    any_ledger.begin(unread)
    any_ledger.commit(SetAside(unread, Truncated("a.h5 ends early.")), other.recipe_id, MODEL_ID)
    assert [(row.sample, row.recipe) for row in read_differential(any_url, every=True)] == [("S1", RECIPE_ID)]
    assert {outcome.outcome for outcome in any_ledger.outcomes()} == {"measured", "set_aside"}
    assert any_ledger.unfinished() == []


def test_a_second_outcome_does_not_move_the_first_to_another_sample(any_ledger: Ledger, any_url: str) -> None:
    any_ledger.commit(make_measured("a", sample="S1"), *KEY)
    any_ledger.begin(make_acquisition("a"))
    any_ledger.commit(make_measured("a", sample="S2"), *KEY)
    assert [row.sample for row in read_differential(any_url)] == ["S1"]
    assert any_ledger.unfinished() == []


def test_content_that_no_file_holds_any_more_is_not_open(any_ledger: Ledger, any_url: str) -> None:
    half, whole = make_acquisition("half written"), make_acquisition("whole")
    for path in ("/watch/a.h5", "/watch/copy.h5"):
        any_ledger.sighted(path, 1, 1, half.content_id)
    any_ledger.begin(half)
    any_ledger.sighted("/watch/a.h5", 2, 2, whole.content_id)
    assert [one.content_id for one in any_ledger.unfinished()] == [half.content_id]  # the copy still holds it
    any_ledger.gone("/watch/copy.h5")
    assert any_ledger.unfinished() == []
    any_ledger.begin(whole)
    any_ledger.gone("/watch/a.h5")
    any_ledger.gone("/watch/a.h5")
    assert read_status(any_url).open == 0


def test_only_accepted_cells_with_a_prediction_count(any_ledger: Ledger, any_url: str) -> None:
    cells = (
        make_cell("b_lymphocyte"),
        make_cell("b_lymphocyte", number=2, accepted=False),
        make_cell(None, number=3),
        make_cell("monocyte", number=4, flags=("low_probability", "unclassified")),
    )
    any_ledger.commit(make_measured("a", *cells), *KEY)
    assert [(row.label, row.n, row.total) for row in read_differential(any_url)] == [
        ("b_lymphocyte", 1, 2),
        ("unclassified", 1, 2),
    ]
    status = read_status(any_url)
    assert (status.cells, status.cells_refused, status.unclassified) == (3, 1, 1)
    assert [(row.reason, row.n) for row in status.cell_rejections] == [("volume_fl", 1)]


def test_a_time_lapse_of_one_cell_counts_once(any_ledger: Ledger, any_url: str) -> None:
    lapse = [make_cell("monocyte", number=1 + moment, time_index=moment) for moment in range(5)]
    lapse.append(make_cell("monocyte", number=6, time_index=5, accepted=False))
    any_ledger.commit(make_measured("lapse", *lapse), *KEY)
    any_ledger.commit(make_measured("still", make_cell("b_lymphocyte")), *KEY)
    assert [(row.label, row.n, row.total) for row in read_differential(any_url)] == [
        ("b_lymphocyte", 1, 2),
        ("monocyte", 1, 2),
    ]
    status = read_status(any_url)
    assert (status.cells, status.cells_refused, status.cell_rejections) == (2, 0, ())
    assert [cell.time_index for cell in any_ledger.cells()] == [0, 1, 2, 3, 4, 0]


def test_what_a_file_says_can_never_make_a_row_impossible(any_ledger: Ledger, any_url: str) -> None:
    odd = make_cell("b_lymphocyte")
    odd = dataclasses.replace(
        odd,
        morphology=dataclasses.replace(odd.morphology, sphericity=math.nan, max_ri=math.inf),
        prediction=dataclasses.replace(odd.prediction, probability=math.nan, probabilities={"b_lymphocyte": np.float32("nan")}),  # type: ignore[type-var]
        centre_um=(math.nan, 1.0, 2.0),
    )
    outcome = make_measured("a", odd, sample="d\0 \udcff \U0001f9a0")
    acquisition = dataclasses.replace(
        outcome.acquisition, path=Path("/watch/caf\udce9.h5"), acquired_at="\0", medium_ri=math.nan
    )
    any_ledger.begin(acquisition)
    any_ledger.commit(dataclasses.replace(outcome, acquisition=acquisition), *KEY)
    any_ledger.sighted(acquisition.path, 1, 2, acquisition.content_id)
    any_ledger.event("odd", "a\0b", value=math.inf, nested={"k\udcff": [np.float64("nan"), np.int64(3), Path("/x")]})
    (cell,) = any_ledger.cells()
    assert math.isnan(cell.morphology.sphericity)
    assert math.isnan(cell.centre_um[0])
    assert cell.counted_as == "unclassified"
    assert any_ledger.remembered(acquisition.path).content_id == acquisition.content_id
    assert read_differential(any_url)[0].sample == "d\\x00 \\udcff \U0001f9a0"


def test_a_file_is_remembered_by_its_path_and_known_by_its_state(any_ledger: Ledger) -> None:
    any_ledger.sighted("/watch/a.h5", 10, 20, "c1", state="30.7.1.")
    file = any_ledger.remembered("/watch/a.h5")
    assert file.content_id == "c1"
    assert file.is_as(10, 20, "30.7.1.")
    changed = [(10, 21, "30.7.1."), (11, 20, "30.7.1."), (10, 20, "31.7.1."), (10, 20, "30.8.1."), (10, 20, "30.7.1.x")]
    assert not any(file.is_as(*state) for state in changed)
    assert any_ledger.remembered("/watch/b.h5") is None
    any_ledger.sighted("/watch/a.h5", 10, 21, "c2")
    assert any_ledger.remembered("/watch/a.h5").content_id == "c2"
    any_ledger.gone("/watch/a.h5")
    assert any_ledger.remembered("/watch/a.h5") is None


def test_a_row_of_before_states_were_kept_is_completed_once(any_ledger: Ledger) -> None:
    any_ledger.sighted("/watch/a.h5", 10, 20, "c1")
    assert any_ledger.remembered("/watch/a.h5").is_as(10, 20, "whatever")
    any_ledger.note_states({Path("/watch/a.h5"): "1.2.1."})
    any_ledger.note_states({Path("/watch/a.h5"): "3.4.1."})
    assert any_ledger.remembered("/watch/a.h5").state == "1.2.1."


def test_one_name_in_two_folders_is_two_files(any_ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("monday", "tuesday"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        any_ledger.sighted("a.h5", 10, 20, name)
    assert any_ledger.remembered(tmp_path / "monday" / "a.h5").content_id == "monday"


def test_a_rewrite_after_the_count_is_an_event(any_ledger: Ledger, any_url: str) -> None:
    counted = make_measured("a")
    any_ledger.sighted("/watch/a.h5", 1, 1, counted.acquisition.content_id)
    any_ledger.sighted("/watch/b.h5", 1, 1, "never counted")
    any_ledger.commit(counted, *KEY)
    any_ledger.sighted("/watch/a.h5", 1, 2, counted.acquisition.content_id)  # touched: the same content
    any_ledger.sighted("/watch/b.h5", 1, 2, "still not counted")
    assert read_status(any_url).changed_after_count == 0
    any_ledger.sighted("/watch/a.h5", 1, 3, "something else")
    assert read_status(any_url).changed_after_count == 1
    assert read_differential(any_url)[0].n == 1


def test_uncertainties_are_stored_when_they_were_measured(any_ledger: Ledger) -> None:
    cell = make_cell()
    known = dataclasses.replace(cell.morphology, mean_ri_uncertainty=1e-3, volume_uncertainty_fl=2.5)
    any_ledger.commit(make_measured("a", dataclasses.replace(cell, morphology=known), make_cell(number=2)), *KEY)
    first, second = any_ledger.cells()
    assert (first.morphology.mean_ri_uncertainty, first.morphology.volume_uncertainty_fl) == (1e-3, 2.5)
    assert math.isnan(first.morphology.dry_mass_uncertainty_pg)
    assert math.isnan(second.morphology.mean_ri_uncertainty)


def test_the_label_that_holds_of_a_cell(any_ledger: Ledger) -> None:
    any_ledger.commit(make_measured("a", make_cell(), make_cell(number=2), make_cell(number=3, accepted=False)), *KEY)
    any_ledger.commit(make_measured("b", sample="S2"), *KEY)
    first, second = (cell.cell_id for cell in any_ledger.cells(sample="S1"))
    assert any_ledger.cell_labels() == {}
    any_ledger.label_sample("S1", "monocyte", by="R")
    any_ledger.label_sample("S1", "b_lymphocyte", purity=0.9, by="R", note="sorted by CD19")
    any_ledger.review(first, "R", "monocyte")
    any_ledger.review(first, "S", "neutrophil")
    labels = any_ledger.cell_labels()
    assert labels == {
        first: CellLabel(first, "neutrophil", "review", None),
        second: CellLabel(second, "b_lymphocyte", "sample", 0.9),
    }
    assert any_ledger.cell_labels("S1") == labels
    assert any_ledger.cell_labels("S2") == {}
    assert [(x.sample, x.label, x.purity, x.labelled_by, x.note) for x in any_ledger.sample_labels("S1")] == [
        ("S1", "monocyte", None, "R", None),
        ("S1", "b_lymphocyte", 0.9, "R", "sorted by CD19"),
    ]
    assert any_ledger.sample_labels("S2") == []


@pytest.mark.parametrize("purity", [0.0, 1.5, -0.1, math.nan])
def test_a_purity_is_a_fraction(any_ledger: Ledger, purity: float) -> None:
    any_ledger.commit(make_measured("a"), *KEY)
    with pytest.raises(StoreError, match="purity of sample 'S1'"):
        any_ledger.label_sample("S1", "monocyte", purity=purity, by="R")


def test_an_acknowledgement_that_is_lost_doubles_no_row(any_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit arrives, its answer does not; the same words said twice by a person stay two rows."""
    any_ledger.commit(make_measured("a"), *KEY)
    clock = FakeClock()
    monkeypatch.setattr(any_ledger, "_retry", Retry(5.0, sleep=clock.sleep, clock=clock))
    real, lost = any_ledger._transaction, [0]

    def loses_every_second_answer(work: Any, **options: Any) -> Any:
        done = real(work, **options)
        lost[0] += 1
        if lost[0] % 2:
            raise DatabaseUnavailable("the answer was lost")
        return done

    monkeypatch.setattr(any_ledger, "_transaction", loses_every_second_answer)
    for _ in range(2):
        any_ledger.event("note", "x", value=1)
        any_ledger.review(1, "R", "monocyte")
        any_ledger.label_sample("S1", "monocyte", by="R")
    monkeypatch.setattr(any_ledger, "_transaction", real)
    for table in ("event", "review", "sample_label"):
        assert any_ledger.read(lambda c, table=table: c.exec_driver_sql(f"SELECT COUNT(*) FROM {table}").scalar()) == 2  # type: ignore[misc]


def test_an_unknown_sample_has_no_label(any_ledger: Ledger) -> None:
    with pytest.raises(StoreError, match="no sample 'S9'"):
        any_ledger.label_sample("S9", "monocyte", by="R")


@pytest.mark.parametrize("table", ["event", "review", "sample_label"])
@pytest.mark.parametrize("verb", ["UPDATE {} SET id = id + 100", "DELETE FROM {}"])
def test_events_and_reviews_are_append_only(any_ledger: Ledger, table: str, verb: str) -> None:
    any_ledger.commit(make_measured("a"), *KEY)
    any_ledger.event("started", "The daemon started.", version="0.1.0")
    (cell,) = any_ledger.cells()
    any_ledger.review(cell.cell_id, "Dr. R.", "monocyte", "kidney-shaped nucleus")
    any_ledger.label_sample("S1", "monocyte", by="R")
    with pytest.raises(StoreError, match="append-only"):
        any_ledger._write(lambda connection: connection.exec_driver_sql(verb.format(table)) and None)


def test_an_outcome_needs_its_recipe_and_its_own_model(any_ledger: Ledger) -> None:
    with pytest.raises(StoreError):
        any_ledger.commit(make_measured("a"), "no such recipe", MODEL_ID)
    with pytest.raises(StoreError, match="'other@2'"):
        any_ledger.commit(make_measured("a", make_cell(model_id="other@2")), *KEY)
    assert any_ledger.known(make_acquisition("a").content_id, *KEY) is None
    any_ledger.commit(make_measured("a"), *KEY)


def test_a_failed_commit_leaves_nothing(any_ledger: Ledger, any_url: str) -> None:
    twice_the_same_number = make_measured("a", make_cell(number=1), make_cell(number=1))
    with pytest.raises(StoreError):
        any_ledger.commit(twice_the_same_number, *KEY)
    status = read_status(any_url)
    assert (status.outcomes, status.cells, status.open) == (0, 0, 0)


def test_reading_everything_back_in_pages(any_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wbcd.store.ledger.PAGE_ROWS", 3)
    for number in range(7):
        any_ledger.commit(make_measured(f"a{number}", make_cell(), make_cell(number=2), sample=f"S{number % 2}"), *KEY)
    assert [len(outcome.cells) for outcome in any_ledger.outcomes()] == [2] * 7
    assert len(list(any_ledger.cells())) == 14
    assert len(list(any_ledger.cells(sample="S1"))) == 6
    assert list(any_ledger.cells(accepted=False)) == []
    assert {cell.thumbnail_png for cell in any_ledger.cells()} == {None}
    assert {cell.thumbnail_png for cell in any_ledger.cells(with_thumbnails=True)} == {b"\x89PNG"}


def test_many_threads_are_served_one_at_a_time(any_ledger: Ledger, any_url: str) -> None:
    def work(part: int) -> None:
        for number in range(5):
            outcome = make_measured(f"{part}-{number % 4}")
            any_ledger.begin(outcome.acquisition)
            any_ledger.commit(outcome, *KEY)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_differential(any_url)[0].n == 16


# --- opening and health -------------------------------------------------------------------------------


def test_sqlite_is_durable_and_bounded(sqlite_ledger: Ledger) -> None:
    def pragma(name: str) -> Any:
        return sqlite_ledger._read(lambda connection: connection.exec_driver_sql(f"PRAGMA {name}").scalar())

    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,
        "busy_timeout": 15000,
        "foreign_keys": 1,
        "journal_size_limit": 64 * 2**20,
    }
    assert {name: pragma(name) for name in wanted} == wanted


def test_health(any_ledger: Ledger) -> None:
    health = any_ledger.check(deep=True)
    assert health.revision == SCHEMA_REVISION
    assert health.server.startswith(("SQLite", "PostgreSQL"))


def test_health_names_a_full_disk(sqlite_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wbcd.store.ledger.free_bytes", lambda target: 3 * 2**20)
    with pytest.raises(NoSpace, match=r"3.0 MiB are free .* 16 MiB are needed"):
        sqlite_ledger.check()


def test_health_finds_damage(tmp_path: Path) -> None:
    path = tmp_path / "wbcd.db"
    with opened(str(path)) as one:
        for number in range(50):
            one.commit(make_measured(f"a{number}"), *KEY)
    raw = bytearray(path.read_bytes())
    for page in range(10, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(raw)
    with pytest.raises(StoreError, match=r"malformed|row|page|Tree"), Ledger.open(str(path)) as one:
        one.check(deep=True)


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="no database"):
        Ledger.open(str(tmp_path / "absent.db"), create=False)
    assert not (tmp_path / "absent.db").exists()


def test_folders_are_made(tmp_path: Path) -> None:
    Ledger.open(str(tmp_path / "deep" / "er" / "wbcd.db")).close()
    assert (tmp_path / "deep" / "er" / "wbcd.db").is_file()


def test_a_newer_schema_is_refused(any_url: str) -> None:
    with opened(any_url) as one:
        one._write(lambda connection: connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'") and None)
        with pytest.raises(SchemaMismatch, match="9999"):
            one.check()
    with pytest.raises(SchemaMismatch, match=rf"9999.*{SCHEMA_REVISION}") as caught:
        Ledger.open(any_url)
    assert "wbcd db upgrade" in caught.value.sentence()


def test_another_program_s_database_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "lims.db")
    connection.execute("CREATE TABLE sample (barcode)")
    connection.close()
    with pytest.raises(SchemaMismatch, match="'sample'"):
        Ledger.open(str(tmp_path / "lims.db"))


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        Ledger.open(str(tmp_path))


def test_a_second_writer_waits_and_is_told(tmp_path: Path) -> None:
    target = parse_url(tmp_path / "wbcd.db")
    first, second = WriterLock(target), WriterLock(target, timeout_s=0.05)
    with first.held(), pytest.raises(DatabaseUnavailable, match="another wbcd process"), second.held():
        pass
    with second.held():
        pass
    first.close()
    second.close()


def test_a_full_database_says_so_and_recovers(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    sqlite_ledger.commit(make_measured("before"), *KEY)
    pages = sqlite_ledger._read(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar())
    sqlite_ledger._read(lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}").scalar())
    big = make_measured("big", make_cell(thumbnail_png=bytes(100_000)))
    with pytest.raises(NoSpace, match="full"):
        sqlite_ledger.commit(big, *KEY)
    assert read_status(tmp_path / "wbcd.db").outcomes == 1
    sqlite_ledger._read(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1000000").scalar())
    sqlite_ledger.commit(big, *KEY)
    assert read_status(tmp_path / "wbcd.db").outcomes == 2


def test_in_memory() -> None:
    with memory_ledger() as one:
        one.register(RECIPE, MODEL_ID, {})
        one.commit(make_measured("a"), *KEY)
        assert one.known(make_acquisition("a").content_id, *KEY) is not None


# --- retries ------------------------------------------------------------------------------------------


def test_retries_wait_longer_and_longer_and_end() -> None:
    clock = FakeClock()
    retry = Retry(10.0, sleep=clock.sleep, clock=clock)
    for delay in retry.delays():
        retry.wait(delay)
    assert clock.slept_s == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_a_write_whose_acknowledgement_was_lost_runs_again_and_changes_nothing(tmp_path: Path) -> None:
    clock = FakeClock()
    with opened(str(tmp_path / "wbcd.db"), retry=Retry(5.0, sleep=clock.sleep, clock=clock)) as one:
        transaction, lost = one._transaction, []

        def loses_the_first_answer(work: Any, *, reading: bool = False) -> Any:
            result = transaction(work, reading=reading)
            if not reading and work not in lost:
                lost.append(work)
                raise DatabaseUnavailable("the answer to COMMIT was lost")
            return result

        one._transaction = loses_the_first_answer  # type: ignore[method-assign]
        assert one.begin(make_acquisition("a")) == 1
        one.commit(make_measured("a"), *KEY)
        one.sighted("/watch/a.h5", 1, 1, make_acquisition("a").content_id)
        one.sighted("/watch/a.h5", 1, 2, "changed")
        one._transaction = transaction  # type: ignore[method-assign]
    status = read_status(tmp_path / "wbcd.db")
    assert (status.measured, status.cells, status.changed_after_count) == (1, 1, 1)
    assert len(clock.slept_s) == 4


def test_which_of_many_files_are_counted_as_they_lie_there(any_ledger: Ledger, tmp_path: Path) -> None:
    counted, other, begun, unread = (make_measured(name) for name in ("counted", "other", "begun", "unread"))
    for outcome in (counted, other, begun):
        ticket = outcome.acquisition
        any_ledger.sighted(ticket.path, ticket.size_bytes, ticket.mtime_ns, ticket.content_id)
    any_ledger.commit(counted, *KEY)
    any_ledger.begin(begun.acquisition)
    ticket = dataclasses.replace(unread.acquisition, content_id="unread-" + "0" * 33)
    any_ledger.sighted(ticket.path, ticket.size_bytes, ticket.mtime_ns, ticket.content_id)
    any_ledger.commit(dataclasses.replace(unread, acquisition=ticket), *KEY)
    paths = [outcome.acquisition.path for outcome in (other, counted, begun, unread)]
    found = any_ledger.counted([*paths, tmp_path], *KEY)
    assert list(found) == [counted.acquisition.path]
    assert found[counted.acquisition.path].is_as(counted.acquisition.size_bytes, counted.acquisition.mtime_ns, "")
    assert any_ledger.counted(paths, "another recipe", MODEL_ID) == {}
    assert any_ledger.counted([], *KEY) == {}


@pytest.mark.parametrize("cell", [999, -1, 2**63 - 1, 2**63, 10**30])
def test_a_review_of_no_cell_names_it(any_ledger: Ledger, cell: int) -> None:
    any_ledger.commit(make_measured("a"), *KEY)
    with pytest.raises(StoreError, match=f"There is no cell {cell}"):
        any_ledger.review(cell, "R", "monocyte")


@pytest.mark.parametrize("word", ["unclassified", "Unclassified"])
def test_the_counts_word_for_cells_of_no_class_is_no_class(any_ledger: Ledger, word: str) -> None:
    any_ledger.commit(make_measured("a"), *KEY)
    with pytest.raises(StoreError, match="and not 'unclassified'") as refused:
        any_ledger.label_sample("S1", word, by="R")
    assert "'monocyte'" in str(refused.value.advice)
    (cell,) = any_ledger.cells()
    with pytest.raises(StoreError, match="and not 'unclassified'"):
        any_ledger.review(cell.cell_id, "R", word)
