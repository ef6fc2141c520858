"""TensorBoard events of a training, where tensorboard is installed (extra ``train``) and asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from wbcd.errors import ConfigurationError

Write = Callable[[Mapping[str, float]], None]


@contextmanager
def open_board(folder: Path | None, epochs_done: int) -> Iterator[Write]:
    """A function that takes one row of the log; without a folder it does nothing. Events past ``epochs_done`` are dropped.

    Raises ConfigurationError when tensorboard is not installed.
    """
    if folder is None:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigurationError(
            "tensorboard is not installed.", action="Install the extra: pip install 'wbcd[train]'; or leave --tensorboard out."
        ) from error
    writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def write(row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name not in ("epoch", "epochs"):
                writer.add_scalar(name, value, int(row["epoch"]))
        writer.flush()

    try:
        yield write
    finally:
        writer.close()
