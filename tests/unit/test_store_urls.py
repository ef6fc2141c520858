from pathlib import Path

import pytest

from wbcd.errors import StoreError
from wbcd.store.urls import parse_url


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///wbcd.db", "wbcd.db"),
        ("sqlite:////var/lib/wbcd/wbcd.db", "/var/lib/wbcd/wbcd.db"),
        ("wbcd.db", "wbcd.db"),
        ("/data/a b.db", "/data/a b.db"),
        ("sqlite:////data/a%20b.db", "/data/a b.db"),
    ],
)
def test_sqlite_forms(url: str, path: str) -> None:
    target = parse_url(url)
    assert target.kind == "sqlite"
    assert target.path == Path(path)
    assert target.display == path


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", ":memory:"])
def test_memory(url: str) -> None:
    assert parse_url(url).in_memory
    assert parse_url(url).sqlalchemy_url == "sqlite:///:memory:"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgres_goes_through_psycopg(scheme: str) -> None:
    target = parse_url(f"{scheme}://u@h:5433/d?host=/run/pg")
    assert target.dsn == "postgresql://u@h:5433/d?host=/run/pg"
    assert target.sqlalchemy_url == "postgresql+psycopg://u@h:5433/d?host=/run/pg"


@pytest.mark.parametrize("url", ["postgresql://u:secret@h/d", "postgresql://h/d?user=u&password=secret"])
def test_a_password_is_never_shown(url: str) -> None:
    assert "secret" not in parse_url(url).display
    assert parse_url(url).display.startswith("postgresql://")


def test_other_databases_are_refused_without_repeating_the_url() -> None:
    with pytest.raises(StoreError, match="'mysql'") as caught:
        parse_url("mysql://root:secret@h/d")
    assert "secret" not in caught.value.sentence()
