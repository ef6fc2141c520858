"""`wbcd doctor`: is everything here that the daemon needs, and what to do where it is not."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from wbcd import __version__
from wbcd.cli import machine
from wbcd.cli.common import EXAMPLES, installed_options, to_json
from wbcd.cli.printing import SIMULATED_MODEL
from wbcd.config import redact
from wbcd.errors import NoRight, WbcdError
from wbcd.names import shown

if TYPE_CHECKING:
    from wbcd.config import Config

Finding = dict[str, str]

GIB: Final = 2**30
MIN_FREE_BYTES: Final = 2 * GIB
MIN_FREE_FILES: Final = 10_000
MIN_TEMPORARY_BYTES: Final = GIB // 4
MIN_SHARED_BYTES: Final = GIB
MIN_OPEN_FILES: Final = 1024
OLDEST_PYTHON: Final = (3, 11)
OLDEST_SQLITE: Final = (3, 35, 0)  # RETURNING and DROP COLUMN
WAL_RESET_FAULT: Final = ((3, 7, 0), (3, 51, 3))
MOST_DRIFT_S: Final = 0.02
MOST_AHEAD_S: Final = 120.0
EARLIEST_WALL_S: Final = 1_767_225_600.0  # 2026-01-01: a clock before the program's time was never set


@click.command(epilog=EXAMPLES["doctor"])
@click.option("--json", "as_json", is_flag=True, help="A JSON list of findings.")
@installed_options
def doctor(config: Config, as_json: bool) -> None:
    """Check this machine, the configuration, the database, the model and the folders, and say what to do.

    Exit status: 0 when nothing is wrong, 1 otherwise.
    """
    found = [finding for check in CHECKS for finding in _guarded(check, config)]
    click.echo(to_json(found) if as_json else "\n".join(map(_line, found)))
    sys.exit(1 if any(item["verdict"] == "wrong" for item in found) else 0)


def _line(item: Finding) -> str:
    advice = f" -> {item['do']}" if item["do"] else ""
    return shown(f"{item['verdict']:5} {item['what']}: {item['message']}{advice}")


def _guarded(check: Callable[[Config], Iterator[Finding]], config: Config) -> Iterator[Finding]:
    what = check.__name__.strip("_").replace("_", " ")
    try:
        yield from check(config)
    except WbcdError as error:
        yield _wrong(what, error.message, error.advice)
    except (OSError, ImportError) as error:
        yield _wrong(what, str(error), "Correct what it says, then ask again.")


def _good(what: str, message: str) -> Finding:
    return {"verdict": "good", "what": what, "message": message, "do": ""}


def _note(what: str, message: str, do: str = "") -> Finding:
    return {"verdict": "note", "what": what, "message": message, "do": do}


def _wrong(what: str, message: str, do: str) -> Finding:
    return {"verdict": "wrong", "what": what, "message": message, "do": do}


# --- programs and devices -----------------------------------------------------------------------------------


def _python(config: Config) -> Iterator[Finding]:
    version = machine.python_version()
    shown = _dotted(version)
    if version < OLDEST_PYTHON:
        yield _wrong("python", f"{shown} is older than {_dotted(OLDEST_PYTHON)}", "Install wbcd into a newer Python.")
    else:
        yield _good("python", f"{shown}; wbcd {__version__}, recipe {config.recipe.recipe_id}")


def _processor(config: Config) -> Iterator[Finding]:
    """torch and CUDA: what is configured, what is there, and why they differ."""
    wanted, facts = config.classification.device, machine.torch_facts()
    if facts.devices:
        yield from _with_cuda(wanted, facts)
        return
    why = _why_no_cuda(facts)
    if wanted.startswith("cuda"):
        yield _wrong("device", f"{wanted} is configured, but {why[0]}", why[1])
        return
    yield _good("device", f"cpu ({os.cpu_count()} cores), torch {facts.version}")
    if machine.has_nvidia_driver() and wanted == "auto":
        yield _note("device", f"there is an NVIDIA driver, but {why[0]}: the CPU is used", why[1])


def _with_cuda(wanted: str, facts: machine.TorchFacts) -> Iterator[Finding]:
    number = int(wanted.partition(":")[2] or 0) if wanted.startswith("cuda") else 0
    if number >= len(facts.devices):
        here = f"there are {len(facts.devices)} devices, numbered from 0"
        yield _wrong("device", f"{wanted} is configured; {here}", "Correct [classification] device.")
        return
    used = "cpu" if wanted == "cpu" else f"cuda:{number} ({facts.devices[number]})"
    yield _good("device", f"{used}, torch {facts.version}, CUDA {facts.cuda}")


def _why_no_cuda(facts: machine.TorchFacts) -> tuple[str, str]:
    if facts.cuda is None:
        return f"torch {facts.version} is a build without CUDA", "Install torch from the index that has CUDA builds."
    if not machine.has_nvidia_driver():
        return "no NVIDIA driver is loaded", 'Install the driver (nvidia-smi must answer), or set device = "cpu".'
    action = "Compare nvidia-smi with that version; in the service check DeviceAllow=char-nvidia."
    return f"torch {facts.version} (CUDA {facts.cuda}) sees no device", action


def _sqlite(config: Config) -> Iterator[Finding]:
    version = machine.sqlite_version()
    shown = _dotted(version)
    if version < OLDEST_SQLITE:
        yield _wrong("sqlite", f"{shown} is older than {_dotted(OLDEST_SQLITE)}", "Install a Python with a newer SQLite.")
        return
    first, fixed = WAL_RESET_FAULT
    if first <= version < fixed and config.database.url.startswith("sqlite"):
        fault = f"{shown} can damage a database when two programs write at the same moment (fixed in {_dotted(fixed)})"
        yield _note("sqlite", fault, "Let only wbcd write, from this machine; it keeps its own processes apart by a lock.")
    else:
        yield _good("sqlite", shown)


def _reader(_config: Config) -> Iterator[Finding]:
    """The child that opens foreign files: does it start, and what does the kernel take away from it?"""
    taken = machine.reader_guards()
    missing = [guard for guard in ("seccomp", "landlock") if guard not in taken]
    if not missing:
        own_user = " and its user" if "own_user" in taken else ""
        yield _good("reader", f"the child that opens foreign files gives up network, programs, other files{own_user}")
        return
    message = f"the child that opens foreign files starts, but the kernel refuses it {' and '.join(missing)}"
    advice = (
        "Its limits on memory and time hold all the same."
        " Linux 5.13 or later, lsm=landlock and the unit's SystemCallFilter= give both."
    )
    yield _note("reader", message, advice)


# --- folders ------------------------------------------------------------------------------------------------


def _watch_folder(config: Config) -> Iterator[Finding]:
    folder = config.watch.dir
    if folder is None:
        yield _note("watch folder", "none is configured", "`wbcd run` needs one: [watch] dir or --watch-dir.")
    elif not folder.is_dir():
        yield _wrong("watch folder", f"{folder} is not a folder", "Make it or mount it.")
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield _wrong("watch folder", f"{folder} cannot be read by this user", "Grant the user read and search permission.")
    else:
        yield _good("watch folder", f"{folder} ({machine.file_system_of(folder) or 'unknown file system'})")
        yield from _others_watching(folder, config.output.dir)
        yield from _watching(config.watch.mode, folder)


def _others_watching(folder: Path, output: Path) -> Iterator[Finding]:
    from wbcd.daemon.mark import markers_of
    from wbcd.daemon.state import read_state

    own = (read_state(output).details or {}).get("pid")
    others = ", ".join(map(str, markers_of(folder, but=own)))
    if others:
        why = f"another daemon watches {folder} too: {others}"
        yield _note("watch folder", why, "Each daemon counts every file of the folder; stop one unless that is wanted.")


def _watching(mode: str, folder: Path) -> Iterator[Finding]:
    from wbcd.acquisition.mounts import is_network_type

    kind = machine.file_system_of(folder)
    if not is_network_type(kind):
        if mode != "polling":
            yield from _inotify(folder)
        return
    if mode == "inotify":
        why = f"{folder} is on {kind}: the kernel does not see what other hosts write there"
        yield _wrong("watch mode", why, 'Set [watch] mode = "auto"; the rescan finds everything meanwhile.')
    else:
        yield _note("watch mode", f"{folder} is on {kind}, a network file system: it is polled")


def _inotify(folder: Path) -> Iterator[Finding]:
    watches, instances = machine.inotify_limit("max_user_watches"), machine.inotify_limit("max_user_instances")
    queue, needed = machine.inotify_limit("max_queued_events"), machine.count_folders(folder)
    if watches is None or instances is None:
        yield _note("inotify", "the kernel does not say its limits", 'Set [watch] mode = "polling" if files come late.')
        return
    if needed > watches:
        why = f"{needed} folders need a watch each; the kernel allows {watches}"
        yield _wrong("inotify", why, "Raise fs.inotify.max_user_watches (sysctl), or watch a smaller folder.")
    elif instances < 8:
        why = f"the kernel allows {instances} inotify instances a user"
        yield _wrong("inotify", why, "Raise fs.inotify.max_user_instances to 128 (sysctl).")
    else:
        yield _good("inotify", f"{needed} of {watches} watches, {queue} queued events; what overflows, the rescan finds")


def _folders_apart(config: Config) -> Iterator[Finding]:
    from wbcd.daemon.places import demand_apart

    if config.watch.dir is not None:
        demand_apart(config)
        yield _good("folders apart", "watch folder, output folder and database lie apart")


def _output_folder(config: Config) -> Iterator[Finding]:
    folder = _existing(config.output.dir)
    if not os.access(folder, os.W_OK | os.X_OK):
        yield _wrong("output folder", f"{folder} cannot be written by this user", "Give it to the user of the service.")
        return
    yield from _enough_room("output folder", config.output.dir, folder, MIN_FREE_BYTES)
    yield from _not_for_all("output folder", folder)


def _enough_room(what: str, shown: Path, folder: Path, needed: int) -> Iterator[Finding]:
    room = machine.room_of(folder)
    if room.free_bytes < needed:
        why = f"{room.free_bytes / GIB:.2f} GiB are free on {folder}; at least {needed / GIB:g} GiB are needed"
        yield _wrong(what, why, "Free space, or keep fewer tomograms (`wbcd retention`).")
    elif room.free_files is not None and room.free_files < MIN_FREE_FILES:
        why = f"{room.free_files} files can still be made on {folder}; at least {MIN_FREE_FILES} are needed"
        yield _wrong(what, why, "Remove small files, or make the file system with more inodes.")
    else:
        yield _good(what, f"{shown}, {room.free_bytes / GIB:.0f} GiB free")


def _not_for_all(what: str, folder: Path) -> Iterator[Finding]:
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        yield _wrong(what, f"everybody may write into {folder} (mode {stat.S_IMODE(mode):o})", f"chmod o-w {folder}")


def _temporary_folder(_config: Config) -> Iterator[Finding]:
    folder = Path(tempfile.gettempdir())
    if not os.access(folder, os.W_OK | os.X_OK):
        yield _wrong("temporary folder", f"{folder} cannot be written by this user", "Set TMPDIR to one that can.")
        return
    yield from _enough_room("temporary folder", folder, folder, MIN_TEMPORARY_BYTES)


def _shared_memory(config: Config) -> Iterator[Finding]:
    folder = machine.SHARED_MEMORY
    if not config.limits.isolate:
        yield _note("shared memory", "files are read in the daemon itself", "Set [limits] isolate = true for untrusted files.")
    elif not folder.is_dir():
        yield _wrong("shared memory", f"{folder} is not there; the isolated readers hand volumes over in it", "Mount a tmpfs.")
    else:
        free = machine.room_of(folder).free_bytes
        message = f"{free / GIB:.2f} GiB free in {folder}"
        larger = "Make it larger than the largest volume (in a container --shm-size=2g)."
        yield _good("shared memory", message) if free >= MIN_SHARED_BYTES else _note("shared memory", message, larger)


def _open_files(_config: Config) -> Iterator[Finding]:
    limit = machine.open_files_limit()
    if limit < MIN_OPEN_FILES:
        why = f"a process may open {limit} files; {MIN_OPEN_FILES} are needed"
        yield _wrong("open files", why, "Raise LimitNOFILE= in the unit, or `ulimit -n`.")
    else:
        yield _good("open files", f"at most {limit}")


def _password_file(config: Config) -> Iterator[Finding]:
    path = config.database.password_file
    if "@" in config.database.url and redact(config.database.url) != config.database.url:
        yield _wrong("password", "the database URL holds a password", "Move it into [database] password_file.")
    if path is None:
        return
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        why = f"others may use {path} (mode {stat.S_IMODE(mode):o})"
        yield _wrong("password", why, f"chmod 600 {path}, or use the systemd credential.")
    else:
        yield _good("password", f"{path}, of this user alone")


# --- clock --------------------------------------------------------------------------------------------------


def _clock(config: Config) -> Iterator[Finding]:
    wall, drift, synchronised = machine.wall_s(), machine.clock_drift_s(), machine.clock_is_synchronised()
    harmless = "Only labels are affected; durations are measured by another clock."
    if wall < EARLIEST_WALL_S:
        yield _wrong("clock", "the wall clock is before 2026: it was never set", "Set it (timedatectl set-ntp true).")
    elif abs(drift) > MOST_DRIFT_S:
        why = f"the wall clock moved {drift * 1000:+.0f} ms against the monotonic one within a moment"
        yield _note("clock", why, f"Look who sets it (a virtual machine's tools beside NTP?). {harmless}")
    elif synchronised is False:
        yield _note("clock", "the kernel says that no time server sets it", f"timedatectl set-ntp true. {harmless}")
    else:
        yield _good(
            "clock", "set by a time server" if synchronised else "runs evenly; the kernel says nothing of a time server"
        )
    yield from _clock_of_share(config.watch.dir, wall)


def _clock_of_share(folder: Path | None, wall: float) -> Iterator[Finding]:
    if folder is None or not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return
    newest = machine.newest_mtime_s(folder)
    if newest is not None and newest - wall > MOST_AHEAD_S:
        why = f"the newest file in {folder} is dated {newest - wall:.0f} s in the future"
        yield _note("clock", why, "Set the clock of the microscope or of the share.")


# --- database and model -------------------------------------------------------------------------------------


def _database(config: Config) -> Iterator[Finding]:
    from wbcd.store import Ledger, current_revision
    from wbcd.store.schema import SCHEMA_REVISION
    from wbcd.store.urls import parse_url

    url = config.database_url()
    target = parse_url(url)
    if target.path is not None:
        yield from _database_file(target.path)
    revision = current_revision(url)
    if revision is None:
        made_by = "`wbcd run` or `wbcd db upgrade` makes it." if target.path else "Run `wbcd db upgrade` as the schema's owner."
        yield _note("database", f"{redact(config.database.url)} is not made yet", made_by)
        return
    if revision != SCHEMA_REVISION:
        why = f"{redact(config.database.url)} has schema {revision}; this wbcd needs {SCHEMA_REVISION}"
        newer = revision > SCHEMA_REVISION
        yield _wrong("migrations", why, "Install the newer wbcd." if newer else "Back it up, then run `wbcd db upgrade`.")
        return
    with Ledger.open(url, create=False) as ledger:
        health = ledger.check(deep=True)
    yield _good("database", f"{health.database}: {health.server}, schema {health.revision}, no damage found")
    yield from (_note("database", warning) for warning in health.warnings if "SQLite" not in warning)  # said of SQLite above


def _algorithms(config: Config) -> Iterator[Finding]:
    """Current results that an older algorithm made: right for their time, and not to be compared with today's."""
    from wbcd.store import Ledger, current_revision
    from wbcd.store.outdated import count_outdated
    from wbcd.store.schema import SCHEMA_REVISION

    url = config.database_url()
    if current_revision(url) != SCHEMA_REVISION:
        return  # said of the database above
    with Ledger.open(url, create=False) as ledger:
        try:
            old, every = count_outdated(ledger)
        except NoRight:
            yield _note("algorithms", "this role may not read the recipes", "Ask as wbcd_daemon or wbcd_auditor.")
            return
    if old:
        why = f"{old} of {every} current results were made by older algorithms than those of this wbcd"
        yield _note("algorithms", why, "`wbcd reprocess --outdated` names them; see docs/how-to/upgrade.md.")
    else:
        yield _good("algorithms", f"no current result of {every} was made by an older one")


