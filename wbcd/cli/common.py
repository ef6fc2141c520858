"""What the verbs share: the common options, the exit statuses, and JSON printing."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import functools
import io
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from wbcd.config import Config, DatabaseSettings
from wbcd.errors import (
    ConfigurationError,
    DeviceError,
    ModelError,
    NotPermitted,
    NotStored,
    SchemaMismatch,
    StoreError,
    UnknownClass,
    WbcdError,
    WouldReplace,
)
from wbcd.names import in_column, shown

F = TypeVar("F", bound=Callable[..., Any])

# As in sysexits.h; beyond them what a shell gives to a program that a signal ended.
_IS_SHOWN = re.compile(r"\\")  # only a name with a backslash can be another as it is shown
EXIT_DATA = 65
EXIT_UNAVAILABLE = 69
EXIT_SOFTWARE = 70
EXIT_CANTCREAT = 73
EXIT_IO = 74
EXIT_NOPERM = 77
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
NO_WIDTH = 100_000
SYSTEM_CONFIG = Path("/etc/wbcd/wbcd.toml")
LOCAL_DATABASE = DatabaseSettings().url.removeprefix("sqlite:///")
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
  wbcd reprocess --outcome rejected --dry-run
  wbcd reprocess --outdated
  wbcd reprocess --outdated --apply""",
    "retry": """\b
Examples:
  wbcd retry
  wbcd retry --reason input.too_large
  wbcd retry --sample donor-7 /data/microscope/session-3 --dry-run""",
    "sample move": """\b
Examples:
  wbcd sample move /data/microscope/cell-0001.h5 --to donor-8 --note "label on the dish was wrong"
  wbcd sample move --from donor-7 --to donor-8""",
    "calibrate": """\b
Examples:
  wbcd calibrate empty.h5 --illumination-na 1.05
  wbcd calibrate bead.h5 --bead-um 5 --bead-ri 1.40 --store""",
    "status": """\b
Examples:
  wbcd status
  wbcd status --watch
  wbcd status --json | jq .daemon.state
  wbcd status --all
  wbcd status --check || echo "look at it"
  wbcd status --prometheus > wbcd.prom""",
    "counts": """\b
Examples:
  wbcd counts --sample donor-7 --json
  wbcd counts --all""",
    "cells": """\b
Examples:
  wbcd cells --uncertain --limit 20
  wbcd cells --sample donor-7 --label monocyte --pictures look
  wbcd cells --all --csv > cells.csv""",
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


class Verbs(click.Group):
    """A group that names the nearest of its verbs when one is misspelt."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's. Raises UsageError that names what was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = nearest(str(args[0]), self.list_commands(ctx))
            if near is None or str(args[0]).startswith("-"):
                raise
            raise click.UsageError(f"No such command {shown(args[0])!r}. Did you mean {near!r}?", ctx) from error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of the known names that is most like this one; None when none is."""
    pairs = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), list(pairs), 1, cutoff=0.6)
    return pairs[near[0]] if near else None


def site_options(command: F) -> F:
    """Add ``--config --db --watch-dir --output-dir``; the verb receives ``config``, loaded and checked."""
    return _site_options(command, system=False)


def installed_options(command: F) -> F:
    """:func:`site_options` of a verb that only looks at, or adds to, what is there: it finds the installed service's own.

    Where neither an option nor the environment says anything and no local database is there, ``/etc/wbcd/wbcd.toml`` is read,
    and standard error says so. Verbs that begin a database of their own do not: a trial must not land in the service's.
    """
    return _site_options(command, system=True)


def _site_options(command: F, *, system: bool) -> F:
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
        if system and config_file is None and not any(overrides.values()):
            config_file = _system_config()
        return command(*args, config=Config.load(config_file, overrides=overrides), **kwargs)

    return wrapped  # type: ignore[return-value]  # click adds parameters that the signature does not show


def _system_config() -> Path | None:
    """The installed service's configuration, where nothing else says which database is meant."""
    if os.environ.get("WBCD_CONFIG") or os.environ.get("WBCD_DATABASE_URL") or Path(LOCAL_DATABASE).exists():
        return None
    try:
        SYSTEM_CONFIG.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # it is there, and may not be seen: the reading says so
    click.echo(f"wbcd: no {LOCAL_DATABASE} here; as {SYSTEM_CONFIG} says", err=True)
    return SYSTEM_CONFIG


def with_setting(config: Config, section: str, **values: Any) -> Config:
    """The configuration with some values of one section replaced; None is skipped."""
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **given)})


def accept_own_option(command: F) -> F:
    """--accept-own-tomograms: :func:`accepting_own` puts it into the recipe, for it changes what is counted."""
    option = click.option(
        "--accept-own-tomograms", is_flag=True, help="Count tomograms that wbcd itself wrote, as acquisitions of their own."
    )
    return option(command)


def accepting_own(config: Config, accept: bool) -> Config:
    """The configuration with a recipe that accepts them, if asked for; else as it is."""
    if not accept:
        return config
    quality = dataclasses.replace(config.recipe.quality, accept_own_tomograms=True)
    return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, quality=quality))


