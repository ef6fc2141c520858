"""What the verbs share: the common options, the exit statuses, and JSON printing."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from wbcd.config import Config
from wbcd.errors import ConfigurationError, DeviceError, ModelError, SchemaMismatch, StoreError, WbcdError

F = TypeVar("F", bound=Callable[..., Any])

EXIT_SOFTWARE = 70
EXIT_CANTCREAT = 73
EXIT_UNAVAILABLE = 69
EXIT_IO = 74
EXIT_CONFIG = 78
RESEARCH_ONLY = "Research use only: not for diagnosis."

EXAMPLES = {
    "wbcd": """\b
Examples:
  wbcd demo
  wbcd run --watch-dir /data/microscope --db sqlite:////data/wbcd.db
  wbcd counts""",
    "demo": """\b
Example:
  wbcd demo --cells 40 --out ./demo-output""",
    "simulate": """\b
Examples:
  wbcd simulate incoming --cells 20 --seed 7 --truth truth.jsonl
  wbcd simulate incoming --cells 200 --rate 1 --format tcf --defects 0.2""",
    "run": """\b
Examples:
  wbcd run --watch-dir /data/microscope
  wbcd run --config /etc/wbcd/wbcd.toml""",
    "process": """\b
Examples:
  wbcd process cell-0001.h5 --json
  wbcd process session-folder --keep-tomograms --output-dir results""",
    "reprocess": """\b
Examples:
  wbcd reprocess --accurate --sample donor-7
  wbcd reprocess --outcome rejected --dry-run""",
    "calibrate": """\b
Examples:
  wbcd calibrate empty.h5 --illumination-na 1.05
  wbcd calibrate bead.h5 --bead-um 5 --bead-ri 1.40 --store""",
    "status": """\b
Examples:
  wbcd status
  wbcd status --watch
  wbcd status --json | jq .daemon.state
  wbcd status --check || echo "look at it"
  wbcd status --prometheus > wbcd.prom""",
    "counts": """\b
Example:
  wbcd counts --sample donor-7 --json""",
    "db": """\b
Examples:
  wbcd db upgrade --db postgresql://wbcd_owner@localhost/wbcd
  wbcd db backup /backup/wbcd-monday.db
  wbcd db restore /backup/wbcd-monday.db
  wbcd db roles | psql -d wbcd""",
    "verify": """\b
Examples:
  wbcd verify
  wbcd verify --tomograms --sources
  wbcd verify --anchors /mnt/elsewhere/wbcd-anchors.json""",
    "retention": """\b
Examples:
  wbcd retention --max-age-days 90
  wbcd retention --max-age-days 90 --max-gib 500 --apply""",
    "model": """\b
Examples:
  wbcd model list
  wbcd model show reference --json
  wbcd model calibrate training/bundle cells.zarr training/calibrated""",
    "model list": """\b
Example:
  wbcd model list --json""",
    "model show": """\b
Example:
  wbcd model show reference --json""",
    "model calibrate": """\b
Examples:
  wbcd model calibrate training/bundle cells.zarr training/calibrated --held-out others.zarr
  wbcd model calibrate training/bundle cells.zarr training/calibrated --objective-na 1.0 1.2""",
    "model bench": """\b
Example:
  wbcd model bench training/bundle --data cells.zarr --batch 1 --batch 8""",
    "model strangers": """\b
Examples:
  wbcd model strangers training/calibrated cells.zarr --cells 20
  wbcd model strangers training/calibrated exact.zarr --cells 20 --path exact""",
    "model instruments": """\b
Examples:
  wbcd model instruments training/calibrated
  wbcd model instruments training/calibrated --cells 40 --path exact""",
    "model export": """\b
Example:
  wbcd model export training/bundle ours.zip --format bioimageio""",
    "model import": """\b
Example:
  wbcd model import ours.zip models/ours --digest "$(cat ours.sha256)" """,
    "label": """\b
Examples:
  wbcd label --sample donor-7-cd14 --as monocyte --purity 0.95 --note "CD14 beads"
  wbcd label --list""",
    "review": """\b
Example:
  wbcd review 1204 --as myelocyte --note "eccentric nucleus, coarse granules" """,
    "model compare": """\b
Example:
  wbcd model compare training-a/bundle training-b/bundle cells.zarr --split test_donor""",
    "dataset": """\b
Examples:
  wbcd dataset make cells.zarr --cells 2400 --seed 1
  wbcd dataset from-db --label-by sample --out ours.zarr
  wbcd dataset join ours.zarr theirs.zarr --out both.zarr
  wbcd dataset show cells.zarr --json""",
    "train": """\b
Examples:
  wbcd train cells.zarr training --epochs 12
  wbcd train cells.zarr lineages --task two --split-by donor --seed 1
  wbcd train ours.zarr ours --start reference --epochs 6""",
    "evaluate": """\b
