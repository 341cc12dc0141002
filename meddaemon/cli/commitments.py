"""`meddaemon commitments`: who asked for storage commitment, and what they were told."""

import typer

from meddaemon.cli.opening import Before, Config, Limit, Output, open_database, open_settings, reading
from meddaemon.cli.output import Format, print_rows
from meddaemon.db import commitments

commitments_app = typer.Typer(help="Look at storage commitment and change it.", no_args_is_help=True)


@commitments_app.command("list")
def commitments_list(
    output: Output = Format.TABLE, limit: Limit = 50, before: Before = None, config: Config = None
) -> None:
    """List requests for storage commitment and what their senders were told, newest last."""
    with reading(config) as connection:
        rows = commitments.listing(connection, limit=limit, before=before)
    columns = {
        "id": "id",
        "ae title": "calling_ae_title",
        "transaction": "transaction_uid",
        "instances": "instances",
        "failed": "failed",
        "state": "state",
        "attempts": "attempt",
        "asked": "asked_at",
        "reported": "reported_at",
        "reason": "reason",
    }
    print_rows(rows, columns, output)


@commitments_app.command("requeue")
def commitments_requeue(commitment: int, config: Config = None) -> None:
    """Examine and report a held request again, or a waiting one at once."""
    with open_database(open_settings(config)) as database, database.write() as connection:
        commitments.requeue(connection, commitment)
    typer.echo(f"request {commitment} is examined and reported again")
