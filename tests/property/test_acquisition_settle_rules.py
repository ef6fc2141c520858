"""Whatever is written and looked at when: nothing settles early, nothing is lost, nothing is announced twice."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from wbcd.acquisition import FileStat, StabilityTracker

QUIET_S = 2.0
PATHS = [Path(name) for name in ("a.h5", "b.h5", "c.h5")]
states = st.builds(FileStat, st.integers(0, 3), st.integers(0, 3))
snapshots = st.dictionaries(st.sampled_from(PATHS), states)
histories = st.lists(st.tuples(st.floats(0.0, 3.0), snapshots), max_size=30)


@given(histories)
def test_announced_exactly_when_unchanged_over_the_quiet_time(history):
    tracker = StabilityTracker(QUIET_S)
    now = 0.0
    since: dict[Path, tuple[FileStat, float]] = {}
    announced: set[Path] = set()
    for pause, snapshot in history:
        now += pause
        for path in PATHS:  # the rule, said over again as naively as possible
            if path not in snapshot or since.get(path, (None, 0.0))[0] != snapshot[path]:
                since.pop(path, None)
                announced.discard(path)
            if path in snapshot:
                since.setdefault(path, (snapshot[path], now))
        expected = {path for path, (_, start) in since.items() if now - start >= QUIET_S} - announced
        settled = tracker.observe(snapshot, now)
        assert len(settled) == len(set(settled))
        assert set(settled) == expected
        announced |= expected
    assert len(tracker) == len(since)


@given(histories, snapshots)
def test_everything_left_alone_has_settled_in_the_end(history, last):
    tracker = StabilityTracker(QUIET_S)
    now = 0.0
    given_out: dict[Path, FileStat] = {}
    for pause, snapshot in [*history, (1.0, last), (QUIET_S + 0.1, last)]:
        now += pause
        for path in tracker.observe(snapshot, now):
            given_out[path] = snapshot[path]
    assert {path: given_out.get(path) for path in last} == last
    assert tracker.next_s() is None


@given(histories)
def test_partial_looks_settle_the_same_files_as_full_ones(history):
    whole, parts = StabilityTracker(QUIET_S), StabilityTracker(QUIET_S)
    now = 0.0
    for pause, snapshot in history:
        now += pause
        settled = set(whole.observe(snapshot, now))
        for path in PATHS:
            if path not in snapshot:
                parts.forget(path)
        piecewise = {p for path in snapshot for p in parts.observe({path: snapshot[path]}, now, partial=True)}
        assert settled == piecewise
        assert whole.next_s() == parts.next_s()
