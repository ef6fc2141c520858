"""The variable that kills the daemon on purpose: inert when absent, refused outside tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from wbcd.cli import cli
from wbcd.cli.common import EXIT_CONFIG
from wbcd.daemon.faults import POINTS, FaultPoints
from wbcd.errors import BadValue

REFUSAL = "environment: WBCD_FAULT_POINT is set, which kills the daemon on purpose."
ADVICE = "Unset it; it is for the tests, which also set WBCD_TESTING=1."


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, sign: found.append((pid, sign)))
    return found


@pytest.mark.parametrize("testing", [{}, {"WBCD_TESTING": ""}, {"WBCD_TESTING": "0"}, {"WBCD_TESTING": "true"}])
@pytest.mark.parametrize("point", ["after_begin", "after_begin:3", "nonsense"])
def test_outside_tests_it_is_refused(testing: dict[str, str], point: str) -> None:
    with pytest.raises(BadValue) as caught:
        FaultPoints.from_environment({"WBCD_FAULT_POINT": point, **testing})
    assert caught.value.sentence() == f"{REFUSAL} {ADVICE}"


@pytest.mark.parametrize("words", [["run", "--until-idle"], ["run"]])
def test_wbcd_run_ends_with_status_78_and_says_so(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "incoming").mkdir()
    options = [
        "--watch-dir",
        str(tmp_path / "incoming"),
        "--db",
        f"sqlite:///{tmp_path}/wbcd.db",
        "--output-dir",
        str(tmp_path),
    ]
    environment = {"WBCD_FAULT_POINT": "after_begin", "WBCD_TESTING": None}
    result = CliRunner().invoke(cli, [*words, *options], env=environment)
    assert result.exit_code == EXIT_CONFIG == 78
    assert f"{REFUSAL} {ADVICE}" in result.stderr
    assert not (tmp_path / "wbcd.db").exists()  # nothing was begun


def test_in_tests_an_unknown_point_or_count_is_refused_with_the_known_ones() -> None:
    for text in ("nonsense", "after_begin:x", "after_begin:-1"):
        with pytest.raises(BadValue, match=r"it must be NAME\[:N\] with NAME of after_identify, "):
            FaultPoints.from_environment({"WBCD_FAULT_POINT": text, "WBCD_TESTING": "1"})


def test_absent_it_kills_nothing(kills: list[tuple[int, int]]) -> None:
    for environment in ({}, {"WBCD_TESTING": "1"}, {"WBCD_FAULT_POINT": ""}):
        faults = FaultPoints.from_environment(environment)
        for point in POINTS:
            faults.passing(point)
    assert kills == []


def test_in_tests_it_kills_at_the_passage_that_was_asked_for(kills: list[tuple[int, int]]) -> None:
    faults = FaultPoints.from_environment({"WBCD_FAULT_POINT": "after_begin:3", "WBCD_TESTING": "1"})
    for _ in range(2):
        faults.passing("after_begin")
        faults.passing("after_read")
    assert kills == []
    for _ in range(2):
        faults.passing("after_begin")
    assert kills == [(os.getpid(), signal.SIGKILL)]
