"""`wbcd demo`: the main job on one machine. A simulated microscope and the real daemon, each a process of its own."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from wbcd.cli.common import EXAMPLES, RESEARCH_ONLY, FiniteRange, goes_on, quiet_console
from wbcd.cli.printing import SIMULATED_MODEL, say
from wbcd.errors import BadValue, DatabaseUnavailable, SchemaMismatch, StageFailed

MARKER = ".wbcd-demo"
LOOK_S = 1.0
PLAIN_EVERY_S = 10.0
SAMPLE = "demo"
SPARE = 0.1
"""Share of good acquisitions beyond those asked for: a few are refused by a check that errs on the safe side."""


@dataclass(frozen=True, slots=True)
class Places:
    """Everything that the demo writes, in one folder."""

    root: Path

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def database(self) -> Path:
        return self.root / "wbcd.db"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def picture(self) -> Path:
        return self.root / "representative-cells.png"

    def url(self) -> str:
        return f"sqlite:///{self.database.absolute()}"

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"


@click.command(epilog=EXAMPLES["demo"])
@click.option(
    "--cells",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="Good cells to count, one an acquisition; a tenth more is made.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--defects", type=FiniteRange(0, 1), default=0.1, show_default=True, help="Fraction of bad acquisitions added.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True)
@click.option("--model", default="reference", show_default=True, help="Model bundle: a folder, or `reference`.")
@goes_on("The next `wbcd demo` empties its folder and begins anew.")
def demo(cells: int, seed: int, defects: float, out: Path, model: str) -> None:
    """Simulated microscope -> folder -> daemon -> SQLite -> live counts. All cells are simulated."""
    places = Places(out)
    prepare(places)
    console = quiet_console()
    say(f"wbcd demo: {cells} simulated cells into {places.incoming}. {RESEARCH_ONLY}")
    started = time.monotonic()
    with (
        _child(_daemon(places, model), places.log("daemon")) as daemon,
        _child(_microscope(places, cells, seed, defects), places.log("microscope"), OMP_NUM_THREADS="1") as microscope,
    ):
        _follow(console, places, daemon, microscope)
        _stop(daemon)
    _conclude(console, places, time.monotonic() - started)


def prepare(places: Places) -> None:
    """An empty folder of our own. Raises BadValue for a folder that holds what no demo made, or cannot be emptied."""
    root = places.root
    if root.exists() and not root.is_dir():
        raise BadValue(f"--out is {root}, which is not a folder.", action="Name another folder.")
    if root.exists() and any(root.iterdir()) and not (root / MARKER).is_file():
        raise BadValue(f"--out is {root}, which is not empty and was not made by a demo.", action="Name another folder.")
    try:
        _empty(places)
        places.incoming.mkdir(parents=True)
        (root / MARKER).write_text("made by `wbcd demo`, which empties this folder at its next run\n", encoding="utf-8")
    except OSError as error:
        raise BadValue(
            f"--out is {root}, which cannot be emptied and made anew: {error.filename}: {error.strerror}.",
            action="Name another folder, or end the program that still writes there.",
        ) from error


def _empty(places: Places) -> None:
    root = places.root
    for path in (places.incoming, places.output):
        if os.path.lexists(path):
            shutil.rmtree(path)
    for path in [places.picture, places.log("daemon"), places.log("microscope"), root / "truth.jsonl", *root.glob("wbcd.db*")]:
        path.unlink(missing_ok=True)


# --- the two processes -------------------------------------------------------------------------


def _wbcd(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "wbcd.cli", *map(str, arguments)]


def _daemon(places: Places, model: str) -> list[str]:
    options = ("--watch-dir", places.incoming, "--output-dir", places.output, "--db", places.url())
    return _wbcd("run", *options, "--sample", SAMPLE, "--model", model)


def acquisitions(cells: int, defects: float) -> int:
    """How many to simulate so that ``cells`` are counted: the defective come on top, and a tenth for good ones refused."""
    good = math.ceil(cells * (1 + SPARE))
    return math.ceil(good / (1 - defects)) if defects < 1 else good


def _microscope(places: Places, cells: int, seed: int, defects: float) -> list[str]:
    options = ("--cells", str(acquisitions(cells, defects)), "--seed", str(seed), "--defects", str(defects), "--sample", SAMPLE)
    return _wbcd("simulate", places.incoming, *options, "--truth", places.root / "truth.jsonl", "--quiet")


@contextmanager
def _child(command: list[str], log: Path, **extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child whose output goes to a log file; it never outlives the demo."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WBCD_")}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"} | extra  # two programs share the cores: none may spin while it waits
    environment |= {"WBCD_WATCH_QUIET_S": "0.5", "WBCD_WATCH_RESCAN_S": "5", "WBCD_SERVICE_HEARTBEAT_S": "1"}
    with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream, env=environment) as child:
        try:
            yield child
        finally:
            _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(90)
        except subprocess.TimeoutExpired:
            child.kill()


def _follow(console: Any, places: Places, daemon: subprocess.Popen[bytes], microscope: subprocess.Popen[bytes]) -> None:
    """Show the counts until the microscope has ended and each of its files has its outcome."""
    with _display(console) as show:
        while not _finished(places, microscope):
            _demand_alive(places, daemon, microscope)
            show(_status(places), _written(places))
            time.sleep(LOOK_S)
        show(_status(places), _written(places))


def _demand_alive(places: Places, daemon: subprocess.Popen[bytes], microscope: subprocess.Popen[bytes]) -> None:
    for name, child in (("daemon", daemon), ("microscope", microscope)):
        ended = child.poll()
        if ended is not None and (ended != 0 or child is daemon):
            tail = places.log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            raise StageFailed(f"The {name} ended with status {ended}: " + " | ".join(tail))


def _finished(places: Places, microscope: subprocess.Popen[bytes]) -> bool:
    if microscope.poll() != 0:
        return False
    status = _status(places)
    return status is not None and status.outcomes >= _written(places)


def _written(places: Places) -> int:
    from wbcd.acquisition.candidate import is_candidate

    return sum(is_candidate(path) for path in places.incoming.iterdir())


def _status(places: Places) -> Any:
    from wbcd.report.counts import read_status

    try:
        return read_status(places.url())
    except (DatabaseUnavailable, SchemaMismatch):  # the daemon has not made it yet
        return None


# --- what is seen --------------------------------------------------------------------------------


@contextmanager
def _display(console: Any) -> Iterator[Any]:
    """A live table on a terminal, a plain line every few seconds elsewhere."""
    if not console.is_terminal:
        yield _PlainDisplay(console)
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        yield lambda status, written: live.update(_panel(status, written), refresh=True)


class _PlainDisplay:
    def __init__(self, console: Any) -> None:
        self._console = console
        self._next_s = 0.0

    def __call__(self, status: Any, written: int) -> None:
        from wbcd.cli.printing import counts_line

        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + PLAIN_EVERY_S
        done = status.outcomes if status else 0
        counts = counts_line([row.as_dict() for row in status.counts]) if status else "starting"
        say(f"{written} written, {done} done: {counts}")


def _panel(status: Any, written: int) -> Any:
    from rich.console import Group
    from rich.text import Text

    from wbcd.cli.printing import counts_table

    if status is None:
        return Text(f"{written} acquisitions written; the daemon is starting (it loads the model first)")
    head = (
        f"{written} acquisitions written; {status.measured} measured, {status.rejected} rejected, "
        f"{status.set_aside} set aside; {status.per_minute:.0f} a minute"
    )
    learnt = f"; {SIMULATED_MODEL}" if status.simulated_model else ""
    table = counts_table([row.as_dict() for row in status.counts], f"running differential (simulated cells{learnt})")
    return Group(Text(head), table)


def _conclude(console: Any, places: Places, seconds: float) -> None:
    from wbcd.cli.printing import counts_table

    status = _status(places)
    if status is None:
        raise StageFailed(f"The daemon made no database; its log is {places.log('daemon')}.")
    console.print(counts_table([row.as_dict() for row in status.counts], f"differential of {status.cells} simulated cells"))
    for row in status.rejections:
        say(f"  {row.n} {row.outcome.replace('_', ' ')}: {row.reason}")
    say(f"{status.outcomes} acquisitions in {seconds:.0f} s.")
    picture = _picture(places, simulated_model=bool(status.simulated_model))
    say(f"Representative cells (MIP in three planes, six values): {picture}")
    say("Query the database with:")
    say(f"  sqlite3 {shlex.quote(str(places.database))} 'select * from differential_count'")
    learnt = f", {SIMULATED_MODEL}" if status.simulated_model else ""
    say(f"Simulated cells{learnt}. {RESEARCH_ONLY}")


def _picture(places: Places, *, simulated_model: bool) -> Path:
    from wbcd.report.figures import representative_cells
    from wbcd.store import Ledger

    with Ledger.open(places.url(), create=False) as ledger:
        rows = [_row(cell) for cell in ledger.cells(outcome="measured", current=True, with_thumbnails=True)]
    return representative_cells(rows, places.picture, simulated=True, simulated_model=simulated_model)


def _row(cell: Any) -> dict[str, Any]:
    names = ("cell_id", "sample", "number", "label", "counted_as", "probability", "thumbnail_png")
    return {**{name: getattr(cell, name) for name in names}, **dataclasses.asdict(cell.morphology)}
