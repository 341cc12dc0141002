"""`meddaemon db`: the schema and the soundness of the database."""

from contextlib import closing

import typer

from meddaemon import daemon
from meddaemon.cli.opening import FAILED, Config, open_database, open_settings
from meddaemon.db.engine import Database
from meddaemon.ingest.recovery import recover
from meddaemon.ingest.volume import adopt_volume
from meddaemon.roles.process import receiver_of, store_of

db_app = typer.Typer(help="Look after the database's schema.", no_args_is_help=True)


@db_app.command("upgrade")
def db_upgrade(config: Config = None) -> None:
    """Bring the schema to the version of this code; make the database where there is none."""
    with open_database(open_settings(config), upgrade=True, create=True):
        typer.echo("the schema is up to date")


@db_app.command("rebuild")
def db_rebuild(config: Config = None) -> None:
    """Make a new SQLite database of the stored objects; the old one is kept beside it. End the daemon first."""
    settings = open_settings(config)
    database = Database(settings.database.url)
    with daemon.only_one(settings.store.directory), closing(database):
        typer.echo(f"the old database is {database.set_aside()} now")
        database.upgrade()
        adopt_volume(database, settings.store.directory)
        store = store_of(settings, database)
        recovered = recover(database, store, receiver_of(settings, database, store))
        store.close()
    typer.echo(
        f"{recovered.adopted} objects registered, {recovered.set_aside} set aside, {recovered.postponed} left there. "
        "Not in the objects and gone: who sent them, decisions, operators' releases and cancellations, results, "
        "deliveries, requests for storage commitment. The rules are asked again of every study: the same work gives "
        "the same UIDs, and destinations are sent it once more"
    )
    if not recovered.well:
        raise typer.Exit(FAILED)


@db_app.command("check")
def db_check(config: Config = None) -> None:
    """Check version and shape of the schema, and the integrity of a SQLite file."""
    database = Database(open_settings(config).database.url)
    try:
        problems = database.schema_problems() or database.integrity_problems()
    finally:
        database.close()
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(FAILED)
    typer.echo("the schema is right and the database is sound")
