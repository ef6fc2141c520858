"""`wbcd run`: the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wbcd.cli.common import EXAMPLES, accept_own_option, accepting_own, site_options, with_setting

if TYPE_CHECKING:
    from wbcd.config import Config


@click.command(epilog=EXAMPLES["run"])
@click.option("--keep-tomograms", is_flag=True, help="Keep each cell's RI volume as OME-Zarr in the output folder.")
@click.option("--sample", help="Sample of files that name none.")
@click.option("--model", help="Model bundle: a folder, or `reference`.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@accept_own_option
@click.option("--until-idle", is_flag=True, help="Stop when everything in the folder has its outcome.")
@site_options
def run(
    config: Config,
    keep_tomograms: bool,
    sample: str | None,
    model: str | None,
    device: str | None,
    accept_own_tomograms: bool,
    until_idle: bool,
) -> None:
    """Watch the microscope's folder and process what comes.

    SIGTERM and SIGINT finish what is begun and end with status 0.
    """
    config = with_setting(config, "output", keep_tomograms=keep_tomograms or None)
    config = with_setting(config, "defaults", sample_id=sample)
    config = with_setting(config, "classification", model=model, device=device)
    config = accepting_own(config, accept_own_tomograms)
    from wbcd.daemon.start import start

    start(config, until_idle=until_idle)
