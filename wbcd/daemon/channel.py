"""Bounded hand-over between two threads: a size, the reason for it, and statistics that include the peak.

Closing drains: what was put is still taken, then :class:`Closed` ends the taker's loop. Breaking does not: the first
failure anywhere on the line makes every put and take raise :class:`Broken` at once, so that no thread waits for ever.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """Nothing more will come: the other side has finished."""


class Broken(Exception):
    """The line has failed elsewhere; the first failure is kept by the crew."""


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """A snapshot. ``peak`` at ``capacity`` means that the taker was the slower side at least once."""

    name: str
    capacity: int
    reason: str
    length: int
    peak: int
    put: int
    taken: int
    waiting_to_take: int


class Channel(Generic[T]):
    """First in, first out, between any number of threads. ``capacity`` >= 1; ``reason`` says why that many."""

    def __init__(self, name: str, capacity: int, reason: str) -> None:
        if capacity < 1:
            raise ValueError(f"channel {name}: capacity is {capacity}; at least 1 is needed")
        self.name = name
        self.capacity = capacity
        self.reason = reason
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._broken = False
        self._peak = self._put = self._taken = self._waiting = 0

    def put(self, item: T) -> None:
        """Hand over, waiting for room. Raises :class:`Closed` after :meth:`close`, :class:`Broken` after a failure."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._closed or len(self._items) < self.capacity)
            self._refuse_if_over()
            self._append(item)

    def offer(self, item: T) -> bool:
        """Hand over if there is room now; False when there is none."""
        with self._changed:
            self._refuse_if_over()
            if len(self._items) >= self.capacity:
                return False
            self._append(item)
            return True

    def take(self, timeout_s: float | None = None) -> T:
        """The oldest item, waiting for one; TimeoutError after ``timeout_s``. Raises :class:`Closed` when closed and empty."""
        with self._changed:
            self._waiting += 1
            try:
                ready = self._changed.wait_for(lambda: self._broken or self._closed or bool(self._items), timeout_s)
            finally:
                self._waiting -= 1
            if self._broken:
                raise Broken(self.name)
            if self._items:
                return self._pop()
            if ready:
                raise Closed(self.name)
            raise TimeoutError(self.name)

    def __iter__(self) -> Iterator[T]:
        """Items until the channel is closed and empty."""
        while True:
            try:
                yield self.take()
            except Closed:
                return

    def close(self) -> None:
        """No more puts; takers get what is left, then :class:`Closed`. Closing twice is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def break_(self) -> None:
        """End every wait with :class:`Broken` and let go of what is held."""
        with self._changed:
            self._broken = True
            self._items.clear()
            self._changed.notify_all()

    def statistics(self) -> ChannelStatistics:
        """Counts since the start."""
        with self._changed:
            return ChannelStatistics(
                self.name,
                self.capacity,
                self.reason,
                len(self._items),
                self._peak,
                self._put,
                self._taken,
                self._waiting,
            )

    def _refuse_if_over(self) -> None:
        if self._broken:
            raise Broken(self.name)
        if self._closed:
            raise Closed(self.name)

    def _append(self, item: T) -> None:
        self._items.append(item)
        self._put += 1
        self._peak = max(self._peak, len(self._items))
        self._changed.notify_all()

    def _pop(self) -> T:
        self._taken += 1
        item = self._items.popleft()
        self._changed.notify_all()
        return item


def take_batch(
    channel: Channel[T],
    *,
    weight: Callable[[T], int],
    max_weight: int,
    max_latency_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[T]:
    """Items whose weights add up to ``max_weight``, or what came within ``max_latency_s`` of the first that weighs.

    The first item is waited for without limit, and only then does the clock start. Items of weight 0 (markers) ride
    along; when nothing that weighs has come, they are returned at once, for they must not wait for a batch.
    Raises :class:`Closed` when the channel is closed and empty; a short last batch is returned before that.
    """
    batch = [channel.take()]
    total = weight(batch[0])
    deadline = clock() + max_latency_s
    while 0 < total < max_weight:
        try:
            item = channel.take(max(0.0, deadline - clock()))
        except (TimeoutError, Closed):
            break
        batch.append(item)
        total += weight(item)
    return batch


class Crew:
    """The threads of one line. The first failure breaks every channel and is kept; later ones are its echoes."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._channels: list[Channel[object]] = []
        self._lock = threading.Lock()
        self.failure: BaseException | None = None
        self.failed_stage: str | None = None

    def channel(self, name: str, capacity: int, reason: str) -> Channel[T]:
        """A channel that breaks with this crew."""
        made: Channel[T] = Channel(name, capacity, reason)
        self._channels.append(made)  # type: ignore[arg-type]  # only break_ and statistics are used on it
        return made

    def start(self, stage: str, work: Callable[[], None]) -> None:
        """Run ``work`` in a thread named after its stage."""
        thread = threading.Thread(target=self._guard, args=(stage, work), name=f"wbcd-{stage}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def fail(self, stage: str, error: BaseException) -> None:
        """Keep the first failure and end every wait."""
        with self._lock:
            if self.failure is None:
                self.failure, self.failed_stage = error, stage
        for channel in self._channels:
            channel.break_()

    def join(self, timeout_s: float) -> bool:
        """Wait for all threads; False when one is still running after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def statistics(self) -> list[ChannelStatistics]:
        """Of every channel, in the order of the line."""
        return [channel.statistics() for channel in self._channels]

    def _guard(self, stage: str, work: Callable[[], None]) -> None:
        try:
            work()
        except (Broken, Closed):
            return
        except BaseException as error:  # noqa: BLE001 - whatever ends a stage must end the line and be shown, not vanish with its thread
            self.fail(stage, error)
