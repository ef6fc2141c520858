"""Files whose first outcome is not their last, and files that only look unchanged: the real daemon, the real verbs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import pytest
from helpers_ledger import rows, sound
from helpers_spheres import VOXEL_UM, cheap_settings, sphere, tiny_bundle
from helpers_zygote import Daemon, Zygote, wait_until

from wbcd.daemon.state import read_state
from wbcd.report.counts import read_differential, read_status
from wbcd.simulation.files import write_reference, write_tcf
from wbcd.simulation.microscope import simulate

COARSE = {"recipe.reconstruction.voxel_um": [0.4, 0.2, 0.2], "recipe.reconstruction.shape": [50, 80, 80]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sample as TIFF, its background and its notes."""
    folder = tmp_path_factory.mktemp("pair")
    list(simulate(folder, 1, 3, format="tiff", sample="donor-1"))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def parts(folder: Path) -> tuple[Path, Path, Path]:
    """Sample, background, notes."""
    (sample,) = folder.glob("*_sp.tif*")
    (background,) = folder.glob("*bg.tif*")
    (notes,) = folder.glob("*.json")
    return sample, background, notes


@contextmanager
def running(zygote: Zygote, settings: dict[str, Any], folder: Path) -> Iterator[Daemon]:
    daemon = zygote.begin(settings, folder / "log")
    yield daemon
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0, (folder / "log").read_text()[-2000:]


def outcomes(folder: Path) -> list[tuple[Any, ...]]:
    try:
        return rows(folder, "SELECT outcome, reason FROM run ORDER BY id")
    except Exception:  # noqa: BLE001 - the schema is just being made
        return []


def kinds(folder: Path) -> list[str]:
    return [row[0] for row in rows(folder, "SELECT kind FROM event ORDER BY id")]


