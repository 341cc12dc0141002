"""What commands share: their options, and how they open settings and database and say that something failed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from meddaemon import telemetry
from meddaemon.cli.output import Format
from meddaemon.config.settings import Settings, load
from meddaemon.db.engine import Connection, Database
from meddaemon.roles.process import SUPERVISOR

FAILED, USAGE = 1, 2
"""Exit codes: the thing asked for failed; the settings or the command line are wrong."""

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings file (also MEDDAEMON_CONFIG).", show_default=False)
]
Output = Annotated[Format, typer.Option("--format", "-f", help="How to print.")]
Before = Annotated[
    int | None,
    typer.Option(min=1, help="Only what came before this id: page by page through it all.", show_default=False),
]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="At most this many rows.")]
Ids = Annotated[list[int] | None, typer.Argument(help="Their ids.", show_default=False)]
HeldAt = Annotated[
    str | None, typer.Option("--destination", help="Instead of ids: all that is held there.", show_default=False)
]


def fail(message: str) -> NoReturn:
    """Say what failed, and end."""
    typer.echo(f"meddaemon: {message}", err=True)
    raise SystemExit(FAILED)


def ids_or_place(ids: list[int] | None, destination: str | None) -> list[int]:
    """Return the ids that were given, none where a destination was; one of the two must be."""
    if (not ids) == (destination is None):
        raise typer.BadParameter("give ids, or a --destination")
    return ids or []


def open_settings(config: Path | None) -> Settings:
    """Return the settings; `doctor` tells their warnings, and so does what runs. Raises InvalidConfiguration."""
    settings = load(config, os.environ)
    telemetry.configure(settings.logging.level, settings.logging.format)
    return settings


def settings_to_run(config: Path | None) -> Settings:
    """Return the settings of a daemon or role, their warnings logged. Raises InvalidConfiguration."""
    settings = open_settings(config)
    # Of a role that a supervisor has started, that one has told them.
    for warning in settings.warnings if SUPERVISOR not in os.environ else ():
        telemetry.log(__name__).warning(warning)
    return settings


@contextmanager
def open_database(settings: Settings, *, upgrade: bool = False, create: bool = False) -> Iterator[Database]:
    """Give the database, with the schema that this code needs. Raises WrongSchema, NoDatabase."""
    database = Database(settings.database.url)
    try:
        if upgrade:
            database.upgrade(create=create)
        database.require_schema()
        yield database
    finally:
        database.close()


@contextmanager
def reading(config: Path | None) -> Iterator[Connection]:
    """Give a connection that only reads."""
    with open_database(open_settings(config)) as database, database.read() as connection:
        yield connection
