"""`meddaemon db`: the schema and the soundness of the database."""

import typer

from meddaemon.cli.opening import FAILED, Config, open_database, open_settings
from meddaemon.db.engine import Database

db_app = typer.Typer(help="Look after the database's schema.", no_args_is_help=True)


@db_app.command("upgrade")
def db_upgrade(config: Config = None) -> None:
    """Bring the schema to the version of this code; make the database where there is none."""
    with open_database(open_settings(config), upgrade=True, create=True):
        typer.echo("the schema is up to date")


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