def wbcd(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wbcd.cli", *map(str, words), "--db", f"sqlite:///{folder}/wbcd.db"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("late", [0, 1])
def test_a_companion_that_comes_late_is_waited_for(tmp_path: Path, zygote: Zygote, pair: Path, bundle: Path, late: int) -> None:
    sample, *others = parts(pair)
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for path in (sample, others[1 - late]):
        shutil.copy2(path, incoming)
    with running(zygote, cheap_settings(tmp_path, bundle, **COARSE), tmp_path):
        said = wait_until(lambda: (read_state(tmp_path / "output").details or {}).get("awaiting_examples"))
        assert ("background" if late == 0 else "notes") in next(iter(said.values()))
        assert {row.state: row.n for row in read_status(tmp_path / "wbcd.db").backlog}["companion"] == 1
        assert outcomes(tmp_path) == []
        shutil.copy2(others[late], incoming)
        wait_until(lambda: outcomes(tmp_path) == [("measured", None)])
        wait_until(lambda: read_state(tmp_path / "output").details["awaiting"] == 0)
    assert [row.sample for row in read_differential(tmp_path / "wbcd.db")] == ["donor-1"]


def test_a_companion_that_comes_after_the_patience_takes_it_up_again(
    tmp_path: Path, zygote: Zygote, pair: Path, bundle: Path
) -> None:
    sample, background, notes = parts(pair)
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for path in (sample, notes):
        shutil.copy2(path, incoming)
    settings = cheap_settings(tmp_path, bundle, **COARSE, **{"watch.companion_wait_s": 0.2})
    with running(zygote, settings, tmp_path):
        wait_until(lambda: outcomes(tmp_path) == [("set_aside", "input.companion_missing")])
        shutil.copy2(background, incoming)
        wait_until(lambda: outcomes(tmp_path) == [("measured", None)])
    assert kinds(tmp_path)[-2:] == ["outcome_reopened", "outcome_replaced"]
    assert sum(row.n for row in read_differential(tmp_path / "wbcd.db")) == 1
    assert sound(tmp_path) == []


def test_notes_that_are_corrected_after_they_were_refused(tmp_path: Path, zygote: Zygote, pair: Path, bundle: Path) -> None:
    incoming = tmp_path / "incoming"
    shutil.copytree(pair, incoming)
    _, _, notes = parts(incoming)
    right = notes.read_text()
    wrong = json.loads(right)
    wrong["wavelength_um"] = 532.0
    notes.write_text(json.dumps(wrong))
    with running(zygote, cheap_settings(tmp_path, bundle, **COARSE), tmp_path):
        wait_until(lambda: outcomes(tmp_path) == [("set_aside", "input.bad_field")])
        notes.write_text(right)
        wait_until(lambda: outcomes(tmp_path) == [("measured", None)])


def test_a_background_that_is_corrected_after_the_count_is_flagged_and_reprocessed(
    tmp_path: Path, zygote: Zygote, pair: Path, bundle: Path
) -> None:
    incoming = tmp_path / "incoming"
    shutil.copytree(pair, incoming)
    sample, background, notes = parts(incoming)
    settings = cheap_settings(tmp_path, bundle, **COARSE, **{"output.keep_tomograms": True})
    with running(zygote, settings, tmp_path):
        wait_until(lambda: outcomes(tmp_path) == [("measured", None)])
        before = rows(tmp_path, "SELECT volume_fl FROM cell")
        stated = json.loads(notes.read_text())
        stated["medium_ri"] = 1.334  # corrected, within what the cell's own surroundings allow
        notes.write_text(json.dumps(stated))
        wait_until(lambda: "companions_changed" in kinds(tmp_path))
        assert rows(tmp_path, "SELECT volume_fl FROM cell") == before
    once = ProcessAgain(settings)
    assert once(sample)[0] == "measured"
    after = rows(tmp_path, "SELECT volume_fl FROM cell")
    assert len(after) == len(before) == 1
    assert after != before
    assert sound(tmp_path) == []  # the new volume is there, the old one is not
    assert once(sample)[0] == "measured"
    assert rows(tmp_path, "SELECT COUNT(*) FROM run") == [(1,)]
    assert background.is_file()


class ProcessAgain:
    """What `wbcd reprocess` calls for each file, with the settings of a test."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from wbcd.config import Config

        plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
        self._config = Config.load(None, {}, plain)

    def __call__(self, path: Path) -> tuple[str, str | None]:
        from wbcd.daemon.assembly import make_stages, open_ledger
        from wbcd.daemon.once import ProcessOnce

        stages = make_stages(self._config)
        with open_ledger(self._config, stages) as ledger:
            made = ProcessOnce(self._config, stages, ledger, replace_changed=True)(path)
        outcome = made.outcome if hasattr(made, "outcome") else made.kind
        return outcome, getattr(made, "reason", None)


def test_a_reference_that_only_the_file_names_comes_late(tmp_path: Path, zygote: Zygote, bundle: Path) -> None:
    """The name stands inside: the daemon knows it from the reading."""
    made = tmp_path / "made"
    (acquisition,) = list(simulate(made, 1, 3, sample="donor-1"))
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    shutil.copy2(acquisition.path, incoming)
    with h5py.File(acquisition.path) as file:
        name = str(file.attrs["reference_file"])
    with running(zygote, cheap_settings(tmp_path, bundle, **COARSE, **{"watch.companion_wait_s": 0.2}), tmp_path):
        wait_until(lambda: outcomes(tmp_path) == [("set_aside", "input.companion_missing")])
        shutil.copy2(made / name, incoming)
        wait_until(lambda: outcomes(tmp_path) == [("measured", None)])
        with h5py.File(made / name) as file:
            frames = file["reference"][...]
        (incoming / name).unlink()
        write_reference(incoming / name, frames[::-1].copy())
        wait_until(lambda: "companions_changed" in kinds(tmp_path))
    assert read_status(tmp_path / "wbcd.db").companions_changed == (str(incoming / acquisition.path.name),)


def test_a_limit_that_is_raised_as_advised(tmp_path: Path, zygote: Zygote, bundle: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    write_tcf(incoming / "a.TCF", [sphere(3.0, size=80)], voxel_um=VOXEL_UM, title="a")
    settings = cheap_settings(tmp_path, bundle, **{"limits.max_logical_bytes": 2**20})
    assert zygote.run(settings, tmp_path / "log") == 0
    assert outcomes(tmp_path) == [("set_aside", "input.too_large")]
    assert zygote.run(settings, tmp_path / "log") == 0  # nothing has changed: nothing is tried again
    assert kinds(tmp_path).count("outcome_reopened") == 0
    assert zygote.run(settings | {"limits.max_logical_bytes": 2**26}, tmp_path / "log") == 0
    assert outcomes(tmp_path) == [("measured", None)]
    assert "outcome_replaced" in kinds(tmp_path)


def test_a_file_limit_that_is_raised_leaves_one_outcome(tmp_path: Path, zygote: Zygote, bundle: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    path = write_tcf(incoming / "a.TCF", [sphere(3.0, size=90)], voxel_um=VOXEL_UM, title="a")
    with path.open("ab") as stream:
        stream.write(b"\0" * 2**20)  # beyond the least limit, whatever the volume packs to
    settings = cheap_settings(tmp_path, bundle, **{"limits.max_file_bytes": 2**20})
    assert zygote.run(settings, tmp_path / "log") == 0
    assert outcomes(tmp_path) == [("set_aside", "input.too_large")]
    assert zygote.run(settings | {"limits.max_file_bytes": 2**30}, tmp_path / "log") == 0
    assert len(outcomes(tmp_path)) == 1
    assert outcomes(tmp_path)[0][1] != "input.too_large"


def test_retry_by_hand_is_taken_up_by_the_daemon(tmp_path: Path, zygote: Zygote, bundle: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for name in ("a", "b"):
        path = write_tcf(incoming / f"{name}.TCF", [sphere(3.0)], voxel_um=VOXEL_UM, title=name)
        os.truncate(path, path.stat().st_size - 3000)
    with running(zygote, cheap_settings(tmp_path, bundle, **{"limits.max_tries": 1}), tmp_path):
        wait_until(lambda: len(outcomes(tmp_path)) == 2)
        assert wbcd(tmp_path, "retry", "--reason", "no.such.reason").returncode == 65
        shown = wbcd(tmp_path, "retry", incoming / "a.TCF", "--dry-run", "--json")
        assert json.loads(shown.stdout)["files"] == [str(incoming / "a.TCF")]
        assert "outcome_reopened" not in kinds(tmp_path)
        asked = wbcd(tmp_path, "retry", incoming / "a.TCF", "--by", "R")
        assert asked.returncode == 0, asked.stderr
        wait_until(lambda: "outcome_replaced" in kinds(tmp_path))
    assert kinds(tmp_path).count("outcome_replaced") == 1
    assert len(outcomes(tmp_path)) == 2
    ((details,),) = rows(tmp_path, "SELECT details FROM event WHERE kind = 'outcome_reopened'")
    assert json.loads(details)["by"] == "R"


def test_other_bytes_under_the_same_size_and_time(tmp_path: Path, zygote: Zygote, bundle: Path) -> None:
    incoming, other = tmp_path / "incoming", tmp_path / "other"
    incoming.mkdir()
    other.mkdir()
    path = write_tcf(incoming / "a.TCF", [sphere(3.0)], voxel_um=VOXEL_UM, title="a")
    settings = cheap_settings(tmp_path, bundle)
    assert zygote.run(settings, tmp_path / "log") == 0
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    twin = other / "a.TCF"
    twin.write_bytes(data)
    shutil.copystat(path, twin)
    assert (twin.stat().st_size, twin.stat().st_mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    shutil.copy2(twin, path)  # between runs, as `cp -p` does
    assert zygote.run(settings, tmp_path / "log") == 0
    assert kinds(tmp_path).count("changed_after_count") == 1


def test_a_sample_of_counted_files_is_hashed_again(tmp_path: Path, zygote: Zygote, bundle: Path) -> None:
    """Bytes that changed under an unchanged state (a failing disk) are found by the hash alone: the state is forged here."""
    import sqlite3

    from wbcd.acquisition.companions import look

    incoming = tmp_path / "incoming"
    incoming.mkdir()
    path = write_tcf(incoming / "a.TCF", [sphere(3.0)], voxel_um=VOXEL_UM, title="a")
    settings = cheap_settings(tmp_path, bundle)
    assert zygote.run(settings, tmp_path / "log") == 0
    with path.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(b"\1" * 10)
    found = look(path)
    with sqlite3.connect(tmp_path / "wbcd.db") as connection:
        values = (found.size, found.mtime_ns, found.token)
        connection.execute("UPDATE source_file SET size_bytes = ?, mtime_ns = ?, state = ?", values)
    assert zygote.run(settings, tmp_path / "log") == 0
    assert "changed_after_count" not in kinds(tmp_path)
    with running(zygote, settings | {"watch.rehash_every_h": 0.001, "watch.rehash_files": 5}, tmp_path):
        wait_until(lambda: "changed_after_count" in kinds(tmp_path))
    assert "rehashed" in kinds(tmp_path)


def test_one_acquisition_in_two_formats_is_counted_once(tmp_path: Path, zygote: Zygote, bundle: Path, pair: Path) -> None:
    incoming = tmp_path / "incoming"
    shutil.copytree(pair, incoming)
    _, _, notes = parts(incoming)
    stated = json.loads(notes.read_text())
    notes.write_text(json.dumps({**stated, "acquisition_id": "instrument-17"}))
    settings = cheap_settings(tmp_path, bundle, **COARSE)
    assert zygote.run(settings, tmp_path / "log") == 0
    write_tcf(incoming / "twin.TCF", [sphere(3.0)], voxel_um=VOXEL_UM, title="donor-1", unique_id="instrument-17")
    assert zygote.run(settings, tmp_path / "log") == 0
    assert outcomes(tmp_path) == [("measured", None), ("set_aside", "input.same_acquisition")]
    (message,) = rows(tmp_path, "SELECT message FROM run WHERE outcome = 'set_aside'")[0]
    assert parts(incoming)[0].name in message
    assert zygote.run(settings | {"watch.same_acquisition": "count"}, tmp_path / "log") == 0
    assert outcomes(tmp_path) == [("measured", None)] * 2


def test_two_runs_under_other_samples_and_models_move_nothing(tmp_path: Path, bundle: Path) -> None:
    """As it was found: `wbcd process in --sample donor-A`, then two of the files with `--sample donor-B --model other`."""
    incoming = tmp_path / "in"
    incoming.mkdir()
    for number in range(3):
        write_tcf(incoming / f"{number}.TCF", [sphere(3.0 + 0.1 * number)], voxel_um=VOXEL_UM, title="")
    other = tiny_bundle(tmp_path / "other")
    card = json.loads((other / "metadata.json").read_text())
    assert card["wbcd"]["name"] == "tiny"
    options = ("--output-dir", tmp_path / "out", "--json")
    first = wbcd(tmp_path, "process", incoming, "--sample", "donor-A", "--model", bundle, *options)
    assert first.returncode == 0, first.stderr
    labelled = wbcd(tmp_path, "label", "--sample", "donor-A", "--as", "monocyte")
    assert labelled.returncode == 0, labelled.stderr
    files = [incoming / "0.TCF", incoming / "1.TCF"]
    second = wbcd(tmp_path, "process", *files, "--sample", "donor-B", "--model", "reference", *options)
    assert second.returncode == 0, second.stderr
    names = rows(tmp_path, "SELECT DISTINCT sample.name FROM acquisition JOIN sample ON sample.id = acquisition.sample_id")
    assert names == [("donor-A",)]
    assert kinds(tmp_path).count("sample_conflict") == 2
    assert rows(tmp_path, "SELECT COUNT(DISTINCT cell_id) FROM cell_label") == rows(tmp_path, "SELECT COUNT(*) FROM cell")
    moved = wbcd(tmp_path, "sample", "move", files[0], "--to", "donor-B", "--by", "R", "--json")
    assert json.loads(moved.stdout)["moved"] == 1, moved.stderr
    assert rows(tmp_path, "SELECT COUNT(DISTINCT sample_id) FROM acquisition") == [(2,)]
    assert wbcd(tmp_path, "sample", "move", "no-such-file", "--to", "donor-B").returncode != 0
