"""The stored calibrations of the instruments, and how far each acquisition drifts from its own.

``wbcd calibrate --store`` writes ``<output>/calibration/<instrument>.json``, whole or not at all; the daemon looks at it for
each acquisition, so a new calibration counts from the next one on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from wbcd import __version__
from wbcd.daemon.drift import UNNAMED
from wbcd.errors import BadValue, not_written
from wbcd.recipe import Recipe
from wbcd.reconstruction.instrument import Calibration, drift, judge_drift
from wbcd.records import Acquisition, FieldStack, FringeReport, Verdict

FOLDER = "calibration"
MAX_BYTES = 1 << 20
_log = structlog.get_logger(__name__)


def calibration_path(output: Path, instrument_id: str | None) -> Path:
    """Where the calibration of an instrument lies; files that name no instrument share one.

    A name that cannot be a file's own gets a digest, so that no two instruments share one. What an earlier wbcd wrote without
    the digest is used where it states this instrument.
    """
    if not instrument_id:
        return output / FOLDER / f"{UNNAMED}.json"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", instrument_id).strip(".")[:100]
    before = output / FOLDER / f"{name or UNNAMED}.json"
    if name == instrument_id and name != UNNAMED:
        return before
    digest = hashlib.blake2b(instrument_id.encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()
    path = before.with_name(f"{before.stem}-{digest}.json")
    return before if not path.exists() and _is_of(before, instrument_id) else path


def _is_of(path: Path, instrument_id: str) -> bool:
    try:
        with path.open("rb") as stream:
            stated: object = json.loads(stream.read(MAX_BYTES))["instrument_id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return stated == instrument_id


def store_calibration(path: Path, calibration: Calibration, about: Mapping[str, Any]) -> Path:
    """Write it with ``about`` (where it is from), whole or not at all. Raises NoSpace or StoreError, naming the path."""
    document = {"format": "wbcd-calibration", "format_version": 1, "made_at": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps({**document, "wbcd_version": __version__, **about, "calibration": calibration.as_json()}, indent=1)
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with hidden.open("w", encoding="utf-8") as stream:
                stream.write(text + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            hidden.replace(path)
        finally:
            hidden.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise not_written(path, error) from error
    return path


def load_calibration(path: Path) -> Calibration | None:
    """The stored calibration, None where there is none. Raises BadValue for a file that is not one of wbcd's."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadValue(f"{path} cannot be read: {error.strerror}.") from error
    try:
        document = json.loads(raw)
        return Calibration.from_json(document["calibration"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadValue(f"{path} is no calibration of wbcd: {error}. Store a new one with wbcd calibrate --store.") from error


class Instruments:
    """Judges each acquisition's drift against the stored calibration of its instrument; none stored: nothing is judged."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._known: dict[Path, tuple[int, Calibration | None]] = {}

    def judge(self, acquisition: Acquisition, fringes: FringeReport, fields: FieldStack, recipe: Recipe) -> Verdict:
        """One check, or none where no calibration is stored (a broken one is named in the log and counts as none)."""
        calibration = self._calibration(calibration_path(self._output, acquisition.instrument_id))
        return Verdict() if calibration is None else judge_drift(drift(calibration, fringes, fields), recipe)

    def _calibration(self, path: Path) -> Calibration | None:
        try:
            state = path.stat().st_mtime_ns
        except OSError:
            return None
        seen = self._known.get(path)
        if seen is None or seen[0] != state:
            try:
                found = load_calibration(path)
            except BadValue as error:
                _log.warning("calibration.unusable", path=str(path), reason=error.message)
                found = None
            seen = self._known[path] = (state, found)
        return seen[1]
