"""What a person sees while a set is made or a network trained: callbacks that draw with rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wbcd.training.fit import Epoch, Step


def _bar(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def dataset_progress(
    cells: int | None, console: Console | None = None, what: str = "simulating cells"
) -> Iterator[Callable[[int, int], None]]:
    """An ``on_part`` for makers of sets; ``cells``: None where the maker tells the total."""
    with _bar(console) as bar:
        task = bar.add_task(what, total=cells)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def training_progress(
    epochs: int, console: Console | None = None
) -> Iterator[tuple[Callable[[Epoch], None], Callable[[Step], None]]]:
    """An ``on_epoch`` and an ``on_step`` for train: a bar with loss and accuracy, and one line an epoch."""
    with _bar(console) as bar:
        task = bar.add_task("training", total=epochs)

        def on_epoch(row: Epoch) -> None:
            bar.console.print(epoch_line(row), highlight=False)
            bar.update(task, completed=row.epoch)
            if row.epoch == row.epochs:
                bar.update(task, description="calibrating and measuring")

        def on_step(at: Step) -> None:
            text = f"epoch {at.epoch}  loss {at.loss:.3f}  accuracy {at.accuracy:.1%}"
            bar.update(task, description=text, completed=at.epoch - 1 + at.step / at.steps)

        yield on_epoch, on_step


def epoch_line(row: Epoch) -> str:
    """One epoch as text."""
    return (
        f"epoch {row.epoch:3d}/{row.epochs}  loss {row.train_loss:.4f}  validation {row.validation_loss:.4f}"
        f"  accuracy {row.validation_accuracy:.1%}  {row.seconds:.0f} s"
    )
