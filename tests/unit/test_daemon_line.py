"""The order of the stages, with fakes: which outcome each kind of acquisition ends in, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_line import MODEL, MemoryLedger, fake_stages, identify, judge_tomogram, quick_config, read

from wbcd.daemon.line import process, retry_after_s, worst_of
from wbcd.daemon.once import ProcessOnce
from wbcd.errors import DeviceLost, ReaderDied, StageFailed
from wbcd.recipe import Recipe
from wbcd.records import Check, FringeReport, HologramStack, Optics, RiSeries, Tomogram, Verdict

RECIPE = Recipe()


def outcome_of(folder: Path, text: str, recipe: Recipe = RECIPE, **changes):
    path = folder / "a.h5"
    path.write_text(text)
    return process(identify(path), fake_stages(**changes), recipe)


def test_cells_are_measured_and_classified(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "3 cells")
    assert outcome.kind == "measured"
    assert [cell.number for cell in outcome.cells] == [1, 2, 3]
    assert {cell.prediction.model_id for cell in outcome.cells} == {MODEL}
    assert outcome.acquisition.sample_id == "fake"
    assert outcome.verdict.accepted


def test_an_empty_field_is_rejected_with_a_check_of_that_name(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "empty")
    assert (outcome.kind, outcome.reason) == ("rejected", "empty_field")
    assert outcome.verdict.failed.code == "empty_field"
    assert "a.h5" in outcome.message


def test_a_blurred_tomogram_is_rejected_before_anything_is_measured(tmp_path: Path) -> None:
    def never(*_):
        raise AssertionError("measured all the same")

    outcome = outcome_of(tmp_path, "blurred", find_cells=never)
    assert (outcome.kind, outcome.reason) == ("rejected", "focus_shift_um")
    assert "9" in outcome.message
    assert "5" in outcome.message


def test_without_an_accepted_cell_the_cells_own_reason_counts_and_they_are_kept(tmp_path: Path) -> None:
    def never(_):
        raise AssertionError("classified all the same")

    outcome = outcome_of(tmp_path, "tiny", predict=never)
    assert (outcome.kind, outcome.reason) == ("rejected", "volume_fl")
    assert [cell.prediction for cell in outcome.cells] == [None]
    assert outcome.verdict.accepted  # the optics were good; it is the cell that was not


@pytest.mark.parametrize(
    ("text", "code"), [("corrupt", "input.corrupt"), ("incomplete", "input.incomplete"), ("bug", "unforeseen")]
)
def test_an_error_of_the_item_sets_it_aside(tmp_path: Path, text: str, code: str) -> None:
    outcome = outcome_of(tmp_path, text)
    assert (outcome.kind, outcome.error.code) == ("set_aside", code)


def test_a_series_that_breaks_half_way_counts_no_cell(tmp_path: Path) -> None:
    def volumes():
        yield Tomogram(np.full((2, 2, 2), 2, np.float32), (0.2, 0.1, 0.1), 1.337)
        raise ValueError("the second time point is damaged")

    outcome = outcome_of(tmp_path, "2", read=lambda acquisition: (acquisition, RiSeries(2, volumes())))
    assert outcome.kind == "set_aside"
    assert "second time point" in outcome.error.message


def test_cells_of_all_time_points_are_numbered_through(tmp_path: Path) -> None:
    volumes = [Tomogram(np.full((2, 2, 2), k, np.float32), (0.2, 0.1, 0.1), 1.337) for k in (2, -1, 1)]
    outcome = outcome_of(tmp_path, "2", read=lambda acquisition: (acquisition, RiSeries(3, iter(volumes))))
    assert [cell.number for cell in outcome.cells] == [1, 2, 3]
    assert outcome.verdict.accepted  # the blurred one in the middle gave nothing, the others stand


def test_a_lost_device_is_not_the_items_fault(tmp_path: Path) -> None:
    def lost(cells):
        raise DeviceLost("no answer")

    with pytest.raises(DeviceLost):
        outcome_of(tmp_path, "1", predict=lost)


def test_predictions_that_do_not_match_their_cells_stop_the_line(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="2 cells gave 1"):
        outcome_of(tmp_path, "2", predict=lambda cells: fake_stages().predict(cells[:1]))


OPTICS = Optics(0.532, 1.2, 1.337, 0.0625)


@pytest.mark.parametrize("refused_at", ["fringes", "fields", None])
def test_holograms_are_judged_as_early_as_possible(tmp_path: Path, refused_at: str | None) -> None:
    frames = np.zeros((1, 2, 2), np.uint8)
    stack = HologramStack(frames, None, None, 0, OPTICS)
    report = FringeReport((1.0, 1.0), *(np.ones(1) for _ in range(4)))
    done: list[str] = []

    def judged(name):
        return lambda *_: Verdict((Check(name, 0.0 if name == refused_at else 1.0, 0.5, "min"),))

    def noted(name, value):
        return lambda *_: [done.append(name), value][1]

    tomogram = Tomogram(np.ones((2, 2, 2), np.float32), (0.2, 0.1, 0.1), 1.337)
    outcome = outcome_of(
        tmp_path,
        "1",
        read=lambda acquisition: (acquisition, stack),
        measure_fringes=noted("fringes", report),
        judge_fringes=judged("fringes"),
        retrieve_fields=noted("fields", None),
        judge_fields=judged("fields"),
        reconstruct=noted("tomogram", [tomogram]),
    )
    expected = {"fringes": ["fringes"], "fields": ["fringes", "fields"], None: ["fringes", "fields", "tomogram"]}
    assert done == expected[refused_at]
    assert [outcome.kind, getattr(outcome, "reason", None)] == (["rejected", refused_at] if refused_at else ["measured", None])
    codes = [check.code for check in outcome.verdict.checks]
    assert (
        codes
        == {"fringes": ["fringes"], "fields": ["fringes", "fields"], None: ["fringes", "fields", "focus_shift_um"]}[refused_at]
    )


def test_the_worst_value_of_each_check_is_kept() -> None:
    first = Verdict((Check("a", 1.0, 5.0, "max"), Check("b", 9.0, 5.0, "min")))
    second = Verdict((Check("a", 3.0, 5.0, "max"), Check("b", float("nan"), 5.0, "min")))
    kept = {check.code: check.value for check in worst_of([first, second]).checks}
    assert kept["a"] == 3.0
    assert np.isnan(kept["b"])


def test_the_fake_judge_agrees_with_its_limit() -> None:
    sharp = Tomogram(np.ones((2, 2, 2), np.float32), (0.2, 0.1, 0.1), 1.337)
    assert judge_tomogram(sharp, RECIPE).accepted


def test_waits_between_tries_grow_within_the_quiet_time_and_a_rescan() -> None:
    waits = [retry_after_s(tries, quiet_s=2.0, rescan_s=60.0) for tries in (1, 2, 3, 1000)]
    assert waits == [5.0, 20.0, 60.0, 60.0]
    assert retry_after_s(1, quiet_s=10.0, rescan_s=60.0) == 10.0
    assert retry_after_s(1, quiet_s=0.05, rescan_s=0.1) == 0.1


@pytest.mark.parametrize(("failures", "kind", "begun"), [(2, "measured", 3), (9, "set_aside", 3)])
def test_once_a_fault_of_the_moment_is_tried_again_at_once(tmp_path: Path, failures: int, kind: str, begun: int) -> None:
    faults = iter([ReaderDied("a.h5: the reader was ended.") for _ in range(failures)])
    tries: list[int] = []

    def reads(acquisition):
        for fault in faults:
            raise fault
        return read(acquisition)

    class Counting(MemoryLedger):
        def begin(self, acquisition, *, volumes_root=None):
            tries.append(super().begin(acquisition))
            return tries[-1]

    path = tmp_path / "a.h5"
    path.write_text("1 cell")
    outcome = ProcessOnce(quick_config(tmp_path), fake_stages(read=reads), Counting())(path)
    assert (outcome.kind, tries) == (kind, list(range(1, begun + 1)))
