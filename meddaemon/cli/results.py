"""`meddaemon results` and `artefacts`: findings and measurements, and what is kept beside them."""

import shutil
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from meddaemon.cli.opening import USAGE, Before, Config, Limit, Output, fail, open_database, open_settings, reading
from meddaemon.cli.output import Format, print_rows, shown
from meddaemon.cli.parquet import ExportFormat, ExtraMissing, pages, write_parquet
from meddaemon.db import results, studies
from meddaemon.db.filters import doubts
from meddaemon.db.instances import path_of
from meddaemon.db.results import ArtefactRow, ResultRow
from meddaemon.domain.filters import InvalidFilter, parse_filter
from meddaemon.results.nifti import SUFFIX

_COLUMNS = {
    "id": "id",
    "result": "result_id",
    "study": "study_id",
    "model": "model",
    "version": "model_version",
    "status": "status",
    "finding": "finding",
    "present": "present",
    "measurement": "measurement",
    "key": "key",
    "derivation": "derivation",
    "value": "value",
    "unit": "unit",
    "where": "place",
    "objects": "objects",
    "made": "created_at",
    "accession": "accession_number",
}


def query(
    wanted: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILTER]", help="""What to show, such as 'finding = "Spleen" and volume > 300 mL and since 30d'."""
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    code: Annotated[
        str | None, typer.Option(help="Only this finding, segment type or measurement: code value or meaning.")
    ] = None,
    minimum: Annotated[float | None, typer.Option("--min", help="Only values of at least this.")] = None,
    maximum: Annotated[float | None, typer.Option("--max", help="Only values of at most this.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only results made at or after this local time.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Only results made before this local time.")] = None,
    study: Annotated[str | None, typer.Option(help="Only of this study.")] = None,
    superseded: Annotated[bool, typer.Option("--superseded", help="Also what is superseded or withdrawn.")] = False,
    output: Annotated[ExportFormat, typer.Option("--format", "-f", help="How to print.")] = ExportFormat.TABLE,
    to: Annotated[Path | None, typer.Option(help="The file to write; Parquet needs one.")] = None,
    limit: Limit = 1000,
    everything: Annotated[
        bool, typer.Option("--all", help="Every row, however many: as csv, jsonl or parquet.")
    ] = False,
    before: Before = None,
    config: Config = None,
) -> None:
    """Query findings and measurements."""
    if (output is ExportFormat.PARQUET) != (to is not None):
        raise typer.BadParameter("Parquet goes to a file, which --to names, and nothing else does")
    if everything and output in {ExportFormat.TABLE, ExportFormat.JSON}:
        raise typer.BadParameter("--all is for csv, jsonl and parquet; page by page, --before goes through everything")
    try:
        filtered = parse_filter(wanted) if wanted is not None else None
    except InvalidFilter as invalid:
        typer.echo(f"meddaemon: filter: {shown(str(invalid))}", err=True)
        raise typer.Exit(USAGE) from None
    with reading(config) as connection:
        ask = partial(
            results.query,
            connection,
            model=model,
            code=code,
            minimum=minimum,
            maximum=maximum,
            since=since.astimezone() if since else None,
            until=until.astimezone() if until else None,
            study_id=studies.find_study(connection, study) if study else None,
            superseded=superseded,
            satisfying=filtered,
        )
        if to is not None:
            try:
                number = write_parquet(to, ResultRow, pages(ask, None if everything else limit, before))
            except ExtraMissing as missing:
                fail(str(missing))
            typer.echo(f"{number} rows in {to}", err=True)
            more = number == limit and not everything
        elif everything:
            number = 0
            for page in pages(ask, None, before):
                print_rows(page, _COLUMNS, Format(output), kind=ResultRow, headed=not number)
                number += len(page)
            more = False
        else:
            rows = ask(limit=limit + 1, before=before)
            print_rows(rows[:limit], _COLUMNS, Format(output), kind=ResultRow)
            number, more = len(rows), len(rows) > limit
        if not number and filtered is not None:
            for doubt in doubts(connection, filtered):
                typer.echo(f"meddaemon: {shown(doubt)}", err=True)
    if more:
        last = f"from --before {rows[limit - 1].id} on" if to is None else "beyond --limit"
        typer.echo(f"meddaemon: there may be more {last}; --all gives everything (csv, jsonl, parquet)", err=True)


def artefacts(
    study: Annotated[str | None, typer.Argument(help="Id, UID or accession number of the study.")] = None,
    result: Annotated[int | None, typer.Option(help="Only of this result.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write them to this folder, as NIfTI files (made if it is not there).")
    ] = None,
    superseded: Annotated[bool, typer.Option("--superseded", help="Also of what is superseded or withdrawn.")] = False,
    output: Output = Format.TABLE,
    config: Config = None,
) -> None:
    """List saliency maps, probabilities and spreads that are kept beside results, or export them."""
    if (study is None) == (result is None):
        raise typer.BadParameter("name a study, or a result by --result")
    settings = open_settings(config)
    with open_database(settings) as database, database.read() as connection:
        rows = results.artefacts(
            connection,
            study_id=studies.find_study(connection, study) if study else None,
            result_id=result,
            superseded=superseded,
        )
    if export is not None:
        export.mkdir(parents=True, exist_ok=True)
        for row in rows:
            _export(path_of(settings.store.results, row.sha256), export / _file_name(row))
    columns = {
        "id": "id",
        "result": "result_id",
        "model": "model",
        "kind": "kind",
        "of": "of",
        "unit": "unit",
        "voxels": "voxels",
        "picture": "sop_instance_uid",
        "frame": "frame_number",
        "bytes": "size",
        "file": "sha256",
    }
    print_rows(rows, columns, output)


def _file_name(row: ArtefactRow) -> str:
    """Return a name that says what it is of whom nobody knows: result, artefact, kind and what it is of."""
    of = "".join(each if each.isascii() and each.isalnum() else "-" for each in row.of)
    return f"result-{row.result_id}-{row.id}-{row.kind}-{of}{SUFFIX}"


def _export(stored: Path, target: Path) -> None:
    try:
        shutil.copyfile(stored, target)
    except FileNotFoundError:
        fail(f"the stored file {stored.name} is gone: see `meddaemon store check`")
