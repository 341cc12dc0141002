"""`meddaemon notices`: who is told that results are done where they were to go."""

import typer

from meddaemon.cli.opening import Before, Config, Limit, Output, open_database, open_settings, reading
from meddaemon.cli.output import Format, print_rows
from meddaemon.db import notices

notices_app = typer.Typer(help="Look at notices that results are done, and change them.", no_args_is_help=True)


@notices_app.command("list")
def notices_list(
    output: Output = Format.TABLE, limit: Limit = 50, before: Before = None, config: Config = None
) -> None:
    """List who was or will be told that a result is done at a destination, newest last."""
    with reading(config) as connection:
        rows = notices.listing(connection, limit=limit, before=before)
    columns = {
        "id": "id",
        "result": "result_id",
        "destination": "destination",
        "form": "form",
        "target": "target",
        "state": "state",
        "attempts": "attempt",
        "sent": "sent_at",
        "next": "available_at",
        "reason": "reason",
    }
    print_rows(rows, columns, output)


@notices_app.command("requeue")
def notices_requeue(notice: int, config: Config = None) -> None:
    """Tell a held notice again, or a waiting one at once."""
    with open_database(open_settings(config)) as database, database.write() as connection:
        notices.requeue(connection, notice)
    typer.echo(f"notice {notice} is told again")
