"""What a daemon has left behind, compared with what it should have: outcomes row by row, volumes, temporaries."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers_spheres import cheap_settings, tiny_bundle, write_run
from helpers_zygote import Zygote

from wbcd.store.volumes import SUFFIX, TEMPORARY, read_tomogram

OUTCOMES = """
SELECT a.path, a.content_id, r.outcome, r.reason, c.number, c.volume_fl, c.dry_mass_pg, p.label, p.probability
FROM run r JOIN acquisition a ON a.id = r.acquisition_id
LEFT JOIN cell c ON c.run_id = r.id LEFT JOIN prediction p ON p.cell_id = c.id
ORDER BY a.content_id, c.number
"""


def rows(folder: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """Of ``folder/wbcd.db``."""
    connection = sqlite3.connect(f"file:{folder / 'wbcd.db'}?mode=ro", uri=True, timeout=20)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def outcome_table(folder: Path) -> list[tuple[Any, ...]]:
    """Every outcome with its cells, by file name."""
    return [(Path(row[0]).name, *row[1:]) for row in rows(folder, OUTCOMES)]


SAME_PROBABILITY = 1e-5
"""A batch of another size may change the last digits; a rounded value could then fall on either side of a step."""


def differences(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows of one table that the other lacks, or holds more often; to the last bit, but for the probability at their end."""
    wrong: list[tuple[Any, ...]] = []
    keys = {row[:-1] for row in (*found, *expected)}
    ours, theirs = _probabilities(found), _probabilities(expected)
    for key in sorted(keys, key=str):
        here, there = ours.get(key, []), theirs.get(key, [])
        if len(here) != len(there):
            wrong.append((*key, f"{len(here)} times, not {len(there)}"))
        wrong += [(*key, f"probability {a}, not {b}") for a, b in zip(here, there, strict=False) if not _alike(a, b)]
    return wrong


def _probabilities(table: list[tuple[Any, ...]]) -> dict[tuple[Any, ...], list[float | None]]:
    found: dict[tuple[Any, ...], list[float | None]] = {}
    for row in table:
        found.setdefault(row[:-1], []).append(row[-1])
    return found


def _alike(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else abs(a - b) <= SAME_PROBABILITY


@dataclass(frozen=True)
class Whole:
    """Acquisitions, a model, what a run that nobody disturbed makes of them, and how long that took."""

    incoming: Path
    bundle: Path
    table: list[tuple[Any, ...]]
    count: int
    seconds: float


def make_whole(folder: Path, zygote: Zygote, count: int) -> Whole:
    """Write ``count`` acquisitions and let a daemon work through them undisturbed."""
    bundle = tiny_bundle(folder / "bundle")
    write_run(folder / "incoming", count)
    started = time.monotonic()
    settings = cheap_settings(folder, bundle, **{"output.keep_tomograms": True})
    assert zygote.run(settings, folder / "log") == 0, (folder / "log").read_text()[-2000:]
    seconds = time.monotonic() - started
    table = outcome_table(folder)
    assert len({row[1] for row in table}) == count
    assert {row[2] for row in table} == {"measured", "rejected", "set_aside"}
    return Whole(folder / "incoming", bundle, table, count, seconds)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Whole:
    """Twenty acquisitions and what SQLite holds after an undisturbed run."""
    return make_whole(tmp_path_factory.mktemp("whole"), zygote, 20)


def check_against(whole: Whole, folder: Path) -> list[str]:
    """Everything that is not as in the undisturbed run, or does not belong together; [] when all is well."""
    wrong = [f"row {row}" for row in differences(outcome_table(folder), whole.table)]
    if rows(folder, "SELECT COUNT(*), COUNT(DISTINCT acquisition_id) FROM run") != [(whole.count, whole.count)]:
        wrong.append("an acquisition has not exactly one run")
    return wrong + sound(folder)


def sound(folder: Path, output: Path | None = None) -> list[str]:
    """What is wrong with a database and an output folder by themselves."""
    output = output or folder / "output"
    wrong = [f"integrity_check: {row}" for row in rows(folder, "PRAGMA integrity_check") if row != ("ok",)]
    wrong += [f"foreign_key_check: {row}" for row in rows(folder, "PRAGMA foreign_key_check")]
    wrong += [f"still begun: {row}" for row in rows(folder, "SELECT path, tries FROM acquisition WHERE tries > 0")]
    wrong += [f"a cell stored twice: {row}" for row in rows(folder, _TWICE)]
    named = {Path(path) for (path,) in rows(folder, "SELECT tomogram_path FROM cell WHERE tomogram_path IS NOT NULL")}
    there = set(output.glob(f"*/*{SUFFIX}"))
    wrong += [f"no row names {path}" for path in sorted(there - named)]
    wrong += [f"a row names {path}, which is not there" for path in sorted(named - there)]
    wrong += [f"a temporary: {path}" for path in output.rglob(f"{TEMPORARY}*")]
    for path in sorted(there & named)[:5]:
        read_tomogram(path)
    return wrong


_TWICE = "SELECT run_id, number, COUNT(*) FROM cell GROUP BY run_id, number HAVING COUNT(*) > 1"
