"""The command line's contract: verbs, common options, exit statuses, light imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from wbcd.cli import VERBS, cli
from wbcd.cli.common import FiniteRange, exit_status, to_json
from wbcd.config import Config
from wbcd.errors import BadValue, BundleInvalid, DatabaseUnavailable, DeviceLost, SchemaMismatch, StageFailed, UnknownKey


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, env=env)


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.list_commands(click.Context(command))]
    return found


def test_the_promised_verbs_are_there() -> None:
    promised = {"demo", "simulate", "run", "process", "status", "counts", "db", "model", "dataset", "train", "evaluate"}
    assert promised | {"reprocess", "verify", "retention", "doctor", "config"} <= set(VERBS)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_help_shows_an_example(words: tuple[str, ...]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"wbcd {words[0]}" in result.output


@pytest.mark.parametrize("verb", ["run", "process", "status", "counts", "doctor"])
def test_the_common_options_are_on_every_verb_that_needs_them(verb: str) -> None:
    text = run(verb, "--help").output
    assert all(option in text for option in ("--config", "--db", "--watch-dir", "--output-dir"))


@pytest.mark.parametrize("words", [("status",), ("counts",), ("process",), ("doctor",), ("config", "show"), ("model", "show")])
def test_every_reading_verb_takes_json(words: tuple[str, ...]) -> None:
    assert "--json" in run(*words, "--help").output


def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    assert run("process").exit_code == 2
    assert run("nonsense").exit_code == 2
    assert run("process", str(tmp_path / "absent.h5")).exit_code == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("process", str(empty)).exit_code == 2


def test_wrong_configuration_is_status_78_and_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "wbcd.toml"
    path.write_text("[watch]\nquite_s = 1\n")
    result = run("config", "check", "--config", str(path))
    assert result.exit_code == 78
    assert "watch.quiet_s" in result.output
    assert run("run", "--config", str(tmp_path / "absent.toml")).exit_code == 78
    assert run("run").exit_code == 78  # no watch folder
    assert run("run", "--watch-dir", str(tmp_path / "absent"), "--until-idle").exit_code == 78
    assert run("status", "--db", "mysql://x/y").exit_code == 78
    assert run("status", env={"WBCD_DATABSE_URL": "x"}).exit_code == 78


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownKey("x"), 78),
        (BadValue("x"), 78),
        (SchemaMismatch("x"), 78),
        (BundleInvalid("x"), 78),
        (DatabaseUnavailable("x"), 69),
        (DeviceLost("x"), 74),
        (StageFailed("x"), 70),
    ],
)
def test_each_error_has_its_status(error, status) -> None:
    assert exit_status(error) == status


def test_the_database_may_be_named_in_the_environment(tmp_path: Path) -> None:
    result = run("config", "show", "--json", env={"WBCD_DATABASE_URL": f"sqlite:///{tmp_path}/x.db"})
    assert json.loads(result.output)["database"]["url"] == f"sqlite:///{tmp_path}/x.db"
    result = run("config", "show", "--json", "--db", "sqlite:///y.db", env={"WBCD_DATABASE_URL": "sqlite:///x.db"})
    assert json.loads(result.output)["database"]["url"] == "sqlite:///y.db"


def test_the_shown_configuration_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "shown.toml"
    path.write_text(run("config", "show", "--watch-dir", str(tmp_path)).output)
    first = json.loads(run("config", "show", "--json", "--watch-dir", str(tmp_path)).output)
    assert json.loads(run("config", "show", "--json", "--config", str(path)).output) == first


def test_json_never_holds_a_number_that_json_does_not_know() -> None:
    assert json.loads(to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x")})) == {
        "a": None,
        "b": [None, 1.5],
        "c": "x",
    }


def test_json_is_ascii_whatever_a_file_is_called() -> None:
    name = "caf\udce9-\u00e9.h5"
    text = to_json({"path": Path(name)})
    assert text.isascii()
    assert json.loads(text) == {"path": name}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_file_that_cannot_be_read_is_a_file_and_no_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    unreadable, dangling, odd = tmp_path / "unreadable.h5", tmp_path / "dangling.h5", tmp_path / os.fsdecode(b"caf\xe9.h5")
    unreadable.write_bytes(b"x")
    odd.write_bytes(b"x")
    dangling.symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # the tests may run as root, whom nothing is forbidden

    def outcomes(config: Config, files: list[Path]) -> Iterator[dict[str, str]]:
        for file in files:
            yield {"path": str(file), "outcome": "set_aside", "reason": "input.not_readable", "message": f"{file.name}."}

    monkeypatch.setattr("wbcd.cli.process.outcomes", outcomes)
    result = run("process", *options, str(unreadable), str(dangling), str(odd))
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 3


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e300"])
@pytest.mark.parametrize(
    "words",
    [
        ("retention", "--max-gib"),
        ("retention", "--max-age-days"),
        ("label", "--sample", "s", "--as", "monocyte", "--purity"),
        ("calibrate", "x.h5", "--bead-um"),
        ("calibrate", "x.h5", "--illumination-na"),
        ("demo", "--defects"),
        ("simulate", "x", "--defects"),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_a_number_that_is_none_or_beyond_its_limits_is_refused_by_name(words: tuple[str, ...], value: str) -> None:
    result = run(*words, value)
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{words[-1]}'" in result.stderr
    assert "range" in result.stderr


def test_every_option_that_takes_a_number_with_a_point_refuses_nan() -> None:
    for words in commands():
        command: click.Command = cli
        for word in words:
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), word)
            assert found is not None
            command = found
        for parameter in command.params:
            kind = parameter.type
            assert kind is not click.FLOAT, (words, parameter.name)
            assert not isinstance(kind, click.FloatRange) or isinstance(kind, FiniteRange), (words, parameter.name)


def _made_deep(folder: Path, name: str) -> None:
    """A file under a path of more bytes than the system takes, made from folder to folder."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(4096 // 250 + 1):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_a_file_that_is_named_twice_is_processed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.h5", "b.h5"):
        (tmp_path / name).write_bytes(b"x")
    seen: list[Path] = []

    def outcomes(config: Config, files: list[Path]) -> Iterator[dict[str, str]]:
        seen.extend(files)
        yield from ()

    monkeypatch.setattr("wbcd.cli.process.outcomes", outcomes)
    monkeypatch.chdir(tmp_path)
    assert run("process", "--json", "a.h5", str(tmp_path), "./a.h5", str(tmp_path / "b.h5")).exit_code == 0
    assert seen == [Path("a.h5"), tmp_path / "b.h5"]


