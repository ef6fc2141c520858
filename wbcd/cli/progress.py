"""A bar on standard error while results go to standard output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Bar:
    """A progress bar of ``total`` steps; nothing where standard error is not a terminal or there is only one step.

    Results are printed within :meth:`aside`: on one terminal they and the bar would else share a line. rich's own way, to take
    standard output over, would send the results to standard error, and none into the file that somebody asked for.
    """

    def __init__(self, title: str, total: int, *, shown: bool) -> None:
        from rich.progress import Progress

        from wbcd.cli.common import quiet_console

        console = quiet_console(stderr=True)
        self._bar = Progress(
            console=console,
            disable=not (shown and console.is_interactive and total > 1),
            transient=True,
            redirect_stdout=False,
        )
        self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar off the terminal, and put it back afterwards."""
        self._bar.stop()
        yield
        self._bar.start()

    def advance(self) -> None:
        """One step more is done."""
        self._bar.advance(self._task)
