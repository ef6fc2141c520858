"""`wbcd doctor`: is everything here that the daemon needs, and what to do where it is not."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wbcd import __version__
from wbcd.cli.common import EXAMPLES, site_options, to_json
from wbcd.config import redact
from wbcd.errors import WbcdError

if TYPE_CHECKING:
    from wbcd.config import Config

Finding = dict[str, str]
MIN_FREE_GIB = 2.0


@click.command(epilog=EXAMPLES["doctor"])
@click.option("--json", "as_json", is_flag=True, help="A JSON list of findings.")
@site_options
def doctor(config: Config, as_json: bool) -> None:
    """Check this machine, the configuration, the database, the model and the folders.

    Exit status: 0 when nothing is wrong, 1 otherwise.
    """
    found = [finding for check in CHECKS for finding in _guarded(check, config)]
    if as_json:
        click.echo(to_json(found))
    else:
        for item in found:
            click.echo(f"{item['verdict']:5} {item['what']}: {item['message']}")
    sys.exit(1 if any(item["verdict"] == "wrong" for item in found) else 0)


def _guarded(check: Callable[[Config], Iterator[Finding]], config: Config) -> Iterator[Finding]:
    try:
        yield from check(config)
    except (WbcdError, OSError, ImportError) as error:
        text = error.sentence() if isinstance(error, WbcdError) else str(error)
        yield _wrong(check.__name__.strip("_").replace("_", " "), text)


def _good(what: str, message: str) -> Finding:
    return {"verdict": "good", "what": what, "message": message}


def _note(what: str, message: str) -> Finding:
    return {"verdict": "note", "what": what, "message": message}


def _wrong(what: str, message: str) -> Finding:
    return {"verdict": "wrong", "what": what, "message": message}


def _program(config: Config) -> Iterator[Finding]:
    yield _good("wbcd", f"{__version__}, Python {sys.version.split()[0]}, recipe {config.recipe.recipe_id}")


def _processor(config: Config) -> Iterator[Finding]:
    import torch

    from wbcd.classification.classifier import choose_device

    device = choose_device(config.classification.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    yield _good("device", f"{device} ({name}), torch {torch.__version__}")


def _watch_folder(config: Config) -> Iterator[Finding]:
    folder = config.watch.dir
    if folder is None:
        yield _note("watch folder", "none is configured; `wbcd run` needs one (--watch-dir)")
    elif not folder.is_dir():
        yield _wrong("watch folder", f"{folder} is not a folder; make or mount it")
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield _wrong("watch folder", f"{folder} cannot be read by this user")
    else:
        yield _good("watch folder", str(folder))


def _output_folder(config: Config) -> Iterator[Finding]:
    folder = _existing(config.output.dir)
    free_gib = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        yield _wrong("output folder", f"{folder} cannot be written by this user")
    elif free_gib < MIN_FREE_GIB:
        yield _wrong("output folder", f"{free_gib:.1f} GiB are free on {folder}; at least {MIN_FREE_GIB:.0f} GiB are needed")
    else:
        yield _good("output folder", f"{config.output.dir}, {free_gib:.0f} GiB free")


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


def _database(config: Config) -> Iterator[Finding]:
    from wbcd.store import Ledger, current_revision

    url = config.database_url()
    if current_revision(url) is None:
        yield _note("database", f"{redact(config.database.url)} is not made yet; `wbcd run` or `wbcd db upgrade` makes it")
        return
    with Ledger.open(url, create=False) as ledger:
        health = ledger.check(deep=True)
    yield _good("database", f"{health.database}: {health.server}, schema {health.revision}")
    for warning in health.warnings:
        yield _note("database", warning)


def _model(config: Config) -> Iterator[Finding]:
    from wbcd.classification import load_bundle

    bundle = load_bundle(config.classification.model)
    yield _good("model", f"{bundle.model_id}: {', '.join(bundle.classes)}")
    if bundle.model.simulated:
        yield _note("model", "trained and measured on simulated cells")


CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _program,
    _processor,
    _watch_folder,
    _output_folder,
    _database,
    _model,
)
