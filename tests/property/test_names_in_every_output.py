"""What a file, a sample or a donor is called survives every output whole, and two names stay two.

Names are any Unicode, and bytes of another code page (which Python holds as lone surrogates). The verbs really run: on a
database of the names, or with the outcomes of files that are called so.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers_store import KEY, opened
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wbcd.cli import cli
from wbcd.config import Config, ServiceSettings
from wbcd.names import in_column, in_markdown, in_plot, shown
from wbcd.store.rows import clean_text
from wbcd.testing import FakeClock, make_cell, make_measured

ANY = st.text(min_size=1, max_size=40)
BYTES = st.binary(min_size=1, max_size=40).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"0")))
NAMES = st.one_of(ANY, BYTES, st.text("ab\\nrtxuU0 \n\x1b[]$`|*_<>&:", min_size=1, max_size=12))
HARD = (
    "donor7 [cd14]",
    "donor7 [cd19]",
    "[/]",
    "[bold]x[/bold]",
    ":warning:",
    "a\nb: measured: monocyte 0.99",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egpj.exe",
    "\x85\u2028next",
    "a\\nb",
    "a\\\nb",
    "caf\udce9",
    "caf\\udce9",
    " lead",
    "trail ",
    "trail\\x20",
    "trail\\ ",
    "\u65e5\u672c\u8a9e",
    "e\u0301",
    "\U0001f9ec\u200d",
    "$x^2$",
)
ESCAPE = re.compile(r"(\\+)(?:(n|r|t|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})|(?=[nrtxuU]))")


def given_back(text: str) -> str:
    """The inverse of :func:`shown`, written from its description alone: nothing else shows that a name is whole."""

    def one(found: re.Match[str]) -> str:
        slashes, letter = found.group(1), found.group(2) or ""
        kept = "\\" * (len(slashes) // 2)
        if len(slashes) % 2 == 0:
            return kept + letter
        return kept + {"n": "\n", "r": "\r", "t": "\t"}.get(letter) if letter in "nrt" else kept + chr(int(letter[1:], 16))

    return ESCAPE.sub(one, text)


def is_one_line(text: str) -> bool:
    """Nothing that a terminal obeys, and nothing that begins another line."""
    return text.isprintable() and not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in text)


@given(NAMES)
def test_a_shown_name_is_one_line_and_can_be_had_back(name: str) -> None:
    assert is_one_line(shown(name))
    assert given_back(shown(name)) == name
    assert given_back(in_column(name)) == name
    assert not in_column(name).startswith(" ")
    assert not in_column(name).endswith(" ")
    shown(name).encode()
    if name.isprintable() and "\\" not in name:
        assert shown(name) == name


@pytest.mark.parametrize("name", HARD)
def test_a_hard_name_is_one_line_and_can_be_had_back(name: str) -> None:
    test_a_shown_name_is_one_line_and_can_be_had_back.hypothesis.inner_test(name)
    assert len({shown(one) for one in HARD}) == len(HARD)


@given(NAMES, NAMES)
def test_two_names_stay_two_in_each_way_of_showing(one: str, other: str) -> None:
    for way in (shown, in_column, in_markdown, in_plot):
        assert (way(one) == way(other)) == (one == other)


@given(NAMES)
def test_a_name_in_a_title_of_matplotlib_is_no_formula(name: str) -> None:
    from matplotlib import cbook

    text = in_plot(name)
    assert not cbook.is_math_text(text)
    assert text.replace(r"\$", "$") == shown(name)  # what matplotlib then draws


# --- the verbs --------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@contextlib.contextmanager
def database(path: Path, names: list[str]) -> Iterator[str]:
    """One counted cell of each sample."""
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    with opened(str(path), now=FakeClock().now) as ledger:
        for number, name in enumerate(names):
            ledger.commit(make_measured(f"content-{number}", make_cell("monocyte"), sample=name), *KEY)
    yield f"sqlite:///{path}"


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, min_size=1, max_size=4, unique_by=clean_text))
@example(list(HARD))
def test_samples_in_status_and_counts(tmp_path: Path, names: list[str]) -> None:
    """What the database holds of a name (PostgreSQL has no NUL and no bytes that are no UTF-8) is in every output, once."""
    stored = sorted({clean_text(name) for name in names})
    with database(tmp_path / "wbcd.db", names) as url:
        table, status = run("counts", "--db", url), run("status", "--db", url, "--output-dir", str(tmp_path / "out"))
        as_json = run("counts", "--json", "--db", url)
        machine = run("status", "--json", "--db", url, "--output-dir", str(tmp_path / "out"))
        metrics = run("status", "--prometheus", "--db", url)
        each = [run("counts", "--json", "--sample", name, "--db", url) for name in stored]
    for result in (table, status, as_json, machine, metrics, *each):
        assert result.exit_code == 0, result.output
    assert sorted(row["sample"] for row in json.loads(as_json.stdout)) == stored
    assert sorted(row["sample"] for row in json.loads(machine.stdout)["store"]["counts"]) == stored
    assert [json.loads(result.stdout)[0]["sample"] for result in each] == stored
    assert _samples_of_table(table.stdout) == sorted(in_column(name) for name in stored)
    lines = status.stdout.splitlines()
    assert sorted(line[11:].removesuffix(" (running)") for line in lines if line.startswith("sample     ")) == sorted(
        map(shown, stored)
    )
    assert all(is_one_line(line) for line in lines)
    assert sorted(_samples_of_metrics(metrics.stdout)) == stored


def _samples_of_table(text: str) -> list[str]:
    """The first column; one row a line, since nothing is folded outside of a terminal."""
    rows = [line for line in text.splitlines() if line.startswith("│")]
    wide = {len(line) for line in rows}
    assert wide
    return sorted(line[2:].split(" │ monocyte")[0].rstrip(" ") for line in rows)


def _samples_of_metrics(text: str) -> list[str]:
    """Of the family of counted cells, by the rules of the exposition format."""
    found = []
    for line in text.split("\n"):
        if line.startswith("wbcd_differential_cells{"):
            raw = re.match(r'wbcd_differential_cells\{sample="((?:[^"\\\n]|\\.)*)"', line, re.DOTALL)
            assert raw is not None, line
            found.append(re.sub(r"\\(.)", lambda one: "\n" if one.group(1) == "n" else one.group(1), raw.group(1)))
    return found


FILE_NAMES = NAMES.map(lambda name: name.replace("/", "_").replace("\0", "_")).filter(
    lambda name: len(os.fsencode(f"{name}.h5")) < 250 and not name.startswith(".")
)


def _encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte: no file can be called so
        return False
    return True


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FILE_NAMES.filter(_encodable), min_size=1, max_size=4, unique=True))
@example([name for name in HARD if "/" not in name])
def test_files_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    paths = [folder / f"{name}.h5" for name in names]
    for path in paths:
        path.write_bytes(b"x")

    def outcomes(config: Config, files: list[Path]) -> Iterator[dict[str, Any]]:
        for file in files:
            yield {"path": str(file), "outcome": "set_aside", "reason": "input.truncated", "message": f"{file.name} ends."}

    monkeypatch.setattr("wbcd.cli.process.outcomes", outcomes)
    human, machine = run("process", str(folder)), run("process", str(folder), "--json")
    assert human.exit_code == machine.exit_code == 0, human.output + machine.output
    assert sorted(json.loads(line)["path"] for line in machine.stdout.split("\n")[:-1]) == sorted(map(str, paths))
    lines = human.stdout.split("\n")[:-1]
    wanted = sorted(f"{path}: set aside (input.truncated): {path.name} ends." for path in paths)
    assert sorted(map(given_back, lines)) == wanted
    assert all(is_one_line(line) for line in lines)


@settings(max_examples=25)
@given(NAMES)
@example("a\nb")
def test_names_in_an_errors_sentence(name: str) -> None:
    place = name.replace("\0", "_")
    result = run("counts", "--db", f"sqlite:////nowhere/{place.encode('utf-8', 'replace').decode()}")
    assert result.exit_code in (69, 78), result.output
    assert len(result.stderr.split("\n")) == 2
    assert is_one_line(result.stderr[:-1])


@settings(max_examples=25)
@given(NAMES)
@example("a\nb \x1b[31m")
def test_names_in_the_log(name: str) -> None:
    """A line an event on the console, and the name as it is in JSON."""
    import structlog

    from wbcd.daemon.logs import configure_logging

    try:
        for form in ("console", "json"):
            stream = io.StringIO()
            log = configure_logging(ServiceSettings(log_format=form), stream)
            log.info("outcome", path=Path(f"/in/{name}"), sample=name, many=[name])
            written = stream.getvalue()
            if form == "json":
                assert json.loads(written)["sample"] == name
            else:
                assert written.count("\n") == 1
                assert shown(name) in written
                assert is_one_line(written[:-1])
    finally:
        structlog.reset_defaults()


@settings(max_examples=25)
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
@example(list(HARD))
def test_donors_in_the_card_of_a_set(names: list[str]) -> None:
    """A row a donor, whose first cell is the donor's name."""
    from wbcd.training.card import page

    card = {
        "cells": len(names),
        "simulated": True,
        "classes": ["monocyte"],
        "input": {"shape": [1, 1, 1], "voxel_um": [1, 1, 1]},
        "recipe_id": "r",
        "pictures": "x",
        "data_hash": "0",
        "warnings": [f"{names[0]} is alone."],
        "cells_by_split": {},
        "cells_by_donor": {str(number): {"monocyte": 1} for number in range(len(names))},
        "donor_names": names,
        "six_mean_sd": {},
        "purity": {},
    }
    text = page(names[0], card)
    rows = [line for line in text.split("\n") if line.endswith(" | 1 |")]
    assert rows == [f"| {in_markdown(name)} | 1 |" for name in names]
    assert all(is_one_line(line) for line in text.split("\n"))
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3 for row in rows)  # no bar of a name parts a column


def test_the_picture_tells_long_and_foreign_names_apart() -> None:
    from wbcd.report.figures import _drawn

    alike = ["x" * 60 + "1", "x" * 60 + "2", "\u65e5\u672c", "\u672c\u65e5", *HARD]
    assert len({_drawn(name, 22) for name in alike}) == len(alike)
    assert all(len(_drawn(name, 22)) <= 22 and _drawn(name, 22).isascii() for name in alike)