def test_a_folder_whose_path_is_too_long_is_named_and_the_rest_is_processed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _made_deep(tmp_path, "deep.h5")
    (tmp_path / "good.h5").write_bytes(b"x")
    seen: list[Path] = []

    def outcomes(config: Config, files: list[Path]) -> Iterator[dict[str, str]]:
        for file in files:
            seen.append(file)
            yield {"path": str(file), "outcome": "set_aside", "reason": "input.truncated", "message": f"{file.name}."}

    monkeypatch.setattr("wbcd.cli.process.outcomes", outcomes)
    result = run("process", "--json", str(tmp_path))
    assert result.exit_code == 74, result.output
    assert seen == [tmp_path / "good.h5"]
    assert "the system takes 4095; what is in it was not processed" in result.stderr
    assert "d" * 250 in result.stderr
    alone = run("process", f"{tmp_path}/{'d' * 250}")
    assert alone.exit_code == 0  # from there its name is short enough to be opened
    assert seen[-1].name == "deep.h5"
    too_long = run("process", f"{tmp_path}/{'d/' * 2048}x.h5")
    assert too_long.exit_code == 2
    assert "the system takes 4095" in too_long.stderr


@pytest.mark.parametrize("words", [["--help"], ["status", "--help"], ["run", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    heavy = ("torch", "numpy", "scipy", "skimage", "h5py", "zarr", "sqlalchemy", "matplotlib", "rich", "structlog")
    code = (
        "import sys\nfrom wbcd.cli import cli\n"
        f"try:\n    cli({words!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_a_place_that_cannot_be_written_is_named_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("")
    for words in (("model", "export", "reference", str(tmp_path)), ("dataset", "make", str(tmp_path / "afile" / "set.zarr"))):
        found = run(*words)
        assert found.exit_code == 73, found.output
        assert f"\nwbcd: {tmp_path}" in f"\n{found.output}", found.output
        assert "Name another place" in found.output
