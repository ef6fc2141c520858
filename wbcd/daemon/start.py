"""Start the daemon with everything real. The heavy rooms are imported while the service is already saying "starting"."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import cast

from wbcd.acquisition.watch import FolderWatcher, Mode
from wbcd.config import Config
from wbcd.daemon.desk import LedgerLike
from wbcd.daemon.logs import Limiter, RateLimit, configure_logging
from wbcd.daemon.places import demand_apart
from wbcd.daemon.service import Service
from wbcd.daemon.stages import Stages
from wbcd.errors import BadValue

RETRIED_S = 2.0
"""How long the ledger itself tries a lost PostgreSQL again; then the line pauses, says why in `wbcd status`, and tries on."""


def start(config: Config, *, until_idle: bool = False) -> None:
    """Run until stopped. Raises BadValue without a watch folder, or when it, the output folder and the database do not lie
    apart; StageFailed when a stage breaks.

    A folder that is absent now (a share not mounted yet) is awaited, except ``until_idle``: that would end at once.
    """
    watcher = make_watcher(config, awaited=not until_idle)
    limiter = Limiter(RateLimit(config.service.log_lines_min))
    log = configure_logging(config.service, limiter=limiter)
    service = Service(
        config,
        make_stages=lambda: _stages(config),
        open_ledger=lambda stages: _ledger(config, stages),
        watcher=watcher,
        log=log,
        stop_when_idle=until_idle,
        on_beat=lambda: limiter.tell(log),
    )
    demand_apart(config)
    try:
        service.run()
    finally:
        limiter.tell(log, all_of_it=True)


def make_watcher(config: Config, *, awaited: bool = True) -> FolderWatcher:
    """The watcher of the configured folder. Raises :class:`BadValue` when none is set, when it is a file, or, unless it may
    be ``awaited``, when it is absent."""
    watch = config.watch
    if watch.dir is None:
        raise BadValue(
            "watch.dir is not set; it must be the folder that the microscope writes into.", action="Give --watch-dir."
        )
    if _is_no_folder(watch.dir, absent=not awaited):
        raise BadValue(f"watch.dir is {watch.dir}, which is not a folder.", action="Make or mount it, or give another.")
    mode = cast(Mode, watch.mode)  # one of the three: the configuration is checked
    return FolderWatcher(watch.dir, mode=mode, rescan_s=watch.rescan_s, quiet_s=watch.quiet_s, newest_first=watch.newest_first)


def _is_no_folder(path: Path, *, absent: bool) -> bool:
    """True when the path is something else than a folder; ``absent`` when it cannot be examined."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return absent


def _stages(config: Config) -> Stages:
    from wbcd.daemon.assembly import clean_output, make_stages

    clean_output(config)
    return make_stages(config)


def _ledger(config: Config, stages: Stages) -> LedgerLike:
    from wbcd.daemon.assembly import open_ledger
    from wbcd.store.engine import Retry
    from wbcd.store.urls import parse_url

    waits_itself = parse_url(config.database.url).kind == "sqlite"  # its busy timeout
    return open_ledger(config, stages, retry=None if waits_itself else Retry(RETRIED_S))
