"""`meddaemon studies`: what is there, and letting a study go on that is held."""

from dataclasses import dataclass
from typing import Annotated

import typer

from meddaemon.cli.opening import Before, Config, Limit, Output, open_database, open_settings, reading
from meddaemon.cli.output import Format, print_rows
from meddaemon.db import custody, holds, studies

studies_app = typer.Typer(help="List the studies that arrived last, or release one that is held.")


@dataclass(frozen=True, kw_only=True)
class StudyRow(studies.StudySummary):
    """A study, and how many of its results are done at each destination that they go to."""

    delivered: str


def _delivered(study_id: int, standings: list[custody.Standing]) -> str:
    mine = [each for each in standings if each.study_id == study_id]
    return ", ".join(
        f"{destination} {sum(each.done_at is not None for each in there)}/{len(there)}"
        for destination in dict.fromkeys(each.destination for each in mine)
        for there in [[each for each in mine if each.destination == destination]]
    )


@studies_app.callback(invoke_without_command=True)
def studies_(
    context: typer.Context,
    output: Output = Format.TABLE,
    limit: Limit = 50,
    before: Before = None,
    config: Config = None,
) -> None:
    """List the studies that arrived last, or release one that is held."""
    if context.invoked_subcommand is not None:
        return
    with reading(config) as connection:
        found = studies.summaries(connection, limit=limit, before=before)
        standings = custody.standings(connection, study_ids=[study.id for study in found])
    rows = [StudyRow(**vars(study), delivered=_delivered(study.id, standings)) for study in found]
    columns = {
        "id": "id",
        "state": "state",
        "held for": "held_for",
        "gen": "generation",
        "accession": "accession_number",
        "date": "study_date",
        "description": "study_description",
        "series": "series",
        "instances": "instances",
        "conflicts": "conflicts",
        "jobs": "jobs",
        "done at": "delivered",
        "last received": "last_received_at",
        "study instance uid": "study_instance_uid",
    }
    print_rows(rows, columns, output)


@studies_app.command("release")
def studies_release(
    study: Annotated[str, typer.Argument(help="Id, UID or accession number of the study.")], config: Config = None
) -> None:
    """Let a held study go on in spite of what `explain` says against it; it is held again for anything new."""
    settings = open_settings(config)
    with open_database(settings) as database, database.write() as connection:
        study_id = studies.find_study(connection, study)
        holds.release(connection, study_id, quiet_seconds=settings.shortest_quiet_seconds)
    typer.echo(f"study {study_id} is released")
