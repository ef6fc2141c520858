"""A flood in the log is summed up: so many lines a minute of a kind, then how many more there were."""

from __future__ import annotations

import io
import json
import threading

import pytest
import structlog

from wbcd.config import ServiceSettings
from wbcd.daemon.logs import WINDOW_S, Limiter, RateLimit, configure_logging
from wbcd.testing import FakeClock


@pytest.fixture(autouse=True)
def _structlog_as_before():
    yield
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_window_lets_so_many_pass_and_the_next_begins_when_it_was_told_of() -> None:
    clock = FakeClock()
    limit = RateLimit(3, clock=clock)
    kind = ("outcome", "set_aside", "input.corrupt", "", "")
    assert [limit.passes(kind) for _ in range(10)] == [True] * 3 + [False] * 7
    assert limit.held_back() == {}  # the window is not over
    clock.advance(WINDOW_S)
    assert not limit.passes(kind)
    assert limit.held_back() == {kind: 8}
    assert limit.held_back() == {}
    assert limit.passes(kind)


def test_a_quiet_kind_begins_anew_by_itself_and_kinds_do_not_share() -> None:
    clock = FakeClock()
    limit = RateLimit(2, clock=clock)
    one, other = ("a",), ("b",)
    assert [limit.passes(one), limit.passes(one), limit.passes(other)] == [True] * 3
    clock.advance(WINDOW_S)
    assert limit.passes(one)
    assert limit.passes(one)
    assert limit.held_back(all_of_it=True) == {}


def test_a_jump_of_the_wall_clock_changes_nothing() -> None:
    clock = FakeClock()
    limit = RateLimit(1, clock=clock)
    limit.passes(("a",))
    clock.jump(86_400)
    assert not limit.passes(("a",))
    clock.jump(-2 * 86_400)
    assert not limit.passes(("a",))


def test_every_line_is_written_or_counted_whichever_thread_wrote_it() -> None:
    limit = RateLimit(50)
    passed: list[bool] = []
    told: list[int] = []

    def flood() -> None:
        for _ in range(500):
            passed.append(limit.passes(("a",)))
            told.extend(limit.held_back(all_of_it=True).values())

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    told.extend(limit.held_back(all_of_it=True).values())
    assert sum(passed) + sum(told) == 2000


def test_what_is_left_out_is_told_in_one_line_with_its_kind() -> None:
    stream = io.StringIO()
    limiter = Limiter(RateLimit(5))
    log = configure_logging(ServiceSettings(log_format="json"), stream, limiter=limiter)
    for number in range(4317):
        log.info("outcome", outcome="set_aside", reason="input.corrupt", path=f"{number}.h5")
        if number % 1000 == 0:
            log.warning("paused", cause="store", reason="the disk is full")
    limiter.tell(log, all_of_it=True)
    written = lines(stream)
    assert sum(line["event"] == "outcome" for line in written) == 5
    assert sum(line["event"] == "paused" for line in written) == 5  # a pause is never left out
    (more,) = (line for line in written if line["event"] == "log.more")
    assert more["more"] == 4312
    assert more["message"] == "and 4,312 more of outcome set_aside input.corrupt"


def test_zero_lets_everything_pass() -> None:
    limit = RateLimit(0)
    assert all(limit.passes(("a",)) for _ in range(1000))
    assert limit.held_back(all_of_it=True) == {}
