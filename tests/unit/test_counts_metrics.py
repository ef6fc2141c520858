"""The Prometheus text, against the exposition format's own grammar."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner
from helpers_store import KEY

from wbcd.cli import cli
from wbcd.report.counts import read_status
from wbcd.report.metrics import prometheus_text
from wbcd.store import Ledger
from wbcd.testing import make_acquisition, make_cell, make_measured, make_rejected

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
VALUE = r"[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|Inf|NaN)"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{{LABEL}(?:,{LABEL})*\}})? {VALUE}")
HELP = re.compile(rf"# HELP ({NAME}) [^\n]+")
TYPE = re.compile(rf"# TYPE ({NAME}) (counter|gauge)")


def test_every_line_is_of_the_format_and_every_sample_has_a_type(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    sqlite_ledger.commit(make_measured("a", make_cell("monocyte"), sample='odd "name"\\\nof two lines'), *KEY)
    sqlite_ledger.commit(make_rejected("r"), *KEY)
    sqlite_ledger.begin(make_acquisition("open"))
    text = prometheus_text(read_status(tmp_path / "wbcd.db"))
    assert text.endswith("\n")
    typed: set[str] = set()
    for line in text.splitlines():
        if match := TYPE.fullmatch(line):
            assert match[1] not in typed
            assert (match[2] == "counter") == match[1].endswith("_total")
            typed.add(match[1])
        elif not HELP.fullmatch(line):
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] in typed
    assert 'wbcd_acquisitions{outcome="rejected"} 1.0' in text
    assert 'wbcd_backlog_acquisitions{state="begun"} 1.0' in text
    assert r'sample="odd \"name\"\\\nof two lines"' in text
    assert "wbcd_intake_paused 0.0" in text


def test_the_status_verb_prints_it(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    sqlite_ledger.commit(make_measured("a", make_cell("monocyte")), *KEY)
    result = CliRunner().invoke(cli, ["status", "--prometheus", "--db", f"sqlite:///{tmp_path}/wbcd.db"])
    assert result.exit_code == 0
    said = [line for line in result.stdout.splitlines() if "outcomes_per_minute" not in line]
    text = prometheus_text(read_status(tmp_path / "wbcd.db"))
    assert said == [line for line in text.splitlines() if "outcomes_per_minute" not in line]
    assert CliRunner().invoke(cli, ["status", "--prometheus", "--json"]).exit_code == 2
    assert CliRunner().invoke(cli, ["status", "--prometheus", "--db", f"sqlite:///{tmp_path}/none.db"]).exit_code == 69


def test_samples_are_unique(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    for number in range(6):
        sqlite_ledger.commit(
            make_measured(f"a{number}", make_cell(["monocyte", "b_lymphocyte"][number % 2]), sample=f"S{number % 3}"), *KEY
        )
    series = [
        line.rpartition(" ")[0] for line in prometheus_text(read_status(tmp_path / "wbcd.db")).splitlines() if line[0] != "#"
    ]
    assert len(series) == len(set(series))
