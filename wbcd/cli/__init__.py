"""The ``wbcd`` command. Each verb's work is imported when it runs, so that `wbcd --help` and `wbcd status` are quick."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from wbcd import __version__
from wbcd.cli.common import EXAMPLES, LostOutput, Verbs, exits, lost_output, open_output

VERBS = {
    "demo": ("wbcd.cli.demo", "demo", "Simulated microscope, daemon and live counts, all on this machine."),
    "simulate": ("wbcd.cli.simulate", "simulate", "Write acquisitions of simulated cells into a folder."),
    "run": ("wbcd.cli.run", "run", "Watch the microscope's folder and process what comes (the daemon)."),
    "process": ("wbcd.cli.process", "process", "Process files or folders once and print each outcome."),
    "reprocess": ("wbcd.cli.reprocess", "reprocess", "Process stored acquisitions again with another recipe."),
    "retry": ("wbcd.cli.retry", "retry", "Process again what was set aside."),
    "sample": ("wbcd.cli.retry", "sample", "Assign acquisitions to another sample."),
    "calibrate": ("wbcd.cli.calibrate", "calibrate", "Measure the instrument from a bead or an empty field; --store it."),
    "status": ("wbcd.cli.status", "status", "What the daemon does, and the counts so far."),
    "counts": ("wbcd.cli.status", "counts", "The differential count with 95 % confidence limits."),
    "cells": ("wbcd.cli.cells", "cells", "Cells one by one, with the id that `wbcd review` wants."),
    "db": ("wbcd.cli.database", "db", "Make, upgrade and back up the database."),
    "verify": ("wbcd.cli.verify", "verify", "Check that what is stored still holds."),
    "retention": ("wbcd.cli.retention", "retention", "Remove old tomograms; rows stay."),
    "label": ("wbcd.cli.label", "label", "Say what the cells of a sorted sample are."),
    "review": ("wbcd.cli.label", "review", "Record what a person saw in one cell."),
    "model": ("wbcd.cli.model", "model", "List and show model bundles."),
    "dataset": ("wbcd.cli.training", "dataset", "Make training sets."),
    "train": ("wbcd.cli.training", "train", "Train a classifier on a training set."),
    "evaluate": ("wbcd.cli.training", "evaluate", "Measure a model bundle on a training set's test part."),
    "paper": ("wbcd.cli.paper", "paper", "The paper's experiments: tables, plots, and a JSON of the figures."),
    "doctor": ("wbcd.cli.doctor", "doctor", "Check this machine, the configuration, the database and the folder."),
    "config": ("wbcd.cli.configuration", "config", "Show or check the configuration."),
}


class LazyGroup(Verbs):
    """Knows its verbs and their one-line help; imports a verb's module only when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In the order in which a person meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The verb, imported."""
        if cmd_name not in VERBS:
            return None
        module, name, _ = VERBS[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; an error of wbcd ends the process with its status and its sentence."""
        with exits():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """The list of `wbcd --help`, without importing any verb."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in VERBS.items()])


@click.group(cls=LazyGroup, epilog=EXAMPLES["wbcd"], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wbcd")
def cli() -> None:
    """White-blood-cell differentials from label-free refractive-index tomography.

    Research use only: not for diagnosis.
    """


def main() -> None:
    """Entry point of the console script."""
    open_output()
    try:
        try:
            cli(prog_name="wbcd")
        finally:
            sys.stdout.flush()  # what the interpreter would do at its end, and complain of in its own words
    except LostOutput as error:
        sys.exit(lost_output(error))
