"""A bar on standard error while results go to standard output."""

from __future__ import annotations


class Bar:
    """A progress bar of ``total`` steps; nothing where standard error is not a terminal or there is only one step."""

    def __init__(self, title: str, total: int, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, disable=not (shown and console.is_terminal and total > 1), transient=True)
        self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One step more is done."""
        self._bar.advance(self._task)
