"""`wbcd process`: files or folders once, one outcome each, printed and stored."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wbcd.cli.common import (
    EXAMPLES,
    EXIT_IO,
    accept_own_option,
    accepting_own,
    complain,
    goes_on,
    site_options,
    to_json,
    with_setting,
)
from wbcd.cli.printing import say
from wbcd.cli.progress import Bar
from wbcd.names import shown

if TYPE_CHECKING:
    from wbcd.acquisition.ignored import Ignored
    from wbcd.config import Config

PATH_MAX = 4096
"""Bytes of a path that Linux takes, the zero at its end included."""


class Named(click.Path):
    """A path that is there, readable or not: what cannot be read, or is a link to nothing, is one file set aside.

    Click's own ``exists=True`` would refuse the whole command for one such file.
    """

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if (length := len(os.fsencode(value))) >= PATH_MAX:
            self.fail(f"Path '{shown(value)}' is {length} bytes long; the system takes {PATH_MAX - 1}.", param, ctx)
        if not os.path.lexists(value):
            self.fail(f"Path '{shown(value)}' does not exist.", param, ctx)
        return super().convert(value, param, ctx)


@click.command(epilog=EXAMPLES["process"])
@click.argument("paths", nargs=-1, required=True, type=Named(readable=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line and outcome.")
@click.option("--keep-tomograms", is_flag=True, help="Keep each cell's RI volume as OME-Zarr in the output folder.")
@click.option("--sample", help="Sample of files that name none.")
@click.option("--model", help="Model bundle: a folder, or `reference`.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@accept_own_option
@site_options
@goes_on("What has its line is stored; the same command goes on with the rest.")
def process(
    config: Config,
    paths: tuple[Path, ...],
    as_json: bool,
    keep_tomograms: bool,
    sample: str | None,
    model: str | None,
    device: str | None,
    accept_own_tomograms: bool,
) -> None:
    """Process files or folders once and print each outcome.

    Tomograms that wbcd keeps in the output folder are passed over where that lies in a folder given.

    Exit status: 0 when every file reached an outcome, whatever it was; 2 wrong usage; 74 when a folder could not be
    listed, which is named; 78 wrong configuration.
    """
    from wbcd.acquisition.ignored import Ignored, sentence

    config = with_setting(config, "output", keep_tomograms=keep_tomograms or None)
    config = with_setting(config, "defaults", sample_id=sample)
    config = with_setting(config, "classification", model=model, device=device)
    config = accepting_own(config, accept_own_tomograms)
    from wbcd.daemon.places import demand_apart

    demand_apart(config)
    if len(paths) == 1 and paths[0].is_dir() and config.watch.dir is None:
        # Below it no link is followed, and one reader serves all its folders.
        config = with_setting(config, "watch", dir=paths[0])
    ignored = Ignored()
    files, unlisted = candidates(paths, ignored)
    if not config.recipe.quality.accept_own_tomograms:
        files = _without_kept(config.output.dir, paths, files)
    for folder in unlisted:
        complain(_unlisted(folder))
    if ignored.count:
        complain(f"{sentence(ignored.count, ignored.examples)}.")
    if not files and not unlisted:
        raise click.UsageError(
            "no acquisition (*.h5, *.hdf5, *.tcf, *.zarr, *.zarr.zip, *.ozx, *.tif, *_Tomog.mat, sample*.mat) in "
            + ", ".join(map(shown, paths))
        )
    with Bar("processing", len(files), shown=not as_json) as bar:
        for made in outcomes(config, files):
            with bar.aside():
                click.echo(to_json(made)) if as_json else say(_line(made))
            bar.advance()
    if unlisted:
        sys.exit(EXIT_IO)


def candidates(paths: tuple[Path, ...], ignored: Ignored | None = None) -> tuple[list[Path], list[Path]]:
    """The files meant, and the folders that could not be listed, whose files nobody knows.

    Each file as named, each folder's acquisitions by age; a folder that is an acquisition is itself. What the folders hold
    besides is counted in ``ignored``.
    """
    from wbcd.acquisition import is_candidate
    from wbcd.acquisition.watch import scan

    files: list[Path] = []
    unlisted: list[Path] = []
    for path in paths:
        if path.is_dir() and not is_candidate(path):
            found, unreadable = scan(path, ignored)
            unlisted += unreadable
            files += sorted(found, key=lambda item: (found[item].mtime_ns, item))
        else:
            files.append(path)
    return _each_once(files), _each_once(unlisted)


def _each_once(paths: list[Path]) -> list[Path]:
    """A file that is named and lies in a named folder is one."""
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(path.absolute(), path)
    return list(once.values())


def _without_kept(output: Path, named: tuple[Path, ...], files: list[Path]) -> list[Path]:
    """``files`` without the images that wbcd keeps in its output folder, which are named in one line; a path given stays."""
    from wbcd.daemon.places import lies_in, read_mounts, resolved

    mounts = read_mounts()
    if not any(lies_in(output, folder, mounts) or lies_in(folder, output, mounts) for folder in named if folder.is_dir()):
        return files
    from wbcd.store.volumes import images_under

    kept = set(images_under(resolved(output)))
    left = [path for path in files if path in named or resolved(path) not in kept]
    if len(left) < len(files):
        click.echo(f"wbcd: {len(files) - len(left)} tomograms that wbcd keeps in {output} were passed over.", err=True)
    return left


def _unlisted(folder: Path) -> str:
    length = len(os.fsencode(folder.absolute()))
    if length < PATH_MAX:
        return f"{folder} cannot be listed; what is in it was not processed. Check the rights of the folder."
    return (
        f"{folder} cannot be listed: its path is {length} bytes long, and the system takes {PATH_MAX - 1}; what is in it was"
        " not processed. Move it up, or shorten the names above it."
    )


def outcomes(config: Config, files: list[Path]) -> Iterator[dict[str, Any]]:
    """Each file's outcome as its JSON object, in order, committed before it is given."""
    from wbcd.cli.outcomes import object_of
    from wbcd.daemon.assembly import make_stages, open_ledger
    from wbcd.daemon.logs import configure_logging
    from wbcd.daemon.once import ProcessOnce

    configure_logging(config.service)
    stages = make_stages(config)
    with closing(stages), open_ledger(config, stages) as ledger:
        once = ProcessOnce(config, stages, ledger)
        for path in files:
            yield object_of(once(path), path, config.output.dir)


def _line(made: dict[str, Any]) -> str:
    from wbcd.cli.outcomes import outcome_line

    return outcome_line(made)