Examples:
  wbcd evaluate training/bundle cells.zarr --out report
  wbcd evaluate seed-0/bundle cells.zarr --also seed-1/bundle --also seed-2/bundle --split test_donor""",
    "paper": """\b
Examples:
  wbcd paper fig2 --data cells.zarr --out paper
  wbcd paper all --data cells.zarr --out paper --quick""",
    "doctor": """\b
Example:
  wbcd doctor --config /etc/wbcd/wbcd.toml""",
    "config": """\b
Examples:
  wbcd config show --json
  wbcd config check --config /etc/wbcd/wbcd.toml""",
}


class FiniteRange(click.FloatRange):
    """A number within its limits; NaN, which compares with none, and infinities are refused too."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Raises click.BadParameter, which names the option, the value and the limits."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number; give one in the range {self._describe_range()}.", param, ctx)
        return found


def site_options(command: F) -> F:
    """Add ``--config --db --watch-dir --output-dir``; the verb receives ``config``, loaded and checked."""

    @click.option("--config", "config_file", type=click.Path(path_type=Path), help="Configuration file (TOML).")
    @click.option("--db", help="Database URL: sqlite:///FILE or postgresql://USER@HOST/NAME.")
    @click.option("--watch-dir", type=click.Path(path_type=Path), help="Folder that the microscope writes into.")
    @click.option("--output-dir", type=click.Path(path_type=Path), help="Folder for tomograms, pictures and state.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, config_file: Path | None, db: str | None, watch_dir: Path | None, output_dir: Path | None, **kwargs: Any
    ) -> Any:
        overrides: dict[str, Any] = {"database.url": db, "watch.dir": watch_dir, "output.dir": output_dir}
        overrides |= kwargs.pop("overrides", {})
        return command(*args, config=Config.load(config_file, overrides=overrides), **kwargs)

    return wrapped  # type: ignore[return-value]  # click adds parameters that the signature does not show


def with_setting(config: Config, section: str, **values: Any) -> Config:
    """The configuration with some values of one section replaced; None is skipped."""
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **given)})


@contextmanager
def exits() -> Iterator[None]:
    """Ends the process with the status that belongs to an error of wbcd, or to a file, its sentence on standard error."""
    try:
        yield
    except WbcdError as error:
        click.echo(f"wbcd: {error.sentence()}", err=True)
        sys.exit(exit_status(error))
    except OSError as error:
        # Without a name it is no file that somebody gave, and the traceback is worth more than a sentence.
        if error.filename is None:
            raise
        # Of a renaming that failed the second name is the wanted one.
        place = os.fsdecode(error.filename if error.filename2 is None else error.filename2)
        click.echo(f"wbcd: {place}: {error.strerror}. Name another place, or make this one usable.", err=True)
        sys.exit(EXIT_CANTCREAT)


def exit_status(error: WbcdError) -> int:
    """78 wrong configuration, 69 database away, 74 device lost, 70 anything else."""
    if isinstance(error, (ConfigurationError, ModelError, SchemaMismatch)):
        return EXIT_CONFIG
    if isinstance(error, StoreError):
        return EXIT_UNAVAILABLE
    return EXIT_IO if isinstance(error, DeviceError) else EXIT_SOFTWARE


def echo(text: str) -> None:
    """One line on standard output; a file name need not be UTF-8, a stream demands it."""
    click.echo(text.encode(errors="replace").decode())


def command_line() -> str:
    """What was typed, with the program by its name: for a model's card."""
    return shlex.join(["wbcd", *sys.argv[1:]])


def to_json(value: Any) -> str:
    """Standard JSON on one line: dataclasses and paths are written out, numbers that are not finite become null.

    Pure ASCII: the bytes of a file name that is not UTF-8 are lone surrogates, which no stream in UTF-8 can take.
    """
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def quiet_console(stderr: bool = False) -> Any:
    """A rich console, imported here because it takes a tenth of a second."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


class Axes(click.ParamType[Any]):
    """Three numbers, z,y,x, of one kind."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.name = "z,y,x"
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """The three, each above 0."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 3 or not all(math.isfinite(n) and n > 0 for n in numbers):
            what = "whole numbers" if self._kind is int else "numbers"
            self.fail(f"{value!r} is not three {what} above 0: z,y,x.", param, ctx)
        return numbers


def input_options(function: F) -> F:
    """--shape and --pitch: what a network sees of a cell."""
    return _box_and_pitch(function, "the set's", "the set's")


def new_input_options(function: F) -> F:
    """--shape and --pitch of a set that is made."""
    return _box_and_pitch(function, "40,64,64", "0.4,0.2,0.2")


def _box_and_pitch(function: F, shape: str, pitch: str) -> F:
    voxels = click.option("--shape", type=Axes(int), help=f"Voxels of a cell: z,y,x.  [default: {shape}]")
    size = click.option("--pitch", type=Axes(float), help=f"Their size in um: z,y,x.  [default: {pitch}]")
    return voxels(size(function))
