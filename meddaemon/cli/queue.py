"""`meddaemon jobs` and `meddaemon deliveries`: what waits, what runs, what went wrong, and what to do about it."""

from typing import Annotated

import typer

from meddaemon.cli.opening import Before, Config, Limit, Output, open_database, open_settings, reading
from meddaemon.cli.output import Format, print_rows, shown
from meddaemon.db import deliveries as outbox
from meddaemon.db import jobs, requests
from meddaemon.domain.states import JobState

jobs_app = typer.Typer(help="Look at the queue and change it.", no_args_is_help=True)
deliveries_app = typer.Typer(help="Look at the outbox and change it.", no_args_is_help=True)


@jobs_app.command("list")
def jobs_list(
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    output: Output = Format.TABLE,
    limit: Limit = 50,
    before: Before = None,
    config: Config = None,
) -> None:
    """List jobs, newest first."""
    with reading(config) as connection:
        rows = jobs.listing(connection, state=state, limit=limit, before=before)
    columns = {
        "id": "id",
        "study": "study_id",
        "model": "model",
        "rule": "rule",
        "prio": "priority",
        "state": "state",
        "attempt": "attempt",
        "worker": "worker",
        "created": "created_at",
        "reason": "reason",
    }
    print_rows(rows, columns, output)


@jobs_app.command("show")
def jobs_show(job: int, config: Config = None) -> None:
    """Show a job and everything that happened to it."""
    with reading(config) as connection:
        row = jobs.get(connection, job)
        events = jobs.history(connection, job)
        destinations = requests.destinations_of(connection, job)
    typer.echo(
        f"job {row.id}: {row.model} on study {row.study_id} (generation {row.generation}) for rule {row.rule!r}\n"
        f"  {row.state.value}, attempt {row.attempt} of {row.maximum_attempts}, priority {row.priority}"
        + (f"\n  {shown(row.reason)}" if row.reason else "")
        + (f"\n  its result goes to {', '.join(destinations)}" if destinations else "")
    )
    for key, digests in row.inputs.items():
        typer.echo(f"  input {key}: {len(digests)} instances")
    for event in events:
        by = f" by {event.worker}" if event.worker else ""
        detail = f": {shown(event.detail)}" if event.detail else ""
        typer.echo(f"  {shown(event.at)} {event.event.value} -> {event.state.value}{by}{detail}")


@jobs_app.command("requeue")
def jobs_requeue(job: int, config: Config = None) -> None:
    """Run a discarded or cancelled job again, or a waiting one at once."""
    with open_database(open_settings(config)) as database, database.write() as connection:
        jobs.requeue(connection, job)


@jobs_app.command("cancel")
def jobs_cancel(job: int, config: Config = None) -> None:
    """Cancel a job that is not finished; a running one is stopped and writes nothing."""
    with open_database(open_settings(config)) as database, database.write() as connection:
        jobs.cancel(connection, job)


@deliveries_app.command("list")
def deliveries_list(
    output: Output = Format.TABLE, limit: Limit = 50, before: Before = None, config: Config = None
) -> None:
    """List deliveries, newest last."""
    with reading(config) as connection:
        rows = outbox.listing(connection, limit=limit, before=before)
    columns = {
        "id": "id",
        "result": "result_id",
        "object": "kind",
        "destination": "destination",
        "state": "state",
        "attempts": "attempt",
        "sent": "sent_at",
        "next": "available_at",
        "reason": "reason",
    }
    print_rows(rows, columns, output)


@deliveries_app.command("requeue")
def deliveries_requeue(delivery: int, config: Config = None) -> None:
    """Send a held delivery again, or a waiting one at once."""
    with open_database(open_settings(config)) as database, database.write() as connection:
        outbox.requeue(connection, delivery)
