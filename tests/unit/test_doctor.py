"""`wbcd doctor`: every branch that finds something, reached by a machine that answers so, and what it says to do."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wbcd.acquisition import IsolatedReader
from wbcd.cli import cli, doctor, machine
from wbcd.cli.machine import Room, TorchFacts
from wbcd.config import Config
from wbcd.store import Ledger, upgrade

GIB = 2**30


@pytest.fixture
def healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing wrong; a test then changes one answer."""
    for name in ("incoming", "output", "temporary"):
        (tmp_path / name).mkdir(mode=0o755)
    Ledger.open(str(tmp_path / "wbcd.db")).close()
    answers: dict[str, Any] = {
        "python_version": (3, 12, 1),
        "sqlite_version": (3, 51, 3),
        "room_of": Room(100 * GIB, 10**6),
        "file_system_of": "ext4",
        "inotify_limit": 10_000,
        "newest_mtime_s": None,
        "clock_drift_s": 0.0,
        "clock_is_synchronised": True,
        "open_files_limit": 65536,
        "reader_guards": frozenset({"seccomp", "landlock"}),
        "has_nvidia_driver": False,
        "torch_facts": TorchFacts("2.9.0", "12.8", ()),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(machine, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    return tmp_path


def settings(place: Path, **changes: Any) -> Config:
    return Config.load(
        None,
        {},
        {
            "watch.dir": place / "incoming",
            "output.dir": place / "output",
            "database.url": f"sqlite:///{place / 'wbcd.db'}",
            **changes,
        },
    )


def found(check: Callable[[Config], Any], place: Path, **changes: Any) -> list[tuple[str, str, str]]:
    """Verdict, message and advice of one check where not all is good."""
    items = list(doctor._guarded(check, settings(place, **changes)))
    return [(item["verdict"], item["message"], item["do"]) for item in items if item["verdict"] != "good"]


def one(check: Callable[[Config], Any], place: Path, **changes: Any) -> tuple[str, str, str]:
    (item,) = found(check, place, **changes)
    assert item[2] != "", f"says nothing of what to do: {item}"
    return item


def answer(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    for name, value in answers.items():
        monkeypatch.setattr(machine, name, lambda *_, value=value: value)


def test_a_healthy_machine_is_good(healthy: Path) -> None:
    for check in doctor.CHECKS:
        left = [item for item in found(check, healthy) if item[1] != "model trained on simulated cells"]
        assert left == [], check.__name__


def test_the_command_ends_with_1_when_something_is_wrong(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["doctor", "--db", f"sqlite:///{healthy / 'wbcd.db'}", "--watch-dir", str(healthy / "incoming")]
    arguments += ["--output-dir", str(healthy / "output")]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    answer(monkeypatch, open_files_limit=256)
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1
    assert "wrong open files: a process may open 256 files; 1024 are needed -> Raise LimitNOFILE=" in done.output
    said = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)
    assert {"what": "open files", "verdict": "wrong"}.items() <= next(x for x in said if x["what"] == "open files").items()


def test_an_old_python(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, python_version=(3, 10, 9))
    assert one(doctor._python, healthy)[:2] == ("wrong", "3.10.9 is older than 3.11")


def test_a_kernel_that_leaves_the_reader_its_rights(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, reader_guards=frozenset({"seccomp"}))
    verdict, said, do = one(doctor._reader, healthy)
    assert (verdict, "refuses it landlock" in said, "SystemCallFilter" in do) == ("note", True, True)


def test_what_the_reader_gives_up_here_is_asked_of_a_real_child() -> None:
    assert machine.reader_guards() <= {"seccomp", "landlock", "own_user", "namespaces"}
    with IsolatedReader() as reader:
        assert machine.reader_guards() == reader.guards_offered()


# --- devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "driver", "said", "do"),
    [
        (TorchFacts("2.9.0+cpu", None, ()), True, "a build without CUDA", "Install torch"),
        (TorchFacts("2.9.0", "12.8", ()), False, "no NVIDIA driver is loaded", "Install the driver"),
        (TorchFacts("2.9.0", "12.8", ()), True, "sees no device", "nvidia-smi"),
    ],
)
def test_why_there_is_no_cuda(
    healthy: Path, monkeypatch: pytest.MonkeyPatch, facts: TorchFacts, driver: bool, said: str, do: str
) -> None:
    answer(monkeypatch, torch_facts=facts, has_nvidia_driver=driver)
    verdict, message, advice = one(doctor._processor, healthy, **{"classification.device": "cuda"})
    assert (verdict, said in message, do in advice) == ("wrong", True, True), (message, advice)
    if driver:  # asked for automatically, the processor is used, and the reason is said
        verdict, message, advice = one(doctor._processor, healthy)
        assert (verdict, said in message, do in advice) == ("note", True, True)
    assert found(doctor._processor, healthy, **{"classification.device": "cpu"}) == []


def test_a_device_number_that_is_not_there(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, torch_facts=TorchFacts("2.9.0", "12.8", ("H100",)))
    assert found(doctor._processor, healthy, **{"classification.device": "cuda:0"}) == []
    verdict, message, _ = one(doctor._processor, healthy, **{"classification.device": "cuda:1"})
    assert (verdict, message) == ("wrong", "cuda:1 is configured; there are 1 devices, numbered from 0")


def test_torch_is_missing(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> TorchFacts:
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(machine, "torch_facts", absent)
    assert one(doctor._processor, healthy)[:2] == ("wrong", "No module named 'torch'")


# --- SQLite -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "verdict"),
    [((3, 34, 1), "wrong"), ((3, 40, 1), "note"), ((3, 51, 2), "note"), ((3, 51, 3), None), ((3, 52, 0), None)],
)
def test_sqlite_versions(healthy: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], verdict: str | None) -> None:
    answer(monkeypatch, sqlite_version=version)
    assert [item[0] for item in found(doctor._sqlite, healthy)] == ([verdict] if verdict else [])
    if verdict == "note":  # the fault does not concern whoever uses PostgreSQL
        assert found(doctor._sqlite, healthy, **{"database.url": "postgresql://wbcd@localhost/wbcd"}) == []


# --- folders ------------------------------------------------------------------------------------------------


def test_the_watch_folder(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(doctor._watch_folder, healthy, **{"watch.dir": None})[0] == "note"
    assert one(doctor._watch_folder, healthy, **{"watch.dir": healthy / "absent"})[:1] == ("wrong",)
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "cannot be read" in one(doctor._watch_folder, healthy)[1]


def test_a_network_share_is_polled(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, file_system_of="cifs")
    ((verdict, message, _),) = found(doctor._watch_folder, healthy)
    assert (verdict, "it is polled" in message) == ("note", True)
    assert one(doctor._watch_folder, healthy, **{"watch.mode": "inotify"})[0] == "wrong"
    verdict, message, advice = one(doctor._database, healthy)
    assert (verdict, "do not hold on a network file system" in message) == ("wrong", True)
    assert "PostgreSQL" in advice


def test_inotify_limits(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (healthy / "incoming" / f"{number}").mkdir()
    limits = {"max_user_watches": 20, "max_user_instances": 128, "max_queued_events": 16384}
    monkeypatch.setattr(machine, "inotify_limit", limits.get)
    verdict, message, advice = one(doctor._watch_folder, healthy)
    assert (verdict, message) == ("wrong", "21 folders need a watch each; the kernel allows 20")
    assert "fs.inotify.max_user_watches" in advice
    assert found(doctor._watch_folder, healthy, **{"watch.mode": "polling"}) == []
    limits |= {"max_user_watches": 21, "max_user_instances": 1}
    assert "max_user_instances" in one(doctor._watch_folder, healthy)[2]
    limits["max_user_instances"] = 128
    assert found(doctor._watch_folder, healthy) == []
    limits.clear()
    assert one(doctor._watch_folder, healthy)[0] == "note"


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (Room(GIB, 10**6), r"1.00 GiB are free on .*; at least 2 GiB are needed"),
        (Room(99 * GIB, 12), r"12 files can still be made on .*; at least 10000 are needed"),
    ],
)
def test_a_disk_that_fills(healthy: Path, monkeypatch: pytest.MonkeyPatch, room: Room, said: str) -> None:
    import re

    answer(monkeypatch, room_of=room)
    for check in (doctor._output_folder, doctor._database):
        verdict, message, _ = one(check, healthy)
        assert verdict == "wrong"
        assert re.match(said, message)
    answer(monkeypatch, room_of=Room(2**20, None))
    assert one(doctor._temporary_folder, healthy)[0] == "wrong"


def test_permissions(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (healthy / "output").chmod(0o777)
    verdict, message, advice = one(doctor._output_folder, healthy)
    assert (verdict, "(mode 777)" in message, advice) == ("wrong", True, f"chmod o-w {healthy / 'output'}")
    (healthy / "output").chmod(0o1777)  # as /tmp: others may not remove what is ours
    assert found(doctor._output_folder, healthy) == []
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    for check in (doctor._output_folder, doctor._temporary_folder):
        assert "cannot be written" in one(check, healthy)[1]
    assert "cannot be written by this user" in found(doctor._database, healthy)[0][1]


def test_a_password_that_others_can_read(healthy: Path) -> None:
    path = healthy / "password"
    path.write_text("secret")
    path.chmod(0o640)
    changes = {"database.url": "postgresql://wbcd@localhost/wbcd", "database.password_file": path}
    verdict, message, advice = one(doctor._password_file, healthy, **changes)
    assert (verdict, "(mode 640)" in message, "chmod 600" in advice) == ("wrong", True, True)
    path.chmod(0o600)
    assert found(doctor._password_file, healthy, **changes) == []
    verdict, message, _ = one(doctor._password_file, healthy, **{"database.url": "postgresql://wbcd:secret@localhost/wbcd"})
    assert (verdict, "secret" in message) == ("wrong", False)
    assert one(doctor._password_file, healthy, **changes | {"database.password_file": healthy / "absent"})[0] == "wrong"


def test_shared_memory(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, room_of=Room(64 * 2**20, None))  # what a container has
    verdict, _, advice = one(doctor._shared_memory, healthy)
    assert (verdict, "--shm-size" in advice) == ("note", True)
    monkeypatch.setattr(machine, "SHARED_MEMORY", healthy / "absent")
    assert one(doctor._shared_memory, healthy)[0] == "wrong"
    assert one(doctor._shared_memory, healthy, **{"limits.isolate": False})[0] == "note"


# --- clock --------------------------------------------------------------------------------------------------


def test_the_clock(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, clock_is_synchronised=False)
    assert "no time server" in one(doctor._clock, healthy)[1]
    answer(monkeypatch, clock_is_synchronised=None)
    assert found(doctor._clock, healthy) == []
    answer(monkeypatch, clock_drift_s=0.5)
    assert "+500 ms against the monotonic one" in one(doctor._clock, healthy)[1]
    answer(monkeypatch, clock_drift_s=0.0, wall_s=1e9)
    assert one(doctor._clock, healthy)[0] == "wrong"
    answer(monkeypatch, wall_s=1.8e9, newest_mtime_s=1.8e9 + 3600)
    assert "dated 3600 s in the future" in one(doctor._clock, healthy)[1]


# --- database and model -------------------------------------------------------------------------------------


def test_the_database(healthy: Path) -> None:
    fresh = {"database.url": f"sqlite:///{healthy / 'new.db'}"}
    assert one(doctor._database, healthy, **fresh)[0] == "note"
    upgrade(f"sqlite:///{healthy / 'new.db'}", "0001")
    verdict, message, advice = one(doctor._database, healthy, **fresh)
    assert (verdict, "has schema 0001; this wbcd needs" in message, "wbcd db upgrade" in advice) == ("wrong", True, True)
    with sqlite3.connect(healthy / "new.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert one(doctor._database, healthy, **fresh)[2] == "Install the newer wbcd."
    (healthy / "new.db").write_bytes(b"no database, but long enough to be looked at" * 100)
    assert one(doctor._database, healthy, **fresh)[0] == "wrong"
    absent = {"database.url": "postgresql://wbcd@127.0.0.1:1/wbcd"}
    verdict, message, _ = one(doctor._database, healthy, **absent)
    assert (verdict, "127.0.0.1" in message) == ("wrong", True)


def test_a_damaged_database(healthy: Path) -> None:
    path = healthy / "wbcd.db"
    raw = bytearray(path.read_bytes())
    for page in range(20, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(raw)
    assert one(doctor._database, healthy)[0] == "wrong"


def test_a_model_whose_weights_are_not_the_card_s(healthy: Path) -> None:
    from helpers_spheres import tiny_bundle

    bundle = tiny_bundle(healthy / "bundle")
    assert [item[0] for item in found(doctor._model, healthy, **{"classification.model": str(bundle)})] in ([], ["note"])
    (weights,) = bundle.rglob("*.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    verdict, message, _ = one(doctor._model, healthy, **{"classification.model": str(bundle)})
    assert (verdict, "digest" in message) == ("wrong", True)
    assert one(doctor._model, healthy, **{"classification.model": str(healthy / "absent")})[0] == "wrong"


# --- the questions themselves, asked of this machine ----------------------------------------------------------


def test_the_machine_answers(tmp_path: Path) -> None:
    assert machine.room_of(tmp_path).free_bytes > 0
    assert machine.file_system_of(tmp_path) != ""
    assert machine.count_folders(tmp_path) == 1
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_text("x")
    os.utime(tmp_path / "file", (4e9, 4e9))
    assert machine.count_folders(tmp_path) == 2
    assert machine.newest_mtime_s(tmp_path) == 4e9
    assert abs(machine.clock_drift_s(0.01)) < 5
    assert machine.clock_is_synchronised() in (True, False, None)
    assert machine.open_files_limit() > 0
    assert machine.sqlite_version() == sqlite3.sqlite_version_info
    assert machine.inotify_limit("absent") is None
    assert machine.torch_facts().version
