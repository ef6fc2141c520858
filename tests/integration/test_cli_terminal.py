"""The command line in a terminal, in a pipe, on a full disk, and when it is interrupted: real processes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from helpers_spheres import tiny_bundle, write_run
from helpers_store import KEY, opened
from rich.cells import cell_len

from wbcd.cli import cli
from wbcd.testing import make_cell, make_measured

WBCD = (sys.executable, "-m", "wbcd.cli")
LABELS = ("b_lymphocyte", "t_lymphocyte", "monocyte", "myelocyte")
LIMIT_S = 120.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """Twelve samples of four classes, the last one running."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(sqlite_template, folder / "wbcd.db")
    with opened(str(folder / "wbcd.db")) as ledger:
        for number in range(12):
            cells = [make_cell(label, number=place + 1) for place, label in enumerate(LABELS)]
            ledger.commit(make_measured(f"m{number}", *cells, sample=f"donor-{number:02d} {'long ' * 12}"), *KEY)
        ledger.commit(make_measured("last", make_cell("monocyte"), sample="the running one"), *KEY)
    return folder


class Terminal:
    """A program on a pseudo-terminal of ``columns`` x ``rows``."""

    def __init__(self, columns: int, rows: int, *words: str, cwd: Path) -> None:
        self.said = b""
        self.pid, self._handle = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execvpe(words[0], words, {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": str(rows)})
        fcntl.ioctl(self._handle, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_until(self, wanted: bytes) -> None:
        """Until the text was said; to the end where it never is."""
        deadline = time.monotonic() + LIMIT_S
        while wanted not in self.said and time.monotonic() < deadline and self._read():
            pass

    def press_control_c(self) -> None:
        os.write(self._handle, b"\x03")

    def end(self) -> int:
        """Its exit status."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> bool:
        if not select.select([self._handle], [], [], 1.0)[0]:
            return True
        try:
            some = os.read(self._handle, 65536)
        except OSError:  # the other end is closed
            return False
        self.said += some
        return bool(some)

    def text(self) -> str:
        return self.said.decode()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (60, 20)])
def test_status_fits_the_terminal_and_says_what_it_leaves_out(site: Path, columns: int, rows: int) -> None:
    terminal = Terminal(columns, rows, *WBCD, "status", cwd=site)
    assert terminal.end() == 0
    lines = terminal.text().rstrip("\r\n").split("\r\n")
    assert len(lines) <= rows - 1  # the prompt has a row too
    assert all(cell_len(line) <= columns for line in lines)
    samples = [line for line in lines if line.startswith("sample")]
    assert samples[0].startswith("sample     the running one (running)")
    assert re.match(r"\.\.\. \d+ more lines", lines[-1])


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (60, 20)])
def test_status_watch_fits_the_terminal(site: Path, columns: int, rows: int) -> None:
    terminal = Terminal(columns, rows, *WBCD, "status", "--watch", cwd=site)
    terminal.read_until(b"every sample")
    terminal.press_control_c()
    assert terminal.end() == 0
    first = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text()).split("every sample")[0].split("\r\n")
    assert len(first) <= rows - 1
    assert all(cell_len(line) <= columns for line in first)
    assert any(line.startswith("sample     the running one") for line in first)
    assert "more lines" in first[-1]


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize(
    "words", [("counts",), ("counts", "--json"), ("status",), ("status", "--prometheus"), ("--help",), ("config", "show")]
)
def test_a_closed_pipe_and_a_full_disk_end_without_a_traceback(site: Path, words: tuple[str, ...], unbuffered: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody, Path("/dev/full").open("wb") as full:
        in_pipe = subprocess.run([*WBCD, *words], cwd=site, stdout=nobody, stderr=subprocess.PIPE, env=environment)
        on_disk = subprocess.run([*WBCD, *words], cwd=site, stdout=full, stderr=subprocess.PIPE, env=environment)
    assert (in_pipe.returncode, in_pipe.stderr) == (141, b"")
    assert on_disk.returncode == 74
    assert on_disk.stderr == b"wbcd: standard output cannot be written: No space left on device.\n"


FILES = 24
"""So many that Ctrl-C at the first result comes before the last, on a busy machine too."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("process")
    tiny_bundle(place / "bundle")
    write_run(place / "in", FILES)
    return place


def test_an_interrupted_process_says_how_to_go_on_and_does_so(folder: Path) -> None:
    words = (*WBCD, "process", "in", "--model", "bundle", "--db", "sqlite:///once.db", "--output-dir", "out")
    terminal = Terminal(100, 24, *words, cwd=folder)
    terminal.read_until(b"000.TCF: measured")
    terminal.press_control_c()
    assert terminal.end() == 130
    said = terminal.text()
    assert "Traceback" not in said
    assert "wbcd: interrupted. What has its line is stored; the same command goes on with the rest." in said
    again = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    lines = again.stdout.splitlines()
    assert len(lines) == FILES
    assert "[already stored" in lines[0]
    assert "[already stored" not in lines[-1]


def test_the_bar_and_the_results_share_no_line_and_a_file_gets_the_results(folder: Path) -> None:
    words = " ".join((*WBCD, "process", "in", "--model", "bundle", "--output-dir", "out2", "--db"))
    terminal = Terminal(200, 50, "sh", "-c", f"{words} sqlite:///both.db", cwd=folder)
    assert terminal.end() == 0
    drawn = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", row).rpartition("\r")[2] for row in terminal.text().split("\r\n")]
    results = [row for row in drawn if row.startswith("in/")]
    assert len(results) == FILES
    assert not any("processing" in row or "━" in row for row in results)
    terminal = Terminal(200, 50, "sh", "-c", f"{words} sqlite:///file.db > results.txt", cwd=folder)
    assert terminal.end() == 0
    assert "processing" in terminal.text()
    assert (folder / "results.txt").read_text().splitlines() == results


@pytest.mark.parametrize(
    ("place", "words", "advice"),
    [
        ("wbcd.training.fit.train", ("train", "{set}", "{out}"), "goes on where it stopped"),
        ("wbcd.training.make.make_dataset", ("dataset", "make", "{out}"), "goes on where it stopped"),
        ("wbcd.training.join.join", ("dataset", "join", "{set}", "--out", "{out}"), "goes on where it stopped"),
        ("wbcd.training.fromdb.dataset_from_db", ("dataset", "from-db", "--out", "{out}"), "goes on where it stopped"),
        ("wbcd.training.judge.judge_models", ("evaluate", "reference", "{set}"), "begins anew"),
        ("wbcd.training.unknown.calibrate", ("model", "calibrate", "reference", "{set}", "{out}"), "begins anew"),
        ("wbcd.training.paper.run_experiments", ("paper", "fig2", "--data", "{set}", "--out", "{out}"), "goes on where"),
        ("wbcd.simulation.microscope.simulate", ("simulate", "{out}"), "goes on where it stopped"),
        ("wbcd.cli.verify._findings", ("verify",), "Nothing was changed; the same command begins anew."),
        ("wbcd.store.retention.plan", ("retention", "--max-gib", "1"), "the same command goes on with the rest"),
        ("wbcd.cli.reprocess._made", ("reprocess",), "the same command goes on with the rest"),
        ("wbcd.cli.demo._follow", ("demo", "--out", "{out}", "--cells", "1"), "begins anew"),
    ],
)
def test_each_long_verb_says_how_to_go_on(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, words: tuple[str, ...], advice: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(site)
    monkeypatch.setattr(place, interrupted)
    (tmp_path / "set.zarr").mkdir()
    found = CliRunner().invoke(cli, [word.format(set=tmp_path / "set.zarr", out=tmp_path / "out") for word in words])
    assert found.exit_code == 130, found.output
    assert found.stderr.splitlines()[-1].startswith("wbcd: interrupted. ")
    assert advice in found.stderr


def test_an_interrupted_pool_of_workers_ends_at_once(tmp_path: Path) -> None:
    """Ctrl-C reaches the workers too: none says so, and none finishes the minutes of work that it was given."""
    words = (*WBCD, "dataset", "make", "set.zarr", "--cells", "4000", "--workers", "2", "--path", "exact")
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True) as child:
        deadline = time.monotonic() + LIMIT_S
        workers: list[psutil.Process] = []
        while len(workers) < 2 and time.monotonic() < deadline and child.poll() is None:
            # What has used a processor for some seconds simulates: the imports were done by the fork server.
            family = psutil.Process(child.pid).children(recursive=True)
            workers = [one for one in family if one.ppid() != child.pid and sum(one.cpu_times()[:2]) > 1.0]
            select.select([], [], [], 0.2)
        assert len(workers) == 2
        began = time.monotonic()
        os.killpg(child.pid, signal.SIGINT)
        said = child.communicate(timeout=LIMIT_S)[1].decode()
        took_s = time.monotonic() - began
    assert child.returncode == 130, said
    assert "wbcd: interrupted. The same command goes on where it stopped." in said
    assert "Traceback" not in said, said
    assert took_s < 20
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert len(gone) == 2
