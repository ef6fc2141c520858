"""The unit by systemd's own judgement, with and without its drop-ins, and what it promises of restarts."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers_line import MemoryLedger, RecordingLog, fake_stages

from wbcd.acquisition.isolate import IsolationLimits
from wbcd.acquisition.limits import ReadDefaults
from wbcd.cli import common
from wbcd.cli.common import exit_status
from wbcd.config import CREDENTIAL_NAME, Config
from wbcd.daemon.pipeline import Pipeline
from wbcd.errors import BadValue, DatabaseUnavailable, DeviceLost, SchemaMismatch, StageFailed

SYSTEMD = Path(__file__).parents[2] / "systemd"
DAEMON_BYTES = 2 * 2**30
"""Libraries, model, fields and one reconstruction: docs/benchmarks.md has 1.5 GiB for the whole tree with a field of 430
MiB."""
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


def directives(*names: str) -> dict[str, list[str]]:
    """Section.Key -> its values over the files, in order; an empty value empties the list, as systemd reads it."""
    found: dict[str, list[str]] = {}
    for name in names:
        section = ""
        for line in (SYSTEMD / name).read_text().splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                key, _, value = line.partition("=")
                held = found.setdefault(f"{section}.{key}", [])
                if value:
                    held.append(value)
                else:
                    held.clear()
    return found


def exposure(folder: Path, *drop_ins: str) -> tuple[float, str]:
    shutil.copy(SYSTEMD / "wbcd.service", folder / "wbcd.service")
    for name in drop_ins:
        (folder / "wbcd.service.d").mkdir(exist_ok=True)
        shutil.copy(SYSTEMD / name, folder / "wbcd.service.d" / name)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(folder / "wbcd.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = re.search(r"Overall exposure level.*?: ([\d.]+)", done.stdout)
    assert said is not None, done.stderr
    return float(said[1]), done.stdout + done.stderr


def test_the_reader_may_give_up_its_rights() -> None:
    """Older systemd's @system-service holds none of these; refused, they would leave the reader's child unguarded."""
    allowed = {call for value in directives("wbcd.service")["Service.SystemCallFilter"] for call in value.split()}
    assert {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} <= allowed


@needs_systemd
@pytest.mark.parametrize(
    ("drop_ins", "limit"),
    [((), 1.5), (("cpu-only.conf",), 1.0), (("no-network.conf",), 1.0), (("cpu-only.conf", "no-network.conf"), 0.5)],
)
def test_the_exposure_is_low(tmp_path: Path, drop_ins: tuple[str, ...], limit: float) -> None:
    level, said = exposure(tmp_path, *drop_ins)
    assert level <= limit, said
    assert "Unknown" not in said
    assert "ignoring" not in said


@needs_systemd
def test_a_drop_in_really_counts(tmp_path: Path) -> None:
    """The folder of drop-ins is read: with them the figure is lower than without."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert exposure(tmp_path / "b", "cpu-only.conf")[0] < exposure(tmp_path / "a")[0]


