"""One current result an acquisition: what was asked for last, in every reader; nothing is counted twice, nothing is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers_store import KEY, MODEL_ID, RECIPE, RECIPE_ID, opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from wbcd.cli import cli
from wbcd.recipe import Recipe
from wbcd.report.counts import mixed_samples, read_differential, read_status
from wbcd.report.metrics import prometheus_text
from wbcd.store import Ledger
from wbcd.testing import FakeClock, make_acquisition, make_cell, make_measured, make_rejected

NEXT = replace(Recipe(), morphology=replace(Recipe().morphology, threshold_ri=1.345))
NEXT_ID = NEXT.recipe_id


@pytest.fixture
def reprocessed(any_url: str) -> str:
    """Three files of S1 under the first recipe; the first two again under the next, where the second is rejected."""
    clock = FakeClock()
    with opened(any_url, now=clock.now) as ledger:
        ledger.register(NEXT, MODEL_ID, {})
        for name in ("a", "b", "c"):
            clock.advance(1)
            ledger.commit(make_measured(name, make_cell("monocyte")), *KEY)
        clock.advance(1)
        ledger.commit(make_measured("a", make_cell("b_lymphocyte"), make_cell("monocyte", number=2)), NEXT_ID, MODEL_ID)
        ledger.commit(make_rejected("b"), NEXT_ID, MODEL_ID)
        ledger.commit(make_measured("x", make_cell("monocyte"), make_cell(number=2, accepted=False), sample="S2"), *KEY)
    return any_url


def verb(url: str, *words: str) -> Result:
    result = CliRunner().invoke(cli, [*words, "--db", url])
    assert result.exit_code == 0, result.output
    return result


def ask_for(url: str, name: str, recipe_id: str) -> None:
    """As the ledger does when an existing result is asked for again."""
    with Ledger.open(url) as ledger:
        ledger._write(
            lambda connection: connection.execute(
                text(
                    "UPDATE run SET asked_at = :at WHERE recipe_id = :recipe AND acquisition_id = "
                    "(SELECT id FROM acquisition WHERE content_id = :content)"
                ),
                {"at": _later(connection.dialect.name), "recipe": recipe_id, "content": make_acquisition(name).content_id},
            )
        )


def _later(dialect: str) -> Any:
    moment = FakeClock().now().replace(year=2030)
    return moment if dialect == "postgresql" else moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_an_acquisition_is_in_one_total(reprocessed: str) -> None:
    status = read_status(reprocessed)
    assert (status.measured, status.rejected, status.set_aside, status.other_results) == (3, 1, 0, 2)
    assert (status.cells, status.cells_refused) == (4, 1)
    assert {(r.sample, r.recipe, r.label): (r.n, r.total) for r in status.counts} == {
        ("S1", NEXT_ID, "b_lymphocyte"): (1, 2),
        ("S1", NEXT_ID, "monocyte"): (1, 2),
        ("S1", RECIPE_ID, "monocyte"): (1, 1),
        ("S2", RECIPE_ID, "monocyte"): (1, 1),
    }
    assert sum(row.n for row in status.counts) == status.cells
    assert [(row.reason, row.recipe, row.n) for row in status.rejections] == [("fringe_contrast", NEXT_ID, 1)]
    assert [(row.reason, row.sample, row.n) for row in status.cell_rejections] == [("volume_fl", "S2", 1)]
    assert read_differential(reprocessed) == list(status.counts)
    assert mixed_samples(status.counts) == ["S1"]


def test_every_recipe_is_there_where_it_is_asked_for_and_in_no_total(reprocessed: str) -> None:
    status = read_status(reprocessed, every=True)
    assert {(row.sample, row.recipe, row.label): row.n for row in status.counts} == {
        ("S1", NEXT_ID, "b_lymphocyte"): 1,
        ("S1", NEXT_ID, "monocyte"): 1,
        ("S1", RECIPE_ID, "monocyte"): 3,
        ("S2", RECIPE_ID, "monocyte"): 1,
    }
    assert (status.measured, status.rejected, status.cells) == (3, 1, 4)
    assert read_differential(reprocessed, every=True) == list(status.counts)


def test_what_is_asked_for_again_is_current_again(reprocessed: str) -> None:
    for name in ("a", "b"):
        ask_for(reprocessed, name, RECIPE_ID)
    status = read_status(reprocessed)
    assert (status.measured, status.rejected, status.cells, status.other_results) == (4, 0, 4, 2)
    assert mixed_samples(status.counts) == []
    with Ledger.open(reprocessed) as ledger:
        assert {run.recipe_id for run in ledger.current()} == {RECIPE_ID}
        assert len(list(ledger.current("rejected"))) == 0


def test_status_and_counts_say_what_they_leave_out(reprocessed: str) -> None:
    for words in (("status",), ("counts",)):
        said = verb(reprocessed, *words).stdout
        assert f"2 results of other recipes or models are not counted here: wbcd {words[0]} --all" in said
        assert "sample S1 is counted in parts" in said
        assert "not counted here" not in verb(reprocessed, *words, "--all").stdout
    said = verb(reprocessed, "status").stdout
    assert "3 measured, 1 rejected, 0 set aside" in said
    assert "4 counted, 1 refused" in said
    alone = verb(reprocessed, "counts", "--sample", "S2").stdout
    assert "S2" in alone  # a table of one sample names it
    assert "results of other recipes" not in alone
    rows = json.loads(verb(reprocessed, "counts", "--json").stdout)
    assert sum(row["n"] for row in rows) == 4
    assert sum(row["n"] for row in json.loads(verb(reprocessed, "counts", "--json", "--all").stdout)) == 6
    store = json.loads(verb(reprocessed, "status", "--json").stdout)["store"]
    assert (store["other_results"], store["mixed_samples"]) == (2, ["S1"])


def test_metrics_are_of_current_results(reprocessed: str) -> None:
    text_ = prometheus_text(read_status(reprocessed))
    for line in (
        'wbcd_acquisitions{outcome="measured"} 3.0',
        'wbcd_acquisitions{outcome="rejected"} 1.0',
        'wbcd_cells{verdict="accepted"} 4.0',
        "wbcd_other_results 2.0",
    ):
        assert line in text_.splitlines()


def test_the_ledger_gives_the_same_cells(reprocessed: str) -> None:
    with Ledger.open(reprocessed) as ledger:
        current = list(ledger.cells(outcome="measured", current=True))
        assert [(cell.sample, cell.recipe_id, cell.label) for cell in current] == [
            ("S1", RECIPE_ID, "monocyte"),
            ("S1", NEXT_ID, "b_lymphocyte"),
            ("S1", NEXT_ID, "monocyte"),
            ("S2", RECIPE_ID, "monocyte"),
        ]
        assert len(list(ledger.cells())) == 6


def test_accepted_cells_of_a_rejected_acquisition_are_not_counted(any_ledger: Ledger, any_url: str) -> None:
    any_ledger.commit(replace(make_rejected("r"), cells=(make_cell(), make_cell(number=2, accepted=False))), *KEY)
    status = read_status(any_url)
    assert (status.cells, status.cells_refused, status.counts) == (0, 1, ())


def test_a_result_of_which_nobody_wrote_down_the_asking(reprocessed: str) -> None:
    """Rows of other programs: two results without a time would else both be current, and the cell counted twice."""
    with Ledger.open(reprocessed) as ledger:
        ledger._write(lambda connection: connection.exec_driver_sql("UPDATE run SET asked_at = NULL"))
    status = read_status(reprocessed)
    assert (status.measured, status.rejected, status.other_results) == (3, 1, 2)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 3), st.booleans()), max_size=12))
def test_whatever_was_asked_in_whatever_order_the_last_holds(
    sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, bool, int, bool]]
) -> None:
    """The first outcome under a key stands; the current one of each file is that of the key that was new last."""
    import shutil

    path = tmp_path_factory.mktemp("any") / "wbcd.db"
    shutil.copy(sqlite_template, path)
    held: dict[tuple[str, str], int | None] = {}
    last: dict[str, str] = {}
    clock = FakeClock()
    with opened(str(path), now=clock.now) as ledger:
        ledger.register(NEXT, MODEL_ID, {})
        for number, again, cells, waits in asked:
            name, recipe = f"f{number}", NEXT_ID if again else RECIPE_ID
            clock.advance(float(waits))  # or in the same moment: then the later row holds
            made = make_measured(name, *(make_cell(number=i + 1) for i in range(cells))) if cells else make_rejected(name)
            ledger.commit(made, recipe, MODEL_ID)
            if (name, recipe) not in held:
                held[name, recipe], last[name] = cells or None, recipe
    status = read_status(path)
    now = [held[name, recipe] for name, recipe in last.items()]
    assert (status.measured, status.rejected) == (len([n for n in now if n]), len([n for n in now if not n]))
    assert status.cells == sum(n or 0 for n in now) == sum(row.n for row in status.counts)
    assert status.other_results == len(held) - len(last)
    assert RECIPE.recipe_id == RECIPE_ID
