"""A PostgreSQL that lets nobody in without a password (SCRAM), with TLS by an authority of the test's own."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers_postgres import OwnServer

from wbcd.store import upgrade
from wbcd.store.roles import ROLES, roles_sql

HBA = """
local all wbcd trust
local all all scram-sha-256
"""
HBA_TLS = """
hostssl all second 127.0.0.1/32 cert
hostssl all all 127.0.0.1/32 scram-sha-256
hostnossl all all 127.0.0.1/32 reject
"""
LOGINS = {
    "wbcd_owner": "wbcd_owner",
    "wbcd_daemon": "wbcd_daemon",
    "second": "wbcd_daemon",
    "alice": "wbcd_reader",
    "bob": "wbcd_reviewer",
    "carol": "wbcd_auditor",
}
"""Login -> the role whose rights it has."""


def make_authority(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate authority: certificate and key."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ["-subj", f"/CN=wbcd test authority {name}"]
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", *subject,
             "-keyout", str(key), "-out", str(certificate))  # fmt: skip
    return certificate, key


def make_certificate(folder: Path, authority: tuple[Path, Path], name: str, *, address: str) -> tuple[Path, Path]:
    """A certificate for ``address``, signed by the authority: certificate and key."""
    certificate, key, request, extra = (folder / f"{name}.{suffix}" for suffix in ("crt", "key", "csr", "ext"))
    _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
             "-keyout", str(key), "-out", str(request))  # fmt: skip
    extra.write_text(f"subjectAltName = {address}\n")
    _openssl("x509", "-req", "-in", str(request), "-CA", str(authority[0]), "-CAkey", str(authority[1]), "-CAcreateserial",
             "-days", "2", "-extfile", str(extra), "-out", str(certificate))  # fmt: skip
    return certificate, key


class SecureServer(OwnServer):
    """On a Unix socket and, where ``tls`` is given, on a port of 127.0.0.1, with TLS only.

    ``tls``: the server's certificate and key, and the authority whose certificates let the login ``second`` in.
    """

    def __init__(self, tls: tuple[Path, Path, Path] | None = None, programs: Path | None = None) -> None:
        self._tls = tls
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.passwords = {login: f"p@ss/{login}:{secrets.token_hex(8)}" for login in LOGINS}
        self.database = "wbcd"
        super().__init__(programs)

    def start(self) -> None:
        """With our rules of access and our certificate."""
        settings = [f"port = {self.port}", f"unix_socket_directories = '{self._folder}'", "max_connections = 40"]
        settings += ["shared_buffers = 16MB", "fsync = off", "password_encryption = 'scram-sha-256'"]
        if self._tls is None:
            settings.append("listen_addresses = ''")
        else:
            settings += ["listen_addresses = '127.0.0.1'", "ssl = on", "ssl_ca_file = 'ca.crt'"]
            for path, name in zip(self._tls, ("server.crt", "server.key", "ca.crt"), strict=True):
                self.write_for_server(name, path.read_text())
        self.write_for_server("pg_hba.conf", HBA + (HBA_TLS if self._tls else ""))
        self.write_for_server("postgresql.auto.conf", "\n".join(settings) + "\n")
        self._run("pg_ctl", "-w", "-t", "60", "-D", self._data, "-l", self._folder / "log", "start")

    def url(self, database: str = "postgres") -> str:
        """As the superuser, on the socket."""
        return f"postgresql://wbcd@/{database}?host={self._folder}&port={self.port}"

    def login(self, name: str) -> str:
        """URL of a login on the socket, without its password."""
        return f"postgresql://{name}@/{self.database}?host={self._folder}&port={self.port}"

    def tls(self, name: str, *, mode: str, authority: Path, host: str = "127.0.0.1") -> str:
        """URL of a login by TCP, without its password."""
        return f"postgresql://{name}@{host}:{self.port}/{self.database}?sslmode={mode}&sslrootcert={authority}"

    def with_password(self, url: str, name: str) -> str:
        """What ``Config.database_url`` makes of a URL and a password."""
        from wbcd.config import Config

        settings = Config.load(None, {}, {"database.url": url})
        return settings.database_url({"CREDENTIALS_DIRECTORY": str(self.keep(name))})

    def keep(self, name: str) -> Path:
        """A folder with the password of a login, as systemd hands a credential over."""
        folder = self._folder / "credentials" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "database-password").write_text(self.passwords[name] + "\n")
        return folder

    def connect(self, name: str) -> psycopg.Connection:
        """As a login, with its password, each statement by itself."""
        return psycopg.connect(self.login(name), password=self.passwords[name], autocommit=True)

    def write_for_server(self, name: str, text: str, *, mode: int = 0o600) -> None:
        """A file of the data folder, owned by whoever the server runs as."""
        import os

        path = self._data / name
        path.write_text(text)
        path.chmod(mode)
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)


@pytest.fixture(scope="module")
def secure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    """With the roles made as the documentation says: SQL of `wbcd db roles`, passwords, migration by the owner."""
    server = SecureServer()
    try:
        make_roles(server)
        yield server
    finally:
        server.close()


def system_programs() -> Path | None:
    """A PostgreSQL of this machine that was built with TLS, which the wheel's was not; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    for program in reversed(found):
        said = subprocess.run([program.with_name("pg_config"), "--configure"], capture_output=True, text=True, check=False)
        libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        if "openssl" in said.stdout or "libssl" in libraries:
            return program.parents[1]
    return None


def make_roles(server: SecureServer) -> None:
    """The database ``wbcd`` with every login, migrated by its owner."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE wbcd")
    with psycopg.connect(server.url("wbcd"), autocommit=True) as connection:
        connection.execute(roles_sql())
        for login, role in LOGINS.items():
            password = server.passwords[login]
            if login in ROLES:
                connection.execute(f"ALTER ROLE {login} PASSWORD '{password}'")
            else:
                connection.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{password}' IN ROLE {role}")
    upgrade(server.with_password(server.login("wbcd_owner"), "wbcd_owner"))


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
