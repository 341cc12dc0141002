"""One `Database` over SQLite or PostgreSQL: transactions, durability and schema version."""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command, migration, script
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from sqlalchemy import Connection, create_engine, event, inspect, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from meddaemon.db.tables import VIEWS, metadata
from meddaemon.domain.errors import MeddaemonError
from meddaemon.failpoints import reach

__all__ = [
    "Connection",
    "DamagedDatabase",
    "Database",
    "DatabaseAway",
    "DatabaseUnavailable",
    "NoDatabase",
    "WrongSchema",
]

BUSY_TIMEOUT_SECONDS = 10.0

ALWAYS_CHECKED_BYTES = 2**28
"""Of a SQLite file: up to here its check takes a second or so."""

DatabaseUnavailable = DBAPIError
"""What every query raises when the database is away, locked for too long or out of space (SQLAlchemy's name)."""

DatabaseAway = OperationalError
"""The part of it that is nobody's fault: the next query would fail as well."""


class WrongSchema(MeddaemonError):
    """The database's schema is not the one this code was written for."""


class NoDatabase(MeddaemonError):
    """There is no database where there should be one, only a part of it, or one that nobody may write to."""


class DamagedDatabase(MeddaemonError):
    """The file of the database is damaged."""


class Database:
    """Gives transactions: `write()` commits durably before it returns, `read()` sees one consistent state."""

    def __init__(self, url: str) -> None:
        self._url = _with_driver(make_url(url))
        self._sqlite = self._url.get_backend_name() == "sqlite"
        # SQLite's busy handler is unfair between threads; a lock of our own queues the writers of this process.
        self._writers: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if self._sqlite else contextlib.nullcontext()
        )
        self._looking = threading.Lock()
        self._looker: Connection | None = None
        self._file = Path(self._url.database) if self._sqlite and self._url.database else None
        # No limit on connections here: threads are bounded where they are made, and none should wait for another.
        self._engine = create_engine(self._url, pool_pre_ping=not self._sqlite, max_overflow=-1)
        if self._sqlite:
            event.listen(self._engine, "do_connect", _never_create)
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        else:
            event.listen(self._engine, "connect", _prepare_postgresql)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection in a transaction that may write; commits at the end, rolls back on any error."""
        with self._writers, self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection in a transaction that only reads."""
        with self._engine.connect() as connection:
            if not self._sqlite:
                # The default, READ COMMITTED, shows each statement another state. SQLite has but this one way.
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def look(self) -> Iterator[Connection]:
        """Give a connection for single questions, each of which sees what is committed by then.

        It is kept, and one thread has it at a time: beginning and ending a transaction takes longer than one answer.
        """
        with self._looking:
            looker = self._looker or self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._looker = looker
            try:
                yield looker
            except DBAPIError:
                self._looker = None
                with contextlib.suppress(DBAPIError):
                    looker.close()
                raise

    def close(self) -> None:
        """Close every pooled connection."""
        with self._looking:
            if self._looker is not None:
                self._looker.close()
                self._looker = None
        self._engine.dispose()

    def upgrade(self, *, create: bool = True) -> None:
        """Bring the schema to the newest version; safe to call at any time and from several processes.

        A SQLite file that is not there is made, unless `create` is false: it may lie on a volume that is not mounted.
        Raises WrongSchema when the database is newer than this code, NoDatabase.
        """
        if create and self._file is not None and not self._file.exists():
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file.touch(mode=0o600)
        self._require_files()
        with self.write() as connection:
            if self.dialect == "postgresql":
                # Two processes may start at once; the second waits here and then finds nothing to do.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7263748)")
            self._refuse_unknown(connection)
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            reach("upgrading")

    def schema_problems(self) -> list[str]:
        """Return what is wrong with the schema: version, then table by table; empty when all is well.

        Raises NoDatabase.
        """
        self._require_files()
        with self.read() as connection:
            context = migration.MigrationContext.configure(connection, opts={"compare_type": True})
            current, wanted = context.get_current_revision(), _scripts().get_current_head()
            if current != wanted:
                return [f"schema version is {current or 'none'}, this code needs {wanted}: run `meddaemon db upgrade`"]
            missing = sorted(set(VIEWS) - set(inspect(connection).get_view_names()))
            differences = [str(difference) for difference in compare_metadata(context, metadata)]
            return differences + [f"the view {name} is missing" for name in missing]

    def require_schema(self) -> None:
        """Raise WrongSchema unless the schema has the version that this code needs, NoDatabase if there is none."""
        self._require_files()
        with self.read() as connection:
            self._refuse_unknown(connection)
            current = migration.MigrationContext.configure(connection).get_current_revision()
        if current != _scripts().get_current_head():
            raise WrongSchema(f"schema version is {current or 'none'}: run `meddaemon db upgrade` first")

    def require_sound(self) -> None:
        """Raise DamagedDatabase when SQLite's own check finds the file damaged.

        A large file takes long to check; it is checked after an end that was none in good order, and not otherwise.
        """
        if self._file is None:
            return
        self._require_files()
        log = self._file.with_name(self._file.name + "-wal")
        ended_well = not log.exists() or not log.stat().st_size
        if ended_well and self._file.stat().st_size > ALWAYS_CHECKED_BYTES:
            return
        for problem in self.integrity_problems():
            raise DamagedDatabase(
                f"the database {self._file} is damaged ({problem}): put a backup in its place, or `meddaemon db "
                "rebuild` makes a new one of the stored objects"
            )

    def set_aside(self) -> Path:
        """Move a damaged SQLite file out of the way, with all that belongs to it; return where it lies now.

        Nobody may have it open. Raises NoDatabase for what is no file.
        """
        if self._file is None:
            raise NoDatabase("only a SQLite file can be set aside: make an empty PostgreSQL database instead")
        self.close()
        aside = self._file.with_name(f"{self._file.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
        # The log first: a database that is new must not find the old one's. Stopped after it, the index tells.
        for suffix in ("-wal", "", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._file.with_name(self._file.name + suffix).replace(aside.with_name(aside.name + suffix))
        return aside

    def integrity_problems(self) -> list[str]:
        """Return what SQLite's own check says of the file; PostgreSQL checks its pages itself."""
        if not self._sqlite:
            return []
        try:
            with self.read() as connection:
                rows = connection.exec_driver_sql("PRAGMA quick_check").scalars().all()
        except OperationalError:
            raise
        except DatabaseError as damaged:
            # So badly that the check itself cannot go on.
            return [str(damaged.orig)]
        return [str(row) for row in rows if row != "ok"]

    def durability_problems(self) -> list[str]:
        """Return the settings of a PostgreSQL server under which a commit may not outlive its machine.

        SQLite is told by each connection how to commit, and so is PostgreSQL, but for these.
        """
        if self._sqlite:
            return []
        with self.read() as connection:
            settings = ("fsync", "full_page_writes")
            return [name for name in settings if connection.exec_driver_sql(f"SHOW {name}").scalar() == "off"]

    def _require_files(self) -> None:
        """Raise NoDatabase where SQLite would begin anew, or go on without its latest transactions."""
        if self._file is None:
            return
        if not self._file.exists():
            raise NoDatabase(
                f"there is no database at {self._file}: is its volume mounted? For the first start, "
                "`meddaemon db upgrade` makes it"
            )
        if not os.access(self._file.parent, os.W_OK):
            raise NoDatabase(
                f"user {os.geteuid()} may not write to {self._file.parent}, where the database is: is it mounted "
                "read-only, or is this not the user of the daemon?"
            )
        log, index = (self._file.with_name(self._file.name + suffix) for suffix in ("-wal", "-shm"))
        pause = threading.Event()
        # SQLite makes the log before its index, and removes it after; others may be about to do so.
        for _ in range(5):
            if log.exists() or not index.exists() or log.exists():
                return
            pause.wait(0.05)
        raise NoDatabase(
            f"{log} is missing although the database was not closed: it held the latest transactions. Put it back, or "
            f"remove {index.name} to go on without them (`meddaemon store repair` registers the objects again)"
        )

    @staticmethod
    def _refuse_unknown(connection: Connection) -> None:
        current = migration.MigrationContext.configure(connection).get_current_revision()
        known = {revision.revision for revision in _scripts().walk_revisions()}
        if current is not None and current not in known:
            raise WrongSchema(f"schema version {current} is newer than this code: install the newer meddaemon")


def _with_driver(url: URL) -> URL:
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _never_create(_: Any, __: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    # Where the file is gone, its volume most likely is, too; SQLite would make an empty one under the mount point.
    if not options.get("uri"):
        arguments[0] = f"file:{quote(str(arguments[0]))}?mode=rw"
        options["uri"] = True


def _prepare_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
    _write_ahead(cursor)
    for pragma in (
        "synchronous = FULL",  # a commit that was answered survives power loss
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Switch the file to WAL, where it is not yet."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as failure:
            # Processes that open a new file together: this one pragma does not wait as busy_timeout says.
            if failure.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _prepare_postgresql(connection: Any, _: ConnectionPoolEntry) -> None:
    # A server or database that is set to answer a commit before it is on disk; stronger settings stay as they are.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a writer halfway fails at once when another one wrote meanwhile.
    options = connection.get_execution_options()
    if options.get("isolation_level") == "AUTOCOMMIT":
        return
    writes = options.get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@cache
def _scripts() -> script.ScriptDirectory:
    return script.ScriptDirectory.from_config(_alembic_config())


def _alembic_config() -> Config:
    installed = Path(__file__).parent / "migrations"
    checkout = Path(__file__).parents[2] / "alembic"
    config = Config()
    config.set_main_option("script_location", str(installed if installed.is_dir() else checkout))
    return config
