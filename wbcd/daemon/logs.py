"""Logging: one event per line, JSON for machines, columns on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from wbcd.config import ServiceSettings
from wbcd.daemon.pipeline import Log


def configure_logging(settings: ServiceSettings, stream: TextIO | None = None) -> Log:
    """Set structlog up for the whole process; logs go to standard error, results to standard output."""
    stream = stream or sys.stderr
    console = settings.log_format == "console" or (settings.log_format == "auto" and stream.isatty())
    shown: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shown,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    log: Log = structlog.get_logger("wbcd")
    return log