def demand_sample(url: str, sample: str) -> None:
    """Raises NotStored, which names the nearest, for a sample that has no outcome."""
    from wbcd.report.known import stored_samples

    known = stored_samples(url)
    if sample in known:
        return
    near = nearest(sample, known)  # the sentence is made printable once, where it is said
    meant = f" Did you mean '{near}'?" if near is not None else f" There are {len(known)} samples; `wbcd counts` names them."
    raise NotStored(f"There is no sample '{sample}'.", action=meant.strip() if known else "Nothing is stored yet.")


def meant_sample(url: str, given: str | None) -> str | None:
    """The stored name of a sample that was given as it is stored, or else as it is shown, if one alone is shown so."""
    from wbcd.report.known import stored_samples

    if given is None or not _IS_SHOWN.search(given):
        return given
    known = stored_samples(url)
    alike = [name for name in known if shown(name) == given or in_column(name) == given]
    return given if given in known or len(alike) != 1 else alike[0]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a long verb; says how to go on."""


def goes_on(sentence: str) -> Callable[[F], F]:
    """Of a long verb: what is kept when it is interrupted, and how to go on. The exit status is then 130."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return command(*args, **kwargs)
            except KeyboardInterrupt as error:
                raise Interrupted(sentence) from error

        return wrapped  # type: ignore[return-value]  # the same parameters

    return decorate


AGAIN = "The same command goes on where it stopped."
ANEW = "The same command begins anew."


@contextmanager
def exits() -> Iterator[None]:
    """Ends the process with the status that belongs to an error of wbcd, or to a file, its sentence on standard error."""
    try:
        yield
        sys.stdout.flush()
    except LostOutput as error:
        sys.exit(lost_output(error))
    except WbcdError as error:
        complain(error.sentence())
        sys.exit(exit_status(error))
    except KeyboardInterrupt as error:
        complain(" ".join(["interrupted.", *(str(error) for _ in range(isinstance(error, Interrupted)))]))
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        # Without a name it is no file that somebody gave, and the traceback is worth more than a sentence.
        if error.filename is None:
            raise
        # Of a renaming that failed the second name is the wanted one.
        place = os.fsdecode(error.filename if error.filename2 is None else error.filename2)
        complain(f"{place}: {error.strerror}. Name another place, or make this one usable.")
        sys.exit(EXIT_NOPERM if isinstance(error, PermissionError) else EXIT_CANTCREAT)


def complain(sentence: str) -> None:
    """``wbcd: ...`` on standard error; one that is closed or full is no reason for a traceback."""
    with contextlib.suppress(OSError):
        click.echo(f"wbcd: {shown(sentence)}", err=True)


class LostOutput(Exception):
    """Standard output took no more: its reader has gone, its disk is full. No OSError: those are taken for a file's, and
    click ends a program that meets a closed pipe with status 1."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


class _Output(io.FileIO):
    """Standard output that says of an error that it is its own, and no file's."""

    def write(self, data: Any, /) -> Any:
        """As a file's. Raises LostOutput."""
        try:
            return super().write(data)
        except OSError as error:
            raise LostOutput(error) from error


def open_output() -> None:
    """Let standard output be one that raises LostOutput; a letter that its code page lacks is told by an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        raw = io.BufferedWriter(_Output(sys.stdout.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(
            raw, encoding=sys.stdout.encoding, errors="backslashreplace", line_buffering=sys.stdout.isatty()
        )


def lost_output(error: LostOutput) -> int:
    """Standard output takes nothing more; gives the exit status.

    A reader that has gone (``wbcd counts | head -1``) is no fault, and nothing is said: 141, as of any program in a pipe.
    """
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # what is left in the buffer goes there when the interpreter ends
        os.close(nowhere)
    if error.error.errno == errno.EPIPE:
        return EXIT_PIPE
    complain(f"standard output cannot be written: {error.error.strerror}.")
    return EXIT_IO


def exit_status(error: WbcdError) -> int:
    """As in sysexits.h: 65 no such sample, cell or class; 77 no permission; 78 wrong configuration or another daemon there; 69
    database away; 74 device lost; 70 anything else."""
    if isinstance(error, NotPermitted) or isinstance(error.__cause__, PermissionError):
        return EXIT_NOPERM
    if isinstance(error, (NotStored, UnknownClass)):
        return EXIT_DATA
    if isinstance(error, WouldReplace):
        return EXIT_CANTCREAT
    if isinstance(error, (ConfigurationError, ModelError, SchemaMismatch)):
        return EXIT_CONFIG
    if isinstance(error, StoreError):
        return EXIT_UNAVAILABLE
    return EXIT_IO if isinstance(error, DeviceError) else EXIT_SOFTWARE


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
    """A rich console that takes text for what it is, no markup and no names of emoji; rich takes a tenth of a second."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = NO_WIDTH  # a file or a pipe has no columns: nothing need be folded
    return console


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