def _database_file(path: Path) -> Iterator[Finding]:
    from wbcd.acquisition.mounts import is_network_type

    folder = _existing(path.parent)
    kind = machine.file_system_of(folder)
    if is_network_type(kind):
        why = f"{path} is on {kind}: SQLite's locks and its log do not hold on a network file system"
        yield _wrong("database", why, "Put it on a local disk, or use PostgreSQL.")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
        yield _wrong(
            "database", f"{path} cannot be written by this user", "Give the file and its folder to the user of the service."
        )
    yield from _not_for_all("database", folder)
    yield from (item for item in _enough_room("database disk", path, folder, MIN_FREE_BYTES) if item["verdict"] == "wrong")


def _model(config: Config) -> Iterator[Finding]:
    from wbcd.classification import load_bundle
    from wbcd.classification.bundle import begun_on_simulated

    bundle = load_bundle(config.classification.model)  # compares the digest of the weights with the card's
    yield _good("model", f"{bundle.model_id}, digest as stated: {', '.join(bundle.classes)}")
    if bundle.model.simulated:
        yield _note("model", SIMULATED_MODEL)
    elif begun_on_simulated(bundle.model):
        yield _note("model", "measured on measured cells; the weights that it began with were learnt on simulated ones")


def _daemon(config: Config) -> Iterator[Finding]:
    """The one of this output folder, by its state file."""
    from wbcd.cli.status import HEALTHY
    from wbcd.daemon.state import read_state

    found = read_state(config.output.dir)
    said = found.state + (f": {found.reason}" if found.reason else "")
    if found.state in (*HEALTHY, "stopped"):
        yield _good("daemon", said)
    elif found.state == "absent":
        yield _good("daemon", "none has run with this output folder yet")
    else:
        yield _wrong("daemon", said, "Mend what it says; it goes on by itself, or by a restart when its process is gone.")


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _python,
    _processor,
    _sqlite,
    _reader,
    _watch_folder,
    _folders_apart,
    _output_folder,
    _temporary_folder,
    _shared_memory,
    _open_files,
    _password_file,
    _clock,
    _database,
    _algorithms,
    _model,
    _daemon,
)
