"""The bounded hand-over: it blocks when full, drains when closed, and breaks everywhere at the first failure."""

from __future__ import annotations

import threading

import pytest

from wbcd.daemon.channel import Broken, Channel, Closed, Crew, take_batch
from wbcd.testing import FakeClock


def channel(capacity: int = 3) -> Channel[int]:
    return Channel("numbers", capacity, "a test")


def test_items_come_out_in_the_order_they_went_in() -> None:
    made = channel()
    for number in (1, 2, 3):
        made.put(number)
    made.close()
    assert list(made) == [1, 2, 3]


def test_a_capacity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        channel(0)


def test_a_full_channel_refuses_an_offer_and_its_peak_tells() -> None:
    made = channel(2)
    assert [made.offer(k) for k in range(3)] == [True, True, False]
    made.take()
    found = made.statistics()
    assert (found.length, found.peak, found.put, found.taken, found.reason) == (1, 2, 2, 1, "a test")


def test_closing_drains_and_then_ends() -> None:
    made = channel()
    made.put(1)
    made.close()
    with pytest.raises(Closed):
        made.put(2)
    assert made.take() == 1
    with pytest.raises(Closed):
        made.take()


def test_an_empty_channel_times_out() -> None:
    with pytest.raises(TimeoutError):
        channel().take(0.01)


def test_breaking_ends_a_waiting_put_and_drops_what_is_held() -> None:
    made = channel(1)
    made.put(1)
    ended: list[type[BaseException]] = []

    def put_more() -> None:
        try:
            made.put(2)
        except Broken as error:
            ended.append(type(error))

    thread = threading.Thread(target=put_more)
    thread.start()
    made.break_()
    thread.join(5)
    assert ended == [Broken]
    assert made.statistics().length == 0


def test_the_first_failure_of_a_crew_is_kept_and_ends_every_stage() -> None:
    crew = Crew()
    made: Channel[int] = crew.channel("numbers", 1, "a test")

    def fails() -> None:
        raise ZeroDivisionError("the first")

    crew.start("waits", lambda: [made.take(), None][1])
    crew.start("fails", fails)
    assert crew.join(5)
    assert isinstance(crew.failure, ZeroDivisionError)
    assert crew.failed_stage == "fails"


class Timed:
    """A channel that lets the fake clock run on each wait, and has an item at given times."""

    def __init__(self, clock: FakeClock, arrivals: list[tuple[float, int]]) -> None:
        self.clock, self.arrivals = clock, arrivals

    def take(self, timeout_s: float | None = None) -> int:
        if not self.arrivals:
            raise Closed("numbers") if timeout_s is None else TimeoutError
        when, item = self.arrivals[0]
        if timeout_s is not None and when > self.clock() + timeout_s:
            self.clock.advance(timeout_s)
            raise TimeoutError
        self.clock.advance(max(0.0, when - self.clock()))
        self.arrivals.pop(0)
        return item


@pytest.mark.parametrize(
    ("arrivals", "batch"),
    [
        ([(100.0, 1), (100.2, 1), (100.6, 1)], [1, 1]),  # the clock starts with the first, however late it comes
        ([(0.0, 1), (0.1, 1), (0.2, 1), (0.3, 1)], [1, 1, 1]),  # full before its time
        ([(0.0, 0), (0.0, 1)], [0]),  # a marker waits for nobody
        ([(0.0, 1), (0.1, 0), (0.2, 1)], [1, 0, 1]),
    ],
)
def test_batches_wait_for_the_first_without_limit_and_then_no_longer_than_allowed(arrivals, batch) -> None:
    clock = FakeClock(0.0)
    timed = Timed(clock, arrivals)
    assert take_batch(timed, weight=lambda item: item, max_weight=3, max_latency_s=0.5, clock=clock) == batch  # type: ignore[arg-type]


def test_the_last_short_batch_comes_before_the_end() -> None:
    made = channel()
    made.put(1)
    made.close()
    assert take_batch(made, weight=lambda item: item, max_weight=3, max_latency_s=30) == [1]
    with pytest.raises(Closed):
        take_batch(made, weight=lambda item: item, max_weight=3, max_latency_s=30)
