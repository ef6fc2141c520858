"""The container files, read as their engines read them: every name that they use is there, and the passwords script works."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from helpers_pgsecure import SecureServer
from helpers_postgres import programs_folder

from wbcd.cli import VERBS, cli
from wbcd.config import Config
from wbcd.daemon.state import StateFile

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Instruction and its text, continued lines joined, comments left out."""
    text = "\n".join(line for line in (DEPLOY / "Containerfile").read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines if line.strip()]


def test_the_health_check_is_a_command_that_ends(tmp_path: Path) -> None:
    """As the image runs it, for a daemon that waits, one that works and none: it asks no database."""
    (check,) = [text.partition(" CMD ")[2] for name, text in instructions() if name == "HEALTHCHECK"]
    program, *arguments = check.split()
    assert program == "wbcd"
    asked = [*arguments, "--output-dir", str(tmp_path), "--db", "postgresql://nobody@192.0.2.1/nowhere"]
    assert CliRunner().invoke(cli, asked).exit_code == 1
    state = StateFile(tmp_path)
    told = {"pid": os.getpid(), "updated_unix_s": time.time(), "heartbeat_s": 5.0}
    for word, status in (("running", 0), ("starting", 0), ("stopping", 0), ("paused", 1), ("failed", 1), ("stopped", 1)):
        state.write(told | {"state": word, "reason": "why"})
        done = CliRunner().invoke(cli, asked)
        assert (done.exit_code, done.output) == (status, f"{word}: why\n")
    state.close()


def test_the_containerfile_uses_what_is_there() -> None:
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert found[0][0] == "FROM"
    for name, text in found:
        if name == "COPY" and not text.startswith("--from"):
            *sources, _ = text.split()
            assert [source for source in sources if not (ROOT / source).exists()] == []
        if name in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(text))
    last = dict(found)
    assert json.loads(last["ENTRYPOINT"]) == ["wbcd"]
    assert json.loads(last["CMD"])[0] in VERBS
    assert last["USER"] == "wbcd"  # never root
    assert last["STOPSIGNAL"] == "SIGTERM"
    stages = [text for name, text in found if name == "FROM"]
    assert all(re.fullmatch(r"docker\.io/library/[\w./-]+:[\w.-]+( AS \w+)?", text) for text in stages)


def test_the_container_s_environment_is_one_that_wbcd_takes() -> None:
    pairs = dict(re.findall(r"(\w+)=(\S+)", " ".join(text for name, text in instructions() if name == "ENV")))
    config = Config.load(None, {name: value for name, value in pairs.items() if name.startswith("WBCD_")})
    assert str(config.watch.dir) == "/data/microscope"
    assert config.database.url == "sqlite:////var/lib/wbcd/wbcd.db"


@pytest.fixture
def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def test_compose_names_only_what_it_declares(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service.get("volumes", []):
            source = volume.rsplit(":", 2)[0] if volume.endswith(":ro") else volume.partition(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file(), source
            elif not source.startswith("${"):
                assert source in compose["volumes"]
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            given = {name: str(value) for name, value in service["environment"].items()}
            config = Config.load(None, given)
            assert config.database.password_file is not None
            assert config.database.password_file.name in service["secrets"]


def test_compose_gives_the_daemon_the_least(compose: dict[str, Any]) -> None:
    daemon, migrate = compose["services"]["wbcd"], compose["services"]["migrate"]
    assert daemon["environment"]["WBCD_DATABASE_URL"].startswith("postgresql://wbcd_daemon@")
    assert daemon["secrets"] == ["database-password"]
    assert migrate["environment"]["WBCD_DATABASE_URL"].startswith("postgresql://wbcd_owner@")
    assert daemon["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    for service in (daemon, migrate):
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert "privileged" not in service
    assert any(volume.endswith(":/data/microscope:ro") for volume in daemon["volumes"])


def test_no_password_lies_in_the_repository() -> None:
    assert [path.name for path in DEPLOY.glob("*-password")] == []


def test_the_passwords_script_gives_each_login_its_own(secure_server: SecureServer, tmp_path: Path) -> None:
    """Run as the image's entry point runs it, against a real server; even a password full of quotes arrives."""
    script = DEPLOY / "passwords.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    words = {"owner-password": "o'wn\"er \\ $HOME `id`", "database-password": "d'; DROP ROLE alice; --"}
    for name, word in words.items():
        (tmp_path / name).write_text(word + "\n")
    host = {"PGHOST": str(Path(secure_server.socket).parent), "PGPORT": str(secure_server.port)}
    environment = {"POSTGRES_USER": "wbcd", "POSTGRES_DB": "wbcd", "SECRETS": str(tmp_path), **host}
    environment |= {"PATH": f"{programs_folder()}:{os.environ['PATH']}"}
    shell = shutil.which("sh")
    assert shell is not None
    try:
        done = subprocess.run([shell, script], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not any(word in done.stdout + done.stderr for word in words.values())
        for login, name in (("wbcd_owner", "owner-password"), ("wbcd_daemon", "database-password")):
            with psycopg.connect(secure_server.login(login), password=words[name]) as connection:
                assert connection.execute("SELECT current_user").fetchone() == (login,)
        (tmp_path / "owner-password").write_text("")
        assert subprocess.run([shell, script], env=environment, capture_output=True, check=False).returncode == 1
    finally:  # the server is shared by the tests of this file only, but its passwords are the helper's
        with psycopg.connect(secure_server.url("wbcd"), autocommit=True) as connection:
            for login in ("wbcd_owner", "wbcd_daemon"):
                connection.execute(f"ALTER ROLE {login} PASSWORD '{secure_server.passwords[login]}'")
