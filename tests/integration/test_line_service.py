"""The daemon's threads with fake stages and an in-memory ledger: stops, starts, failures, pauses, duplicates."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers_line import MODEL, MemoryLedger, RecordingLog, fake_stages, identify, predict, quick_config, read

from wbcd.acquisition.watch import FolderWatcher
from wbcd.config import Config
from wbcd.daemon.assembly import clean_output
from wbcd.daemon.service import SIFTED_AT_ONCE, Backlog, Service
from wbcd.daemon.start import make_watcher
from wbcd.daemon.state import read_state
from wbcd.errors import (
    BadValue,
    BundleInvalid,
    DatabaseUnavailable,
    NoSpace,
    NotReadable,
    ReaderDied,
    SchemaMismatch,
    StageFailed,
    Truncated,
)
from wbcd.store.rows import SourceFile
from wbcd.store.volumes import TEMPORARY


class Rig:
    """One daemon in a thread, on a folder of its own."""

    def __init__(
        self, folder: Path, ledger: MemoryLedger | None = None, env: dict[str, str] | None = None, **changes: Any
    ) -> None:
        self.config = quick_config(folder, **changes.pop("settings", {}))
        self.incoming = folder / "incoming"
        self.incoming.mkdir(exist_ok=True)
        self.ledger = ledger or MemoryLedger()
        self.log = RecordingLog()
        self.failure: BaseException | None = None
        trial = changes.pop("trial", None)
        watch = self.config.watch
        self.service = Service(
            self.config,
            make_stages=lambda: fake_stages(**changes),
            open_ledger=lambda stages: self.ledger,
            watcher=FolderWatcher(self.incoming, mode=watch.mode, rescan_s=watch.rescan_s, quiet_s=watch.quiet_s),
            log=self.log,
            env=env or {},
            trial=trial,
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.service.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.failure = error

    def drop(self, name: str, text: str) -> Path:
        path = self.incoming / name
        path.write_text(text)
        return path

    @contextmanager
    def running(self):
        self.thread.start()
        try:
            self.log.wait_for("ready")
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        self.service.stop("test")
        self.thread.join(30)
        assert not self.thread.is_alive()

    def kinds(self) -> dict[str, str]:
        return {outcome.acquisition.path.name: outcome.kind for outcome in self.ledger.outcomes.values()}


def test_files_there_before_and_after_the_start_each_end_in_one_outcome(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.drop("before.h5", "2 cells")
    with rig.running():
        for name, text in {"after.h5": "1 cell", "empty.h5": "empty", "bad.h5": "corrupt"}.items():
            rig.drop(name, text)
        rig.log.wait_for("outcome", 4)
    assert rig.failure is None
    assert rig.kinds() == {"before.h5": "measured", "after.h5": "measured", "empty.h5": "rejected", "bad.h5": "set_aside"}
    assert rig.ledger.closed
    assert read_state(rig.config.output.dir).state == "stopped"
    told = next(note for note in rig.log.of("outcome") if note["outcome"] == "measured")
    assert len(told["content_id"]) == 40
    assert {"read", "find cells", "commit"} <= set(told["seconds"])


def test_a_copy_and_a_known_file_are_not_counted_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.drop("a.h5", "2 cells")
    with rig.running():
        rig.log.wait_for("outcome")
        rig.drop("copy.h5", "2 cells")
        rig.log.wait_for("duplicate")
    assert len(rig.ledger.outcomes) == rig.ledger.commits == 1
    assert [kind for kind, _, _ in rig.ledger.events] == ["duplicate"]
    identified: list[Path] = []
    again = Rig(tmp_path, _moved(rig.ledger), identify=lambda path, beat: [identified.append(path), identify(path)][1])
    with again.running():
        again.drop("last.h5", "1 cell")
        again.log.wait_for("outcome")
    assert [path.name for path in identified] == ["last.h5"]  # known files are not even hashed again
    assert again.log.of("duplicate") == []


def _moved(ledger: MemoryLedger) -> MemoryLedger:
    """The ledger for a new daemon, whose thread is another."""
    ledger._thread = None
    return ledger


def test_an_incomplete_file_is_tried_again_and_set_aside_after_three(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.drop("half.h5", "incomplete")
    with rig.running():
        rig.log.wait_for("outcome")
    assert [note["tries"] for note in rig.log.of("again_later")] == [1, 2]
    assert rig.kinds() == {"half.h5": "set_aside"}


@pytest.mark.parametrize("fault", [NotReadable("stale file handle"), ReaderDied("ended by SIGKILL"), Truncated("short")])
@pytest.mark.parametrize(("failures", "kind"), [(2, "measured"), (3, "set_aside")])
def test_a_fault_that_may_pass_does_not_condemn_good_bytes(tmp_path: Path, fault: Any, failures: int, kind: str) -> None:
    faults = iter([fault] * failures)

    def reads(acquisition: Any) -> Any:
        for error in faults:
            raise error
        return read(acquisition)

    rig = Rig(tmp_path, read=reads)
    rig.drop("a.h5", "1 cell")
    with rig.running():
        rig.log.wait_for("outcome")
    assert [note["reason"] for note in rig.log.of("again_later")] == [fault.code] * 2
    assert rig.kinds() == {"a.h5": kind}


@pytest.mark.timeout(60)
def test_while_a_long_file_is_hashed_the_line_beats_and_can_be_stopped(tmp_path: Path) -> None:
    moved = threading.Event()

    def identifies(path: Path, *, beat: Any) -> Any:
        pipeline = beat.__self__
        for block in itertools.count():  # without end
            before = pipeline.beats
            beat()
            assert pipeline.beats > before
            if block == 100:
                moved.set()

    rig = Rig(tmp_path, identify=identifies)
    rig.drop("long.h5", "1 cell")
    with rig.running():
        assert moved.wait(20)
    assert rig.failure is None
    assert rig.kinds() == {}
    assert rig.ledger.tries == {}  # it was not begun: the next start takes it up
    again = Rig(tmp_path, _moved(rig.ledger))
    with again.running():
        again.log.wait_for("outcome")
    assert again.kinds() == {"long.h5": "measured"}


@pytest.mark.parametrize(("failures", "kind"), [(2, "measured"), (3, "set_aside")])
def test_bytes_that_cannot_be_hashed_now_are_tried_again(tmp_path: Path, failures: int, kind: str) -> None:
    faults = iter([NotReadable("a.h5 cannot be read: Input/output error.")] * failures)

    def identifies(path: Path, *, beat: Any) -> Any:
        for error in faults:
            raise error
        return identify(path)

    rig = Rig(tmp_path, identify=identifies)
    rig.drop("a.h5", "1 cell")
    with rig.running():
        rig.log.wait_for("outcome")
    assert [note["tries"] for note in rig.log.of("again_later")] == [1, 2]
    assert rig.kinds() == {"a.h5": kind}
    assert rig.ledger.tries == {}  # neither the file nor the ticket in its place is left open


def test_an_incomplete_file_that_is_completed_is_measured(tmp_path: Path) -> None:
    rig = Rig(tmp_path, settings={"limits.max_tries": 100})
    rig.drop("half.h5", "incomplete")
    with rig.running():
        rig.log.wait_for("again_later")
        rig.drop("half.h5", "1 cell, and now it is whole")
        rig.log.wait_for("outcome")
    assert rig.kinds() == {"half.h5": "measured"}


def test_one_item_with_an_unknown_exception_is_set_aside_and_the_rest_go_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.drop("bug.h5", "bug")
    with rig.running():
        rig.log.wait_for("outcome", 1)
        rig.drop("good.h5", "1 cell")
        rig.log.wait_for("outcome", 2)
    assert rig.failure is None
    assert rig.kinds() == {"bug.h5": "set_aside", "good.h5": "measured"}


def test_a_stage_that_fails_for_every_item_stops_the_line_and_loses_none(tmp_path: Path) -> None:
    def broken(cell: Any, recipe: Any) -> Any:
        raise RuntimeError("the stage is broken")

    rig = Rig(tmp_path, measure=broken)
    for number in range(5):
        rig.drop(f"{number}.h5", f"1 cell of {number}")
    rig.thread.start()
    rig.thread.join(30)
    assert isinstance(rig.failure, StageFailed)
    assert rig.ledger.outcomes == {}
    assert read_state(rig.config.output.dir).state == "failed"
    mended = Rig(tmp_path, _moved(rig.ledger))
    with mended.running():
        mended.log.wait_for("outcome", 5)
    assert set(mended.kinds().values()) == {"measured"}


def test_a_cell_that_the_classifier_cannot_take_does_not_spoil_its_batch(tmp_path: Path) -> None:
    def picky(cells: Any) -> Any:
        if any(cell.ri.flat[0] == 3 for cell in cells):
            raise ValueError("not this one")
        return predict(cells)

    rig = Rig(tmp_path, predict=picky, settings={"classification.max_latency_s": 0.3, "limits.max_tries": 1})
    for name, text in {"a.h5": "1 cell", "b.h5": "3 cells", "c.h5": "2 cells"}.items():
        rig.drop(name, text)
    with rig.running():
        rig.log.wait_for("outcome", 3)
    assert rig.kinds() == {"a.h5": "measured", "b.h5": "set_aside", "c.h5": "measured"}


def test_batches_span_acquisitions(tmp_path: Path) -> None:
    sizes: list[int] = []

    def counting(cells: Any) -> Any:
        sizes.append(len(cells))
        return predict(cells)

    rig = Rig(tmp_path, predict=counting, settings={"classification.max_batch": 4, "classification.max_latency_s": 1.0})
    for number in range(8):
        rig.drop(f"{number}.h5", f"1 cell of {number}")
    with rig.running():
        rig.log.wait_for("outcome", 8)
    assert sum(sizes) == 8
    assert max(sizes) == 4


@pytest.mark.parametrize(("ended", "kind"), [("was ended by SIGSEGV", "set_aside"), (None, "measured")])
def test_beyond_the_limit_of_tries_a_trial_decides(tmp_path: Path, ended: str | None, kind: str) -> None:
    tried: list[str] = []
    rig = Rig(tmp_path, trial=lambda path: [tried.append(path.name), ended][1])
    path = rig.drop("suspect.h5", "1 cell")
    rig.ledger.tries[identify(path).content_id] = 3  # three processes ended while they had it in hand
    with rig.running():
        rig.log.wait_for("outcome")
    assert tried == ["suspect.h5"]
    (outcome,) = rig.ledger.outcomes.values()
    assert outcome.kind == kind
    if outcome.kind == "set_aside":
        assert outcome.error.code == "input.poison"
        assert "SIGSEGV" in outcome.error.message


def test_what_awaits_a_trial_lets_the_others_go_first(tmp_path: Path) -> None:
    rig = Rig(tmp_path, trial=lambda path: None)
    for number in range(5):
        path = rig.drop(f"{number}.h5", f"1 cell of {number}")
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    suspect = identify(rig.incoming / "0.h5")  # the oldest: it would come first
    rig.ledger.sighted(suspect.path, suspect.size_bytes, suspect.mtime_ns, suspect.content_id)
    for _ in range(3):
        rig.ledger.begin(suspect)
    rig.ledger._thread = None
    with rig.running():
        rig.log.wait_for("outcome", 5)
    assert [Path(event["path"]).name for event in rig.log.of("outcome")] == ["1.h5", "2.h5", "3.h5", "4.h5", "0.h5"]
    assert rig.log.of("trial")[0]["tries"] == 4  # postponing is no try


def test_what_was_begun_before_is_worked_on_alone(tmp_path: Path) -> None:
    together: list[int] = []
    rig: Rig

    def watching(cells: Any) -> Any:
        together.append(len({cell.ri.flat[0] for cell in cells}))
        return predict(cells)

    rig = Rig(tmp_path, predict=watching, settings={"classification.max_latency_s": 0.1})
    for number in range(1, 5):
        path = rig.drop(f"{number}.h5", f"{number} cells")
        rig.ledger.tries[identify(path).content_id] = 1
    with rig.running():
        rig.log.wait_for("outcome", 4)
    assert together == [1, 1, 1, 1]


@pytest.mark.parametrize("error", [DatabaseUnavailable("no answer"), NoSpace("/data: the disk is full")])
def test_an_absent_store_pauses_intake_with_a_reason_and_work_resumes(tmp_path: Path, error: Any) -> None:
    rig = Rig(tmp_path)
    with rig.running():
        rig.ledger.failures[:] = [error] * 2
        rig.drop("a.h5", "1 cell")
        (paused,) = rig.log.wait_for("paused")
        assert error.message in paused["reason"]
        rig.log.wait_for("resumed")
        rig.log.wait_for("outcome")
    assert rig.failure is None
    assert rig.kinds() == {"a.h5": "measured"}


def test_the_status_shows_the_pause(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with rig.running():
        rig.ledger.failures[:] = [NoSpace("/data: the disk is full")] * 3
        rig.drop("a.h5", "1 cell")
        rig.log.wait_for("paused")
        states = set()
        while not rig.log.of("resumed"):
            states.add((read_state(rig.config.output.dir).state, read_state(rig.config.output.dir).reason or ""))
        rig.log.wait_for("outcome")
    assert any(state == "paused" and "disk is full" in reason for state, reason in states)


def test_a_full_output_folder_pauses_and_is_noted(tmp_path: Path) -> None:
    tries = iter([NoSpace("/output: the disk is full"), NoSpace("/output: the disk is full")])

    def keep(cell: Any, acquisition: Any, prediction: Any) -> str:
        for error in tries:
            raise error
        return "kept"

    rig = Rig(tmp_path, keep=keep)
    with rig.running():
        rig.drop("a.h5", "1 cell")
        rig.log.wait_for("outcome")
    (outcome,) = rig.ledger.outcomes.values()
    assert outcome.cells[0].tomogram_path == "kept"
    assert [kind for kind, _, _ in rig.ledger.events] == ["intake_paused", "intake_resumed"]


def test_a_model_that_cannot_be_loaded_is_said_in_the_status(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    def broken() -> Any:
        raise BundleInvalid("metadata.json: the digest is wrong.")

    rig.service._make_stages = broken
    rig.thread.start()
    rig.thread.join(30)
    assert isinstance(rig.failure, BundleInvalid)
    state = read_state(rig.config.output.dir)
    assert (state.state, "digest" in (state.reason or "")) == ("failed", True)


def test_an_unusable_schema_stops_the_line(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.ledger.failures[:] = [SchemaMismatch("a table is absent")]
    rig.drop("a.h5", "1 cell")
    rig.thread.start()
    rig.thread.join(30)
    assert isinstance(rig.failure, SchemaMismatch)


def test_a_stop_with_the_store_away_ends_and_the_next_start_takes_up(tmp_path: Path) -> None:
    rig = Rig(tmp_path, settings={"service.drain_s": 0.2})
    with rig.running():
        rig.ledger.failures[:] = [DatabaseUnavailable("no answer")] * 1000
        rig.drop("a.h5", "1 cell")
        rig.log.wait_for("paused")
    assert rig.failure is None
    rig.ledger.failures.clear()
    again = Rig(tmp_path, _moved(rig.ledger))
    with again.running():
        again.log.wait_for("outcome")
    assert again.kinds() == {"a.h5": "measured"}


def test_an_unreadable_file_and_a_directory_each_get_one_row(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (rig.incoming / "folder.h5").mkdir()
    with rig.running():
        rig.log.wait_for("outcome")
    assert rig.kinds() == {"folder.h5": "set_aside"}
    again = Rig(tmp_path, _moved(rig.ledger))
    with again.running():
        again.drop("b.h5", "1 cell")
        again.log.wait_for("outcome")
    assert len(again.ledger.outcomes) == 2


def test_what_the_daemon_passes_over_is_in_its_state(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for name in ("run.mat", "notes.docx", "a_bg.tif"):
        rig.drop(name, "x")
    rig.drop("b.h5", "1 cell")
    with rig.running():
        rig.log.wait_for("outcome")
    told = (read_state(rig.config.output.dir).details or {})["ignored_files"]
    assert told == {
        "count": 2,
        "examples": ["run.mat is no *_Tomog.mat or sample*.mat", "notes.docx has no name of an acquisition"],
    }


def test_a_model_of_another_name_counts_anew(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.drop("a.h5", "1 cell")
    with rig.running():
        rig.log.wait_for("outcome")
    other = Rig(tmp_path, _moved(rig.ledger), model_id="other@1")
    with other.running():
        other.log.wait_for("outcome")
    assert {key[2] for key in other.ledger.outcomes} == {MODEL, "other@1"}


def test_the_service_manager_is_told_everything_in_order(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(address))
    manager.settimeout(20)
    rig = Rig(tmp_path, env={"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "300000"})
    heard: list[str] = []
    with manager:
        with rig.running():
            rig.drop("a.h5", "1 cell")
            while not any("1 measured (1 cells)" in text for text in heard):
                heard.append(manager.recv(4096).decode())
            while "WATCHDOG=1" not in heard[-1]:
                heard.append(manager.recv(4096).decode())
            reader = threading.Thread(target=lambda: _drain(manager, heard))
            reader.start()
        reader.join(20)
    told = "\n".join(heard)
    assert told.index("READY=1") < told.index("1 measured") < told.index("STOPPING=1")
    assert "WATCHDOG=1" not in told[: told.index("READY=1")]


def _drain(manager: socket.socket, heard: list[str]) -> None:
    while "STOPPING=1" not in heard[-1]:
        heard.append(manager.recv(4096).decode())


def test_a_hung_stage_gets_no_watchdog(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(address))
    manager.settimeout(20)
    entered, release = threading.Event(), threading.Event()

    def hangs(cells: Any) -> Any:
        entered.set()
        release.wait(30)
        return predict(cells)

    rig = Rig(tmp_path, env={"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "150000"}, predict=hangs)
    with manager, rig.running():
        rig.drop("a.h5", "1 cell")
        assert entered.wait(20)
        _forget_what_was_said(manager)
        for _ in range(3):  # the last steps before it hung may still count as progress
            manager.recv(4096)
        silent = [manager.recv(4096).decode() for _ in range(5)]
        manager.setblocking(False)
        release.set()
        rig.log.wait_for("outcome")
    assert not any("WATCHDOG" in text for text in silent)


def _forget_what_was_said(manager: socket.socket) -> None:
    manager.setblocking(False)
    try:
        while manager.recv(4096):
            pass
    except BlockingIOError:
        manager.settimeout(20)


def test_sigterm_drains_and_ends(tmp_path: Path) -> None:
    config = quick_config(tmp_path)
    (tmp_path / "incoming").mkdir()
    for number in range(5):
        (tmp_path / "incoming" / f"{number}.h5").write_text(f"1 cell of {number}")
    ledger, log = MemoryLedger(), RecordingLog()
    service = Service(
        config,
        make_stages=fake_stages,
        open_ledger=lambda stages: ledger,
        watcher=FolderWatcher(tmp_path / "incoming", rescan_s=0.1, quiet_s=0.01),
        log=log,
        env={},
        on_outcome=lambda outcome: os.kill(os.getpid(), signal.SIGTERM),
    )
    before = signal.getsignal(signal.SIGTERM)
    service.run()
    assert signal.getsignal(signal.SIGTERM) == before
    assert log.of("stopped")[0]["reason"] == "SIGTERM"
    assert len(ledger.outcomes) == log.of("stopped")[0]["measured"] >= 1
    assert ledger.tries == {}  # what was begun was finished


def test_the_state_file_survives_a_full_text_and_names_a_dead_process(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with rig.running():
        pass
    path = rig.config.output.dir / "daemon-state.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "state": "running", "pid": 2**22 + 1}))
    assert read_state(rig.config.output.dir).state == "silent"
    path.write_text(json.dumps({**data, "state": "running", "pid": os.getpid(), "updated_unix_s": 0}))
    assert "said nothing" in (read_state(rig.config.output.dir).reason or "")
    assert read_state(tmp_path / "elsewhere").state == "absent"


def test_a_pause_that_a_daemon_ended_in_is_over_when_the_next_is_ready(tmp_path: Path) -> None:
    ledger = MemoryLedger(events=[("intake_paused", "/output: the disk is full", {})])
    for _ in range(2):
        rig = Rig(tmp_path, _moved(ledger))
        with rig.running():
            pass
        assert [kind for kind, *_ in ledger.events] == ["intake_paused", "intake_resumed"]


def test_a_file_that_leaves_before_its_outcome_is_forgotten(tmp_path: Path) -> None:
    rig = Rig(tmp_path, settings={"limits.max_tries": 100, "watch.quiet_s": 0.3})
    path = rig.drop("half.h5", "incomplete")
    with rig.running():
        rig.log.wait_for("again_later")
        assert len(rig.ledger.tries) == 1
        path.unlink()
        rig.log.wait_for("vanished")
    assert rig.ledger.tries == rig.ledger.paths == {}


def held(path: Path, content_id: str) -> SourceFile:
    return SourceFile(str(path), 1, 1, "", content_id, {})


def test_a_begun_file_that_left_while_no_daemon_ran_is_forgotten(tmp_path: Path) -> None:
    gone, kept = tmp_path / "incoming" / "gone.h5", tmp_path / "elsewhere" / "kept.h5"
    ledger = MemoryLedger(tries={"1": 1, "2": 1}, paths={str(gone): held(gone, "1"), str(kept): held(kept, "2")})
    rig = Rig(tmp_path, ledger)
    with rig.running():
        pass
    assert ledger.tries == {"2": 1}


def test_a_counted_file_that_is_moved_away_is_forgotten_and_its_count_stays(tmp_path: Path) -> None:
    forgotten = threading.Event()

    class Listening(MemoryLedger):
        def gone(self, path: Path) -> None:
            super().gone(path)
            forgotten.set()

    rig = Rig(tmp_path, Listening())
    path = rig.drop("a.h5", "1 cell")
    with rig.running():
        rig.log.wait_for("outcome")
        path.rename(tmp_path / "a.h5")
        assert forgotten.wait(20)
    assert rig.ledger.paths == {}
    assert len(rig.ledger.outcomes) == 1


def test_an_absent_folder_is_awaited_with_a_reason(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.incoming.rmdir()
    with rig.running():
        state = read_state(rig.config.output.dir)
        assert (state.state, "incoming is absent" in (state.reason or "")) == ("paused", True)
        rig.incoming.mkdir()
        rig.drop("a.h5", "1 cell")
        rig.log.wait_for("outcome")
    assert rig.kinds() == {"a.h5": "measured"}


def test_only_an_unset_folder_or_a_file_is_a_wrong_value(tmp_path: Path) -> None:
    absent = quick_config(tmp_path)
    assert not make_watcher(absent).present
    (tmp_path / "file").touch()
    for config, awaited in [
        (absent, False),
        (quick_config(tmp_path, **{"watch.dir": tmp_path / "file"}), True),
        (Config.load(None, {}, {}), True),
    ]:
        with pytest.raises(BadValue, match=r"watch\.dir is"):
            make_watcher(config, awaited=awaited)


def test_the_start_removes_what_killed_writers_left(tmp_path: Path) -> None:
    config = quick_config(tmp_path)
    left = config.output.dir / "ab" / f"{TEMPORARY}1"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    clean_output(config)
    assert not left.exists()
    clean_output(quick_config(tmp_path / "none"))


def test_a_large_find_is_held_against_the_ledger_first(tmp_path: Path) -> None:
    first = Rig(tmp_path)
    for number in range(150):
        first.drop(f"{number:03d}.h5", f"1 cell of {number}")
    with first.running():
        first.log.wait_for("outcome", 150)
    identified: list[Path] = []

    def identify_noted(path: Path, *, beat: Any) -> Any:
        identified.append(path)
        return identify(path)

    again = Rig(tmp_path, _moved(first.ledger), identify=identify_noted)
    again.drop("000.h5", "2 cells now")  # rewritten while no daemon ran
    again.drop("new.h5", "1 cell more")
    with again.running():
        again.log.wait_for("outcome", 2)
    assert sorted(path.name for path in identified) == ["000.h5", "new.h5"]
    assert len(again.ledger.outcomes) == 152


@pytest.mark.parametrize("newest_first", [False, True])
def test_what_was_sifted_keeps_the_order_of_the_folder(newest_first: bool) -> None:
    backlog = Backlog(newest_first=newest_first)
    paths = [Path(f"{number}.h5") for number in range(SIFTED_AT_ONCE + 500)]
    backlog.find(paths)
    asked: list[list[Path]] = []

    def ask(some: list[Path], keep: Any) -> bool:
        asked.append(some)
        keep([path for path in some if int(path.stem) % 2])
        return True

    assert len(backlog) == len(paths)
    while len(backlog) > len(paths) // 2:
        backlog.sift(ask)
    assert [len(some) for some in asked] == [SIFTED_AT_ONCE, 500]
    taken: list[Path] = []
    backlog.feed(lambda path: taken.append(path) is None)
    assert taken == paths[1::2]


def test_a_question_that_the_store_has_no_room_for_is_asked_again() -> None:
    backlog = Backlog()
    backlog.find([Path(f"{number}.h5") for number in range(100)])
    backlog.sift(lambda some, keep: False)
    assert len(backlog) == 100
    backlog.sift(lambda some, keep: keep(some) is None)
    backlog.sift(lambda some, keep: True)
    assert len(backlog) == 100
    taken: list[Path] = []
    backlog.feed(lambda path: taken.append(path) is None)
    assert len(taken) == 100


def test_a_backlog_keeps_each_path_once_in_the_order_asked_for() -> None:
    paths = [Path(name) for name in "abc"]
    for newest_first, expected in ((False, "abcd"), (True, "dabc")):
        backlog = Backlog(newest_first=newest_first)
        backlog.add(paths)
        backlog.add([Path("a"), Path("d")])
        seen: list[str] = []
        backlog.feed(lambda path, seen=seen: [seen.append(path.name), True][1])
        assert "".join(seen) == expected
