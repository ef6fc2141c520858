"""What the verbs say, and the status they end with: of names that are misspelt, of rights, of models that learnt from
simulated cells, of files that are passed over."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers_store import KEY, MODEL_ID, RECIPE, opened
from rich.cells import cell_len

from wbcd.acquisition.ignored import Ignored, sentence, why_ignored
from wbcd.acquisition.watch import scan
from wbcd.classification.bundle import METADATA, MODELS
from wbcd.cli import cli, common
from wbcd.cli.status import fitted
from wbcd.daemon.state import FILE_NAME, StateFile, read_state
from wbcd.errors import NotPermitted, NotStored, UnknownClass, WouldReplace
from wbcd.report.counts import read_status
from wbcd.store import Ledger
from wbcd.store.modelcard import classes_of, learnt_simulated
from wbcd.testing import make_cell, make_measured, make_rejected

SHIPPED = [json.loads((MODELS / name / METADATA).read_text()) for name in ("reference", "reference-two")]


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], env=env)


@pytest.fixture
def url(tmp_path: Path, sqlite_template: Path) -> str:
    """Samples donor-1 and demo, a cell each."""
    shutil.copy(sqlite_template, tmp_path / "wbcd.db")
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        for name in ("donor-1", "demo"):
            ledger.commit(make_measured(name, make_cell("monocyte"), sample=name), *KEY)
        ledger.commit(make_rejected("empty", sample="donor-2"), *KEY)
    return f"sqlite:///{tmp_path / 'wbcd.db'}"


# --- simulated ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", SHIPPED, ids=lambda card: card["wbcd"]["name"])
def test_the_shipped_models_learnt_from_simulated_cells(card: dict, any_url: str) -> None:
    """Of the real cards, whose word on it lies one level down."""
    assert "simulated" not in card
    assert learnt_simulated(card)
    assert classes_of(card) == tuple(card["wbcd"]["classes"])
    with Ledger.open(any_url) as ledger:
        ledger.register(RECIPE, MODEL_ID, card)
        ledger.commit(make_measured("a", sample="s"), *KEY)
        assert ledger.classes_named() == set(card["wbcd"]["classes"])
    assert read_status(any_url).simulated_model is True
    assert read_status(any_url).sample == "s"


@pytest.mark.parametrize(
    ("card", "simulated"),
    [
        ({"wbcd": {"simulated": True}}, True),
        ({"wbcd": {"simulated": False}}, False),
        ({"simulated": False}, True),  # the wrong depth says nothing
        ({"wbcd": {}}, True),
        ({}, True),
        ({"wbcd": "x"}, True),
    ],
)
def test_a_model_learnt_from_simulated_cells_until_its_card_says_that_it_did_not(card: dict, simulated: bool) -> None:
    assert learnt_simulated(card) is simulated


def test_every_reading_verb_says_it(url: str, tmp_path: Path) -> None:
    said = "model trained on simulated cells"
    assert said in run("status", "--db", url, "--output-dir", tmp_path).stdout
    assert said in run("counts", "--db", url).stdout
    assert said in run("model", "list").stdout
    assert all(row["simulated_model"] is True for row in json.loads(run("counts", "--json", "--db", url).stdout))
    assert json.loads(run("status", "--json", "--db", url).stdout)["store"]["simulated_model"] is True
    assert f'wbcd_model_simulated{{model="{MODEL_ID}"}} 1.0' in run("status", "--prometheus", "--db", url).stdout
    with opened(url) as ledger:
        ledger.register(RECIPE, "measured@1", {"wbcd": {"simulated": False}})
        ledger.commit(make_measured("m", make_cell("monocyte", model_id="measured@1")), KEY[0], "measured@1")
    assert said not in run("status", "--db", url, "--output-dir", tmp_path).stdout
    assert run("counts", "--db", url).stdout.count(said) == 1  # of the other model, whose cells are there still
    assert 'wbcd_model_simulated{model="measured@1"} 0.0' in run("status", "--prometheus", "--db", url).stdout


def test_the_picture_says_it(tmp_path: Path) -> None:
    from wbcd.report.figures import representative_cells

    pictures = [
        representative_cells([], tmp_path / f"{number}.png", simulated_model=bool(number)).read_bytes() for number in range(2)
    ]
    assert pictures[0] != pictures[1]


# --- exit statuses ------------------------------------------------------------------------------------------


def test_a_sample_that_is_not_stored_is_an_error_that_names_the_nearest(url: str) -> None:
    for words in (("counts",), ("label", "--as", "monocyte"), ("label", "--list"), ("reprocess", "--dry-run")):
        result = run(*words, "--sample", "demmo", "--db", url)
        assert result.exit_code == 65, result.output
        assert "There is no sample 'demmo'. Did you mean 'demo'?" in result.stderr
        assert result.stdout == ""
    far = run("counts", "--sample", "zzz", "--db", url)
    assert far.exit_code == 65
    assert "There are 3 samples" in far.stderr
    none = run("counts", "--sample", "donor-2", "--db", url)  # it is stored, and nothing of it is counted
    assert none.exit_code == 0
    assert "No cell of sample donor-2 is counted yet." in none.stdout


def test_a_class_that_no_model_has_is_refused_unless_it_is_new(url: str) -> None:
    for words in (("review", "1"), ("label", "--sample", "demo")):
        refused = run(*words, "--as", "monocite", "--db", url)
        assert refused.exit_code == 65, refused.output
        assert "Did you mean 'monocyte'?" in refused.stderr
        assert "--new-class" in refused.stderr
    with opened(url) as ledger:
        assert ledger.sample_labels() == []
    assert run("review", "1", "--as", "neutrophil", "--db", url).exit_code == 65
    assert run("review", "1", "--as", "neutrophil", "--new-class", "--db", url).exit_code == 0
    assert run("review", "1", "--as", "monocyte", "--db", url).exit_code == 0
    assert run("label", "--sample", "demo", "--as", "basophil", "--new-class", "--db", url).exit_code == 0


def test_a_cell_that_is_not_stored(url: str) -> None:
    result = run("review", "99", "--as", "monocyte", "--db", url)
    assert result.exit_code == 65
    assert "There is no cell 99" in result.stderr


@pytest.mark.parametrize(
    ("error", "status"), [(NotStored("x"), 65), (UnknownClass("x"), 65), (NotPermitted("x"), 77), (WouldReplace("x"), 73)]
)
def test_statuses_by_sysexits(error: Exception, status: int) -> None:
    assert common.exit_status(error) == status


def test_a_login_without_the_right_is_77() -> None:
    from wbcd.store.failures import translate
    from wbcd.store.urls import parse_url

    class InsufficientPrivilege(Exception):
        sqlstate = "42501"

    assert isinstance(translate(InsufficientPrivilege("permission denied"), parse_url("postgresql://u@h/d")), NotPermitted)


@pytest.mark.parametrize(
    ("words", "near"),
    [(("staus",), "status"), (("model", "lst"), "list"), (("dataset", "jion"), "join"), (("db", "bakup"), "backup")],
)
def test_a_misspelt_verb_is_answered_with_the_nearest(words: tuple[str, ...], near: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert f"Did you mean '{near}'?" in result.stderr


def test_an_export_writes_over_nothing_unless_it_is_told_to(tmp_path: Path) -> None:
    out = tmp_path / "ours.onnx"
    out.write_bytes(b"mine")
    refused = run("model", "export", "reference", out)
    assert refused.exit_code == 73, refused.output
    assert "is there already" in refused.stderr
    assert out.read_bytes() == b"mine"


# --- rights -------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder whose files nobody else may read, seen by a user who is not root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    before = os.geteuid()
    try:
        yield folder
    finally:
        os.seteuid(before)
        folder.joinpath("output").chmod(0o700)
        shutil.rmtree(folder)


def _become_another() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_state_that_may_not_be_read_is_not_absent(nobody: Path, url: str, locked: str) -> None:
    output = nobody / "output"
    state = StateFile(output)
    state.write({"state": "running", "reason": None, "pid": os.getpid(), "updated_unix_s": 1e12})
    state.close()
    (output / FILE_NAME if locked == "file" else output).chmod(0)
    shutil.copy(url.removeprefix("sqlite:///"), nobody / "wbcd.db")
    (nobody / "wbcd.db").chmod(0o644)
    _become_another()
    options = ("--db", f"sqlite:///{nobody / 'wbcd.db'}", "--output-dir", output)
    human, machine = run("status", *options), run("status", "--json", *options)
    assert human.exit_code == machine.exit_code == 77, human.output
    assert "cannot read the daemon's state (no permission)" in human.stdout
    assert "absent" not in human.stdout
    assert "2 measured" in human.stdout  # the database is shown all the same
    assert json.loads(machine.stdout)["daemon"]["state"] == "unreadable"


def test_a_database_that_may_not_be_read_is_77(nobody: Path, url: str) -> None:
    (nobody / "output").mkdir()
    shutil.copy(url.removeprefix("sqlite:///"), nobody / "wbcd.db")
    (nobody / "wbcd.db").chmod(0)
    _become_another()
    result = run("counts", "--db", f"sqlite:///{nobody / 'wbcd.db'}")
    assert result.exit_code == 77, result.output


def test_no_state_at_all_is_absent(tmp_path: Path) -> None:
    assert read_state(tmp_path).state == "absent"
    assert read_state(tmp_path / "nowhere").state == "absent"


# --- the installed configuration ----------------------------------------------------------------------------


def test_without_options_the_installed_configuration_is_read_and_named(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, here = tmp_path / "etc.toml", tmp_path / "here"
    installed.write_text(f'[database]\nurl = "{url}"\n')
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(common, "SYSTEM_CONFIG", installed)
    monkeypatch.delenv("WBCD_DATABASE_URL", raising=False)
    found = run("counts", "--json")
    assert found.exit_code == 0, found.output
    assert len(json.loads(found.stdout)) == 2
    assert f"as {installed} says" in found.stderr
    named = run("counts", "--db", f"sqlite:///{here / 'other.db'}")
    assert named.exit_code == 69
    assert str(installed) not in named.stderr
    shutil.copy(url.removeprefix("sqlite:///"), here / "wbcd.db")
    assert str(installed) not in run("counts").stderr
    (here / "wbcd.db").unlink()
    assert run("run").exit_code == 78  # a verb that begins a database of its own is not led to the service's
    assert not (here / "wbcd.db").exists()


# --- ignored files ------------------------------------------------------------------------------------------


def test_what_is_passed_over_is_counted_with_its_reason_and_what_is_used_is_not(tmp_path: Path) -> None:
    ignored_names = ("cell1_FL3D_0.00.tif", "notes.docx", "run.mat", "x.h5.part", ".hidden.h5", "link.txt")
    used = ("a.h5", "b_sp.tif", "b_bg.tif", "bg.tif", "b.json", "session.json", "config.dat", "bg1_Tomog.mat", "c_Tomog.mat")
    for name in (*ignored_names[:-1], *used):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.h5")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "cell2_BF_0.00.tiff").write_bytes(b"x")
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "y.h5").write_bytes(b"x")
    ignored = Ignored()
    found, _ = scan(tmp_path, ignored)
    assert {path.name for path in found} == {"a.h5", "b_sp.tif", "c_Tomog.mat"}
    assert ignored.count == len(ignored_names) + 2  # that in the subfolder, and the hidden folder as one
    assert ignored.examples[:2] == [
        "cell1_FL3D_0.00.tif is a projection or fluorescence beside an RI volume",
        "run.mat is no *_Tomog.mat or sample*.mat",
    ]
    assert len(ignored.examples) == 3
    assert all(why_ignored(name) is None for name in ("B_BG.TIFF", "sample001.JSON", "protocol.experiment", "CONFIG.DAT"))


@pytest.mark.parametrize(
    ("count", "examples", "text"),
    [
        (0, [], "0 files ignored"),
        (1, ["a is b"], "1 file ignored: a is b"),
        (3, ["a is b", "c is d"], "3 files ignored: a is b, c is d, ... 1 more"),
    ],
)
def test_the_sentence_about_them(count: int, examples: list[str], text: str) -> None:
    assert sentence(count, examples) == text


def test_process_and_status_say_them(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.h5").write_bytes(b"x")
    (folder / "run.mat").write_bytes(b"x")
    monkeypatch.setattr("wbcd.cli.process.outcomes", lambda config, files: iter(()))
    for options in ([], ["--json"]):
        result = run("process", folder, *options)
        assert result.exit_code == 0
        assert "1 file ignored: run.mat is no *_Tomog.mat or sample*.mat" in result.stderr
    state = StateFile(tmp_path / "output")
    told = {"count": 4, "examples": ["run.mat is no *_Tomog.mat or sample*.mat"]}
    state.write({"state": "stopped", "watch_dir": "/in", "waiting": 0, "in_hand": 0, "ignored_files": told})
    state.close()
    shown = run("status", "--db", url, "--output-dir", tmp_path / "output")
    assert "4 files ignored: run.mat is no *_Tomog.mat or sample*.mat, ... 3 more" in shown.stdout
    machine = json.loads(run("status", "--json", "--db", url, "--output-dir", tmp_path / "output").stdout)
    assert machine["daemon"]["ignored_files"] == told


def test_a_state_that_is_too_long_loses_names_and_not_its_word(tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    long = {"count": 9, "examples": ["\u65e5" * 1000] * 3}
    state.write({"state": "stopped", "reason": None, "ignored_files": long, "channels": {"a": 1}})
    state.close()
    found = read_state(tmp_path)
    assert (found.state, found.reason) == ("stopped", None)
    assert found.details is not None
    assert found.details["ignored_files"] == {"count": 9, "examples": []}


# --- windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 20), (40, 6), (20, 4)])
def test_lines_fit_the_window_and_the_last_says_what_is_left_out(width: int, height: int) -> None:
    wide = "\u65e5\u672c"
    lines = ["daemon     running", *(f"sample     {wide * n} donor {n}" for n in range(40))]
    rows = fitted(lines, width, height)
    assert len(rows) <= height
    assert all(cell_len(row) <= width for row in rows)
    assert rows[-1].startswith("... ")
    whole = fitted(lines, width, 10_000)
    assert all(cell_len(row) <= width for row in whole)
    assert "".join("".join(whole).split()) == "".join("".join(lines).split())  # folded, and nothing lost
    kept = sum(row.startswith(("daemon", "sample")) for row in rows)
    assert int(rows[-1].split()[1]) == len(lines) - kept


def test_the_running_sample_comes_first_and_each_class_has_a_line(tmp_path: Path, sqlite_template: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "wbcd.db")
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        for number, name in enumerate(("aaa", "bbb", "ccc", "mid")):
            cells = (make_cell("monocyte"), make_cell("b_lymphocyte", number=2))
            ledger.commit(make_measured(f"m{number}", *cells, sample=name), *KEY)
    lines = run("status", "--db", f"sqlite:///{tmp_path / 'wbcd.db'}", "--output-dir", tmp_path).stdout.splitlines()
    samples = [line for line in lines if line.startswith("sample")]
    assert samples == ["sample     mid (running)", "sample     aaa", "sample     bbb", "sample     ccc"]
    at = lines.index("sample     mid (running)")
    assert [line.split()[0] for line in lines[at + 1 : at + 3]] == ["b_lymphocyte", "monocyte"]
