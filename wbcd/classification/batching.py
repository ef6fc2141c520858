"""The rule of dynamic batches: wait for the first item without limit, then at most ``max_latency_s`` or ``max_batch`` items.

Pure: it is told the time, reads no clock and holds no thread. The clock starts with the first item, never before it: a line
that idles for an hour still gives its first cell the full chance to find company.

    window = BatchWindow(BatchRule(max_batch=16, max_latency_s=0.5))
    while True:
        wait = window.wait_s(now())                 # None: without limit; 0: take the batch
        if wait == 0.0:
            yield window.take()
        elif (item := receive(timeout=wait)) is not None:
            window.add(item, now())
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from wbcd.errors import BadValue

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class BatchRule:
    """``max_batch`` items, or ``max_latency_s`` seconds after the first. Raises BadValue outside sense."""

    max_batch: int = 16
    max_latency_s: float = 0.5

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise BadValue(f"max_batch is {self.max_batch}; a batch holds at least 1 item.")
        if not 0 <= self.max_latency_s < float("inf"):
            raise BadValue(f"max_latency_s is {self.max_latency_s}; it must be finite and not negative.")


class BatchWindow(Generic[Item]):
    """The batch being filled."""

    def __init__(self, rule: BatchRule) -> None:
        self.rule = rule
        self._items: list[Item] = []
        self._first_s = 0.0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item, now_s: float) -> None:
        """Take an item in; the first one starts the clock. Monotonic seconds."""
        if not self._items:
            self._first_s = now_s
        self._items.append(item)

    def wait_s(self, now_s: float) -> float | None:
        """Longest wait for one more item: None without limit (nothing is held), 0 when the batch is to go now."""
        if not self._items:
            return None
        if len(self._items) >= self.rule.max_batch:
            return 0.0
        return max(0.0, self._first_s + self.rule.max_latency_s - now_s)

    def take(self) -> list[Item]:
        """The batch, oldest first, at most ``max_batch``; what is over starts the next one under the same clock."""
        batch, self._items = self._items[: self.rule.max_batch], self._items[self.rule.max_batch :]
        return batch
