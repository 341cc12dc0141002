"""`meddaemon notices`: who is told that results are done where they were to go."""

from typing import Annotated

import typer

from meddaemon.cli.opening import (
    Before,
    Config,
    HeldAt,
    Ids,
    Limit,
    Output,
    ids_or_place,
    open_database,
    open_settings,
    reading,
)
from meddaemon.cli.output import Format, print_rows
from meddaemon.db import notices
from meddaemon.domain.states import DeliveryState

notices_app = typer.Typer(help="Look at notices that results are done, and change them.", no_args_is_help=True)


@notices_app.command("list")
def notices_list(
    state: Annotated[DeliveryState | None, typer.Option(help="Only notices in this state.")] = None,
    destination: Annotated[str | None, typer.Option(help="Only notices of this destination.")] = None,
    output: Output = Format.TABLE,
    limit: Limit = 50,
    before: Before = None,
    config: Config = None,
) -> None:
    """List who was or will be told that a result is done at a destination, newest last."""
    with reading(config) as connection:
        rows = notices.listing(connection, state=state, destination=destination, limit=limit, before=before)
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
def notices_requeue(ids: Ids = None, destination: HeldAt = None, config: Config = None) -> None:
    """Tell held notices again, or waiting ones at once."""
    wanted = ids_or_place(ids, destination)
    with open_database(open_settings(config)) as database, database.write() as connection:
        for each in wanted:
            notices.requeue(connection, each)
        count = notices.requeue_held(connection, destination) if destination is not None else len(wanted)
    typer.echo(f"notices that are told again: {count}")
