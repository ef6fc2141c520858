"""When a file is at rest."""

from __future__ import annotations

from pathlib import Path

from wbcd.acquisition import FileStat, StabilityTracker

A, B = Path("a.h5"), Path("b.h5")


def test_settles_once_after_the_quiet_time():
    tracker = StabilityTracker(2.0)
    state = {A: FileStat(10, 1)}
    assert tracker.observe(state, 0.0) == []
    assert tracker.observe(state, 1.9) == []
    assert tracker.observe(state, 2.0) == [A]
    assert tracker.observe(state, 9.0) == []


def test_a_change_of_size_or_mtime_starts_the_wait_again():
    tracker = StabilityTracker(2.0)
    tracker.observe({A: FileStat(10, 1)}, 0.0)
    tracker.observe({A: FileStat(11, 1)}, 1.5)
    assert tracker.observe({A: FileStat(11, 1)}, 2.5) == []
    tracker.observe({A: FileStat(11, 2)}, 3.4)
    assert tracker.observe({A: FileStat(11, 2)}, 5.3) == []
    assert tracker.observe({A: FileStat(11, 2)}, 5.4) == [A]


def test_rewritten_after_settling_settles_again():
    tracker = StabilityTracker(1.0)
    tracker.observe({A: FileStat(1, 1)}, 0.0)
    assert tracker.observe({A: FileStat(1, 1)}, 1.0) == [A]
    assert tracker.observe({A: FileStat(2, 2)}, 5.0) == []
    assert tracker.observe({A: FileStat(2, 2)}, 6.0) == [A]


def test_gone_and_back_is_new():
    tracker = StabilityTracker(1.0)
    tracker.observe({A: FileStat(1, 1)}, 0.0)
    assert tracker.observe({A: FileStat(1, 1)}, 1.0) == [A]
    assert tracker.observe({}, 2.0) == []
    assert len(tracker) == 0
    tracker.observe({A: FileStat(1, 1)}, 3.0)
    assert tracker.observe({A: FileStat(1, 1)}, 4.0) == [A]


def test_a_partial_look_forgets_nobody():
    tracker = StabilityTracker(1.0)
    tracker.observe({A: FileStat(1, 1), B: FileStat(1, 1)}, 0.0)
    assert tracker.observe({B: FileStat(1, 1)}, 1.0, partial=True) == [B]
    assert tracker.observe({A: FileStat(1, 1), B: FileStat(1, 1)}, 1.0) == [A]


def test_oldest_first():
    tracker = StabilityTracker(0.0)
    assert tracker.observe({A: FileStat(1, 9), B: FileStat(1, 3)}, 0.0) == [B, A]


def test_retry_announces_once_more_after_a_quiet_time():
    tracker = StabilityTracker(1.0)
    state = {A: FileStat(1, 1)}
    tracker.observe(state, 0.0)
    tracker.observe(state, 1.0)
    tracker.retry(A, 5.0)
    tracker.retry(B, 5.0)  # unknown: nothing to retry
    assert tracker.next_s() == 6.0
    assert tracker.observe(state, 5.5) == []
    assert tracker.observe(state, 6.0) == [A]
    assert tracker.next_s() is None


def test_due_names_those_whose_time_is_over():
    tracker = StabilityTracker(1.0)
    tracker.observe({A: FileStat(1, 1)}, 0.0)
    tracker.observe({B: FileStat(1, 1)}, 0.5, partial=True)
    assert tracker.due(1.2) == [A]
    assert tracker.due(1.5) == [A, B]
