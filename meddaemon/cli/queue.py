"""`meddaemon jobs` and `meddaemon deliveries`: what waits, what runs, what went wrong, and what to do about it."""

import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated

import typer

from meddaemon.cli.delivered import waits, why_not_now, withheld
from meddaemon.cli.opening import (
    Before,
    Config,
    HeldAt,
    Ids,
    Limit,
    Output,
    fail,
    ids_or_place,
    open_database,
    open_settings,
    reading,
)
from meddaemon.cli.output import Format, print_rows, shown
from meddaemon.db import deliveries as outbox
from meddaemon.db import gates, history, jobs, requests, results
from meddaemon.db.engine import Database
from meddaemon.domain.result import ResultStatus
from meddaemon.domain.states import DeliveryState, JobState

DRAIN_LOOK_SECONDS = 0.5

jobs_app = typer.Typer(help="Look at the queue and change it.", no_args_is_help=True)
deliveries_app = typer.Typer(help="Look at the outbox and change it.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class WindowRow:
    """Whether the jobs of a window may begin; `until` is when that changes, as far as it is known."""

    name: str
    open: bool
    until: datetime | None
    waiting: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class JobRow(jobs.Job):
    """A job, and why its model was let in without a green check, where it was."""

    admitted_by_force: str


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
        found = jobs.listing(connection, state=state, limit=limit, before=before)
        forced = history.admitted_by_force(connection, [job.id for job in found])
    rows = [JobRow(**vars(job), admitted_by_force=forced.get(job.id, "")) for job in found]
    columns = {
        "id": "id",
        "study": "study_id",
        "model": "model",
        "rule": "rule",
        "prio": "priority",
        "window": "window",
        "deadline": "deadline_at",
        "state": "state",
        "attempt": "attempt",
        "worker": "worker",
        "created": "created_at",
        "reason": "reason",
        "model forced": "admitted_by_force",
    }
    print_rows(rows, columns, output)


@jobs_app.command("show")
def jobs_show(job: int, config: Config = None) -> None:
    """Show a job and everything that happened to it."""
    with reading(config) as connection:
        row = jobs.get(connection, job)
        events = jobs.history(connection, job)
        forced = history.admitted_by_force(connection, [job])
        destinations = requests.destinations_of(connection, job)
        made = [each for each in results.heads(connection, study_id=row.study_id) if each.job_id == job]
    typer.echo(
        f"job {row.id}: {row.model} on study {row.study_id} (generation {row.generation}) for rule {row.rule!r}\n"
        f"  {row.state.value}, attempt {row.attempt} of {row.maximum_attempts}, priority {row.priority}"
        + (f", only in window {row.window!r}" if row.window else "")
        + (f"\n  should begin by {shown(row.deadline_at)}; late: {row.when_late}" if row.deadline_at else "")
        + (f"\n  {shown(row.reason)}" if row.reason else "")
        + (f"\n  its model was admitted by force: {shown(forced[job])}" if job in forced else "")
        + (f"\n  its result goes to {', '.join(destinations)}" if destinations else "")
        + "".join(f"\n  {_told(each)}" for each in made)
    )
    for key, digests in row.inputs.items():
        typer.echo(f"  input {key}: {len(digests)} instances")
    for event in events:
        by = f" by {event.worker}" if event.worker else ""
        detail = f": {shown(event.detail)}" if event.detail else ""
        typer.echo(f"  {shown(event.at)} {event.event.value} -> {event.state.value}{by}{detail}")


def _told(head: results.ResultHead) -> str:
    if head.status is not ResultStatus.FAILED:
        return f"its result is {head.id}, {head.status}"
    return f"its failure is told of by result {head.id}" + (": outdated" if head.requeued else "")


@jobs_app.command("requeue")
def jobs_requeue(ids: Annotated[list[int], typer.Argument(help="Their ids.")], config: Config = None) -> None:
    """Run discarded or cancelled jobs again, or waiting ones at once."""
    with open_database(open_settings(config)) as database, database.write() as connection:
        for each in ids:
            requests.requeue(connection, each)
    typer.echo(f"jobs that are queued again: {len(ids)}")


@jobs_app.command("hurry")
def jobs_hurry(job: int, config: Config = None) -> None:
    """Let a waiting job begin before all others, outside its window and however late."""
    with open_database(open_settings(config)) as database, database.write() as connection:
        jobs.hurry(connection, job)
    typer.echo(f"job {job} begins before all others")


Reason = Annotated[str, typer.Argument(help="Why; shown by `jobs windows`.", show_default=False)]


@jobs_app.command("pause")
def jobs_pause(reason: Reason, config: Config = None) -> None:
    """Let no job begin until `jobs resume`; those that run go on, and studies are received as ever."""
    with open_database(open_settings(config)) as database, database.write() as connection:
        gates.pause(connection, reason)
    typer.echo("no job begins until `meddaemon jobs resume`")


@jobs_app.command("resume")
def jobs_resume(config: Config = None) -> None:
    """Let jobs begin again."""
    with open_database(open_settings(config)) as database, database.write() as connection:
        gates.resume(connection)
    typer.echo("jobs begin again")


@jobs_app.command("drain")
def jobs_drain(
    reason: Reason,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most; the pause stays.")] = 3600.0,
    config: Config = None,
) -> None:
    """Pause, and wait until no worker has a job in hand; for maintenance. `jobs resume` ends the pause."""
    with open_database(open_settings(config)) as database:
        with database.write() as connection:
            gates.pause(connection, reason)
        deadline = time.monotonic() + timeout
        while in_hand := _in_hand(database):
            if time.monotonic() > deadline:
                fail(f"the queue is paused, and {in_hand} jobs still run after {timeout:g} s")
            time.sleep(DRAIN_LOOK_SECONDS)
    typer.echo("no worker has a job in hand, and none begins until `meddaemon jobs resume`")


def _in_hand(database: Database) -> int:
    with database.write() as connection:
        # Who died with a job in hand has none.
        jobs.expire(connection)
        counts = jobs.state_counts(connection)
    return counts.get(JobState.EXECUTING, 0) + counts.get(JobState.PREPARED, 0)


@jobs_app.command("windows")
def jobs_windows(output: Output = Format.TABLE, config: Config = None) -> None:
    """Show whether jobs may begin: the queue first, then each window, and how many jobs wait for it."""
    settings = open_settings(config)
    with open_database(settings) as database, database.read() as connection:
        rows = gates.listing(connection)
        at = gates.clock(connection)
    opens = {window.name: window.opens_at(at) for window in settings.windows}
    shown_rows = [
        WindowRow(
            name=gate.name or "(queue)",
            open=gate.open,
            until=gate.open_until if gate.open and gate.open_until < gates.FOREVER else opens.get(gate.name),
            waiting=gate.waiting,
            reason=gate.reason,
        )
        for gate in rows
    ]
    columns = {"window": "name", "open": "open", "until": "until", "waiting": "waiting", "reason": "reason"}
    print_rows(shown_rows, columns, output)


@jobs_app.command("cancel")
def jobs_cancel(job: int, config: Config = None) -> None:
    """Cancel a job that is not finished; a running one is stopped and writes nothing."""
    with open_database(open_settings(config)) as database, database.write() as connection:
        jobs.cancel(connection, job)
    typer.echo(f"job {job} is cancelled")


@deliveries_app.command("list")
def deliveries_list(
    state: Annotated[DeliveryState | None, typer.Option(help="Only deliveries in this state.")] = None,
    destination: Annotated[str | None, typer.Option(help="Only deliveries to this destination.")] = None,
    output: Output = Format.TABLE,
    limit: Limit = 50,
    before: Before = None,
    config: Config = None,
) -> None:
    """List deliveries, newest last."""
    outlets = open_settings(config).outlets
    with reading(config) as connection:
        rows = outbox.listing(connection, state=state, destination=destination, limit=limit, before=before)
        shut = {name: why_not_now(connection, name, outlets) for name in {row.destination for row in rows}}
    why = {row.id: (row.reason, shut[row.destination], withheld(row)) for row in rows if waits(row)}
    rows = [replace(row, reason="; ".join(filter(None, why.get(row.id, (row.reason,))))) for row in rows]
    columns = {
        "id": "id",
        "result": "result_id",
        "object": "kind",
        "part": "part",
        "form": "edition",
        "destination": "destination",
        "state": "state",
        "attempts": "attempt",
        "sent": "sent_at",
        "committed": "committed_at",
        "verified": "verified_at",
        "done": "done_at",
        "next": "available_at",
        "reason": "reason",
        "not confirmed": "custody_reason",
    }
    print_rows(rows, columns, output)


@deliveries_app.command("requeue")
def deliveries_requeue(ids: Ids = None, destination: HeldAt = None, config: Config = None) -> None:
    """Send held deliveries again, or waiting ones at once."""
    wanted = ids_or_place(ids, destination)
    with open_database(open_settings(config)) as database, database.write() as connection:
        for each in wanted:
            outbox.requeue(connection, each)
        count = outbox.requeue_held(connection, destination) if destination is not None else len(wanted)
    typer.echo(f"deliveries that are sent again: {count}")
