"""Watch folder, output folder and database lie apart, by whatever name, link or mount they are reached."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from click.testing import CliRunner, Result
from helpers_zygote import may_mount

from wbcd.cli import cli
from wbcd.config import Config
from wbcd.daemon import places
from wbcd.daemon.places import Mount, entangled, lies_in, location, parsed

APART = "Give each a place of its own: --watch-dir, --output-dir, --db."


def settings(watch: Path, output: Path, database: str | Path) -> Config:
    url = database if isinstance(database, str) else f"sqlite:///{database}"
    return Config.load(None, {}, {"watch.dir": watch, "output.dir": output, "database.url": url})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "session").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    return tmp_path


@pytest.mark.parametrize(
    ("watch", "output", "database", "said"),
    [
        ("in", "in/results", "wbcd.db", "output.dir .* lies in watch.dir"),
        ("in", "in/session/deep/er", "wbcd.db", "output.dir .* lies in watch.dir"),
        ("in", "link/results", "wbcd.db", "output.dir .* lies in watch.dir"),
        ("link", "in/results", "wbcd.db", "output.dir .* lies in watch.dir"),
        ("in", "out/../in/results", "wbcd.db", "output.dir .* lies in watch.dir"),
        ("in", "in", "wbcd.db", "are the same folder"),
        ("in", "link", "wbcd.db", "are the same folder"),
        ("absent", "absent/results", "wbcd.db", "output.dir .* lies in watch.dir"),
        ("out/incoming", "out", "wbcd.db", "watch.dir .* lies in output.dir"),
        ("out", "out/results", "wbcd.db", "output.dir .* lies in watch.dir"),
        ("in", "out", "in/wbcd.db", "the database .* lies in watch.dir"),
        ("in", "out", "link/session/wbcd.db", "the database .* lies in watch.dir"),
    ],
)
def test_what_lies_in_the_watch_folder_is_named(folder: Path, watch: str, output: str, database: str, said: str) -> None:
    problem = entangled(settings(folder / watch, folder / output, folder / database))
    assert problem is not None
    assert re.search(said, problem)


@pytest.mark.parametrize(
    ("watch", "output", "database"),
    [
        ("in", "out", "wbcd.db"),
        ("in", "out", "out/wbcd.db"),
        ("in", "in-results", "in.db"),  # one name begins as the other
        ("in", "in/away", "wbcd.db"),  # a link out of the watch folder, which the watcher does not follow
        ("absent", "out", "wbcd.db"),
    ],
)
def test_what_lies_beside_it_is_not(folder: Path, watch: str, output: str, database: str) -> None:
    assert entangled(settings(folder / watch, folder / output, folder / database)) is None


def test_a_database_on_a_server_or_in_memory_lies_nowhere(folder: Path) -> None:
    for url in ("postgresql://wbcd@localhost/wbcd", "sqlite://"):
        assert entangled(settings(folder / "in", folder / "out", url)) is None


def test_without_a_watch_folder_there_is_nothing_to_compare(folder: Path) -> None:
    assert entangled(Config.load(None, {}, {"output.dir": folder / "in"})) is None


# --- mounts -----------------------------------------------------------------------------------------------

TABLE = """\
27 1 254:0 / / rw - ext4 /dev/vda rw
30 27 8:1 / /data rw - ext4 /dev/sda1 rw
31 27 8:1 /microscope/session /mnt/my\\040share rw - ext4 /dev/sda1 rw
32 27 254:0 /srv/out /data/microscope/shown rw - ext4 /dev/vda rw
33 27 254:0 /srv/other/ab /data/second/part rw - ext4 /dev/vda rw
"""


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("/mnt/my share/results", "/data/microscope", True),  # a folder of the watch folder, mounted elsewhere
        ("/mnt/my share", "/data/microscope", True),
        ("/srv/out", "/data/microscope", True),  # shown within the watch folder
        ("/srv/out/deeper", "/data/microscope", True),
        ("/srv/other", "/data/second", True),  # a part of it is
        ("/srv/third", "/data/second", False),
        ("/data/results", "/data/microscope", False),
        ("/data/microscope", "/mnt/my share", False),
        ("/microscope/session/results", "/data/microscope", False),  # the same path of another file system
    ],
)
def test_the_kernels_table_tells_what_a_bind_mount_shows(inner: str, outer: str, expected: bool) -> None:
    assert lies_in(Path(inner), Path(outer), list(parsed(TABLE))) is expected


def test_of_two_mounts_at_one_point_the_last_lies_on_top() -> None:
    mounts = [Mount("1:1", PurePosixPath("/"), PurePosixPath("/a")), Mount("2:2", PurePosixPath("/x"), PurePosixPath("/a"))]
    assert location(PurePosixPath("/a/b"), mounts) == ("2:2", PurePosixPath("/x/b"))
    assert location(PurePosixPath("/c"), mounts) is None


MOUNTED = """
import subprocess, sys
from pathlib import Path
from wbcd.config import Config
from wbcd.daemon.places import entangled
here = Path(sys.argv[1])
subprocess.run(["mount", "--bind", here / sys.argv[2], here / sys.argv[3]], check=True)
settings = {"watch.dir": here / "in", "output.dir": here / sys.argv[4], "database.url": f"sqlite:///{here}/wbcd.db"}
print(entangled(Config.load(None, {}, settings)))
"""


@pytest.mark.parametrize(
    ("source", "point", "output", "said"),
    [
        ("in", "mounted", "mounted/results", "lies in watch.dir"),
        ("in", "mounted", "mounted", "are the same folder"),
        ("in/session", "mounted", "mounted/results", "lies in watch.dir"),
        ("out", "in/session", "out", "lies in watch.dir"),
        ("out", "mounted", "mounted", "None"),
    ],
)
def test_a_real_bind_mount(folder: Path, source: str, point: str, output: str, said: str) -> None:
    if not may_mount():
        pytest.skip("this machine allows no mounts of one's own (unshare -m)")
    (folder / "mounted").mkdir()
    namespace = ["unshare", "-m" if os.geteuid() == 0 else "-Urm"]
    command = [*namespace, sys.executable, "-c", MOUNTED, str(folder), source, point, output]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said in done.stdout


# --- the verbs --------------------------------------------------------------------------------------------


def verb(*words: str, folder: Path) -> Result:
    options = ["--watch-dir", str(folder / "in"), "--output-dir", str(folder / "in" / "results")]
    return CliRunner().invoke(cli, [*words, *options, "--db", f"sqlite:///{folder / 'wbcd.db'}"])


@pytest.mark.parametrize(
    "words", [("run",), ("run", "--until-idle"), ("process", "FILE"), ("reprocess",), ("config", "check")], ids=" ".join
)
def test_verbs_that_would_write_there_end_with_78_and_have_made_nothing(folder: Path, words: tuple[str, ...]) -> None:
    (folder / "FILE").touch()
    result = verb(*(str(folder / word) if word == "FILE" else word for word in words), folder=folder)
    assert result.exit_code == 78
    sentence = (
        f"output.dir {folder / 'in' / 'results'} lies in watch.dir {folder / 'in'}: wbcd would watch what it writes itself."
    )
    assert f"{sentence} {APART}" in result.stderr
    assert not (folder / "in" / "results").exists()
    assert not (folder / "wbcd.db").exists()


def test_doctor_finds_it(folder: Path) -> None:
    result = verb("doctor", "--json", folder=folder)
    (found,) = [item for item in json.loads(result.stdout) if item["what"] == "folders apart"]
    assert (result.exit_code, found["verdict"], found["do"]) == (1, "wrong", APART)
    assert "lies in watch.dir" in found["message"]


def test_the_watch_folder_where_one_stands_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cd folder; wbcd run --watch-dir .`: the output folder and the database are by default there too."""
    monkeypatch.chdir(folder / "in")
    before = set(folder.rglob("*"))
    result = CliRunner().invoke(cli, ["run", "--watch-dir", "."], env={"WBCD_DATABASE_URL": None, "WBCD_OUTPUT_DIR": None})
    assert result.exit_code == 78
    assert "output.dir wbcd-output" in result.stderr
    assert set(folder.rglob("*")) == before


def test_without_the_kernels_table_paths_and_inodes_are_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MOUNTS", folder / "absent")
    assert places.read_mounts() == []
    assert entangled(settings(folder / "link", folder / "in" / "results", folder / "wbcd.db")) is not None
