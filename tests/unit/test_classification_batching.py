"""The batching rule, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wbcd.classification.batching import BatchRule, BatchWindow
from wbcd.errors import BadValue


def test_the_first_item_is_awaited_without_limit() -> None:
    window = BatchWindow[str](BatchRule(4, 0.5))
    assert window.wait_s(0.0) is None
    assert window.wait_s(1e9) is None


def test_the_clock_starts_with_the_first_item() -> None:
    window = BatchWindow[str](BatchRule(4, 0.5))
    window.add("a", 100.0)
    assert window.wait_s(100.0) == pytest.approx(0.5)
    window.add("b", 100.3)
    assert window.wait_s(100.4) == pytest.approx(0.1)
    assert window.wait_s(100.5) == 0.0
    assert window.wait_s(200.0) == 0.0
    assert window.take() == ["a", "b"]
    assert window.wait_s(200.0) is None


def test_a_full_batch_goes_at_once() -> None:
    window = BatchWindow[int](BatchRule(2, 60.0))
    for item in range(3):
        window.add(item, 1.0)
    assert window.wait_s(1.0) == 0.0
    assert window.take() == [0, 1]
    assert len(window) == 1
    assert window.wait_s(31.0) == pytest.approx(30.0)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.integers(1, 9), st.floats(0, 3))
def test_order_and_count_are_kept(gaps: list[float], max_batch: int, latency: float) -> None:
    window = BatchWindow[int](BatchRule(max_batch, latency))
    now, out = 0.0, []
    for item, gap in enumerate(gaps):
        now += gap
        if window.wait_s(now) == 0.0:
            out.append(window.take())
        window.add(item, now)
    while len(window):
        out.append(window.take())
    assert [i for batch in out for i in batch] == list(range(len(gaps)))
    assert max(map(len, out)) <= max_batch


@pytest.mark.parametrize(("size", "latency"), [(0, 0.5), (4, -1.0), (4, float("nan")), (4, float("inf"))])
def test_senseless_rules_are_refused(size: int, latency: float) -> None:
    with pytest.raises(BadValue):
        BatchRule(size, latency)