@needs_systemd
def test_systemd_knows_every_line(tmp_path: Path) -> None:
    unit = (SYSTEMD / "wbcd.service").read_text().replace("/opt/wbcd/bin/wbcd", "/bin/true")
    (tmp_path / "wbcd.service").write_text(unit)
    (tmp_path / "wbcd.service.d").mkdir()
    for name in ("cpu-only.conf", "no-network.conf"):
        shutil.copy(SYSTEMD / name, tmp_path / "wbcd.service.d" / name)
    command = ["systemd-analyze", "verify", "--recursive-errors=no", str(tmp_path / "wbcd.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wrong = [line for line in done.stderr.splitlines() if "wbcd.service" in line and "Documentation" not in line]
    assert wrong == []


def test_restarts_are_without_end_but_for_a_loop_and_for_what_a_restart_does_not_help() -> None:
    unit = directives("wbcd.service")
    assert unit["Service.Restart"] == ["always"]
    assert unit["Service.RestartPreventExitStatus"] == [str(common.EXIT_CONFIG)]
    kept = {exit_status(error("x")) for error in (BadValue, SchemaMismatch)}
    assert kept == {common.EXIT_CONFIG}
    again = [exit_status(error("x")) for error in (DatabaseUnavailable, DeviceLost, StageFailed)]
    assert again == [common.EXIT_UNAVAILABLE, common.EXIT_IO, common.EXIT_SOFTWARE]
    assert len({*again, common.EXIT_CONFIG}) == 4  # each tells its cause


def test_a_database_that_is_away_does_not_reach_the_start_limit() -> None:
    from wbcd.store.ledger import PATIENCE_S

    unit = directives("wbcd.service")
    window, burst = (float(unit[f"Unit.StartLimit{name}"][0]) for name in ("IntervalSec", "Burst"))
    pause = float(unit["Service.RestartSec"][0])
    starting_s = 6.0  # imports, the model's warm-up
    assert window / (pause + starting_s + PATIENCE_S) < burst
    assert window / (pause + starting_s) > burst  # a process that dies as soon as it has started does reach it


def bytes_of(size: str) -> int:
    return int(size[:-1]) * {"M": 2**20, "G": 2**30}[size[-1]]


def worst_case_bytes(max_logical_bytes: int) -> int:
    """What the daemon, its readers and what they hand over take when every file is as large as is allowed."""
    bounds = IsolationLimits.for_arrays(max_logical_bytes)
    stack = 2 * max_logical_bytes  # frames and reference
    volume = max_logical_bytes + max_logical_bytes // 4  # float32, and a mask of its fill
    line = Pipeline(Config(), fake_stages(), MemoryLedger, log=RecordingLog())
    waiting = line.statistics()["payloads"]["capacity"] * stack
    readers = 2 * bounds.address_space_bytes  # one loads a volume of the series in work, one reads the next file
    handed_over = volume + stack  # memory files: the same pages in the reader and in the daemon
    in_work = volume  # the one before, while its cells are looked at
    return readers + handed_over + waiting + in_work + DAEMON_BYTES


def test_the_largest_files_fit_into_the_units_memory() -> None:
    unit = directives("wbcd.service")
    high, most = (bytes_of(unit[f"Service.Memory{name}"][0]) for name in ("High", "Max"))
    usual = Config().limits.max_logical_bytes
    assert worst_case_bytes(usual) < high < most
    assert IsolationLimits() == IsolationLimits.for_arrays(usual)
    assert ReadDefaults().max_logical_bytes == usual
    for larger in (usual, 2**30, 8 * 2**30):  # as the help of [limits] max_logical_bytes and the unit say
        assert worst_case_bytes(larger) <= 11 * larger + 3 * 2**30


def test_the_files_of_real_instruments_are_not_too_large() -> None:
    usual = Config().limits.max_logical_bytes
    assert usual >= 300 * 1024 * 1024 * 2  # uint16 frames
    assert usual >= 210 * 732 * 732 * 4  # a field as float32


def test_an_out_of_memory_kill_of_the_reader_leaves_the_service_alive() -> None:
    """The reader asks to be killed first; `stop` would end the service with it, and the file would never be tried alone."""
    assert directives("wbcd.service")["Service.OOMPolicy"] == ["continue"]


def test_the_password_comes_by_the_credential_that_the_program_reads() -> None:
    unit = directives("wbcd.service")
    assert unit["Service.LoadCredential"] == [f"{CREDENTIAL_NAME}:/etc/wbcd/database-password"]


def test_the_drop_ins_say_what_they_promise() -> None:
    cpu = directives("wbcd.service", "cpu-only.conf")
    assert cpu["Service.DeviceAllow"] == []
    assert cpu["Service.PrivateDevices"] == ["true"]
    name, value = cpu["Service.Environment"][-1].split("=")
    assert Config.load(None, {name: value}).classification.device == "cpu"
    assert "Service.MemoryDenyWriteExecute" not in cpu  # torch makes code at run time without CUDA too
    quiet = directives("wbcd.service", "no-network.conf")
    assert quiet["Service.IPAddressAllow"] == []
    assert quiet["Unit.Wants"] == []


def test_the_other_files_for_systemd_are_of_their_form() -> None:
    """sysusers.d(5): type, name, id; tmpfiles.d(5): type, path, mode, user, group, age, argument."""
    users = [line.split() for line in (SYSTEMD / "wbcd.sysusers").read_text().splitlines() if not line.startswith("#")]
    assert [(fields[0], fields[1]) for fields in users if fields] == [("u", "wbcd")]
    for line in (SYSTEMD / "wbcd.tmpfiles").read_text().splitlines():
        if line and not line.startswith("#"):
            kind, path, mode, user, group, *_ = line.split()
            assert kind in ("d", "f")
            assert path.startswith(("/etc/wbcd", "/var/lib/wbcd"))
            assert int(mode, 8) & 0o007 == 0  # nothing for others
            assert {user, group} <= {"root", "wbcd"}
    configparser.RawConfigParser(strict=False, allow_no_value=True).read_string((SYSTEMD / "cpu-only.conf").read_text())
