"""The commands."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from meddaemon import __version__, daemon
from meddaemon.cli import doctor as health
from meddaemon.cli.commitments import commitments_app
from meddaemon.cli.evaluate import evaluate
from meddaemon.cli.explain import explain as explanation
from meddaemon.cli.models import models_app
from meddaemon.cli.notices import notices_app
from meddaemon.cli.opening import (
    FAILED,
    USAGE,
    Before,
    Config,
    Limit,
    fail,
    open_database,
    open_settings,
    reading,
    settings_to_run,
)
from meddaemon.cli.output import Format, print_rows, shown
from meddaemon.cli.queue import deliveries_app, jobs_app
from meddaemon.cli.results import artefacts, query
from meddaemon.cli.schema import db_app
from meddaemon.cli.store import store_app
from meddaemon.cli.studies import studies_app
from meddaemon.db import history
from meddaemon.db.engine import DatabaseUnavailable
from meddaemon.domain.errors import InvalidConfiguration, MeddaemonError, RefusedInstance
from meddaemon.ingest.part10 import is_plain, read_part10
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.store import as_part10
from meddaemon.results.dimse import RemoteEntity, store
from meddaemon.results.transport import Outgoing, Verdict
from meddaemon.roles.process import receiver_of, store_of

app = typer.Typer(
    help="Receive DICOM studies, run MONAI bundles on them, return standard SR and SEG. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(studies_app, name="studies")
app.add_typer(jobs_app, name="jobs")
app.add_typer(deliveries_app, name="deliveries")
app.add_typer(notices_app, name="notices")
app.add_typer(commitments_app, name="commitments")
app.add_typer(models_app, name="models")
app.add_typer(store_app, name="store")
app.add_typer(db_app, name="db")
app.command("results")(query)
app.command("artefacts")(artefacts)
app.command("evaluate")(evaluate)


def main() -> None:
    """Run the command line; every error becomes one clear line and an exit code."""
    try:
        app(standalone_mode=True)
    except InvalidConfiguration as wrong:
        for problem in wrong.problems:
            typer.echo(problem, err=True)
        raise SystemExit(USAGE) from None
    except MeddaemonError as failure:
        fail(str(failure))
    except DatabaseUnavailable as failure:
        # The message may quote parameters; what the driver itself says does not.
        what = "is out of reach" if failure.statement is None else "cannot do this"
        fail(f"the database {what}: {shown(failure.orig)}")
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(FAILED) from None
    except OSError as failure:
        fail(f"{failure.strerror or failure}{f': {failure.filename}' if failure.filename else ''}")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"meddaemon {__version__}")
        raise typer.Exit


@app.command()
def serve(config: Config = None) -> None:
    """Run everything on this machine: listener, workers, scheduler and delivery, supervised."""
    daemon.serve(settings_to_run(config))


@app.command()
def listen(config: Config = None) -> None:
    """Run only the DICOM listener."""
    daemon.run_role("listen", settings_to_run(config))


@app.command()
def web(config: Config = None) -> None:
    """Run only the HTTP server: DICOMweb to store (STOW-RS), search (QIDO-RS) and retrieve (WADO-RS)."""
    daemon.run_role("web", settings_to_run(config))


@app.command()
def work(config: Config = None) -> None:
    """Run only a worker."""
    daemon.run_role("work", settings_to_run(config))


@app.command()
def deliver(config: Config = None) -> None:
    """Run only the scheduler and delivery."""
    daemon.run_role("deliver", settings_to_run(config))


@app.command()
def send(
    files: Annotated[list[Path], typer.Argument(help="Files, or folders to send whole.", exists=True)],
    to: Annotated[str, typer.Option(help="Where to: AE@host:port.")],
    calling: Annotated[str, typer.Option(help="Our own AE title.")] = "MEDDAEMON_SEND",
) -> None:
    """Send DICOM files by C-STORE, as a scanner would."""
    remote = _remote(to, calling)
    outgoing: list[Outgoing] = []
    named: dict[Path, Path] = {}
    unsendable = taken = refused_by_peer = 0
    with tempfile.TemporaryDirectory(prefix="meddaemon-send-") as rewritten:
        for path in _files(files):
            try:
                incoming = read_part10(path)
            except RefusedInstance as refused:
                typer.echo(f"not sent  {shown(path)}: {refused.reason}", err=True)
                unsendable += 1
                continue
            one = _outgoing(path, incoming, Path(rewritten, f"{len(outgoing)}.dcm"))
            named[one.path] = path
            outgoing.append(one)
        for answer in store(remote, outgoing):
            if answer.verdict is Verdict.TAKEN:
                taken += 1
            else:
                refused_by_peer += 1
                typer.echo(f"refused   {shown(named[answer.outgoing.path])}: {shown(answer.reason)}", err=True)
    typer.echo(f"{taken} sent, {refused_by_peer} refused, {unsendable} not sendable")
    if refused_by_peer or unsendable:
        raise typer.Exit(FAILED)


def _outgoing(path: Path, incoming: Incoming, rewritten: Path) -> Outgoing:
    """Return the file to send; one that does not name its object rightly is written anew, its data set untouched."""
    sop_class_uid, sop_instance_uid = incoming.sop_class_uid, incoming.sop_instance_uid
    if not is_plain(path, incoming):
        rewritten.write_bytes(
            as_part10(
                incoming.data,
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
                transfer_syntax_uid=incoming.transfer_syntax_uid,
            )
        )
        path = rewritten
    return Outgoing(
        path=path,
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=incoming.transfer_syntax_uid,
    )


@app.command("import")
def import_(
    folders: Annotated[list[Path], typer.Argument(help="Files, or folders to import whole.", exists=True)],
    config: Config = None,
) -> None:
    """Take DICOM files from disk, with the same checks and guarantees as the listener."""
    settings = open_settings(config)
    taken = known = refused = 0
    with open_database(settings, upgrade=True) as database:
        instance_store = store_of(settings, database)
        receiver = receiver_of(settings, database, instance_store)
        for path in _files(folders):
            try:
                registration = receiver.take(read_part10(path, calling_ae_title="IMPORT"))
            except RefusedInstance as reason:
                refused += 1
                typer.echo(f"refused  {shown(path)}: {reason.reason}", err=True)
            else:
                taken += registration.new
                known += not registration.new
        instance_store.close()
    typer.echo(f"{taken} taken, {known} known already, {refused} refused")
    if refused:
        raise typer.Exit(FAILED)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="Id, UID or accession number of the study.")],
    model: Annotated[str, typer.Option(help="The model to run.")],
    series: Annotated[str | None, typer.Option(help="The series to run it on (Series Instance UID).")] = None,
    to: Annotated[list[str] | None, typer.Option(help="Destinations of the result.")] = None,
    config: Config = None,
) -> None:
    """Queue a model on a study whatever the rules say; unsound volumes are refused all the same."""
    settings = open_settings(config)
    for name in to or ():
        if name not in {each.name for each in settings.destinations}:
            fail(f"no destination {name!r}; there are: {', '.join(each.name for each in settings.destinations)}")
    with open_database(settings) as database:
        from meddaemon import pipeline  # noqa: PLC0415  encoders, which no other command needs

        job_id = pipeline.force(
            database, settings, wanted=study, model=model, series=series, destinations=tuple(to or ())
        )
    typer.echo(f"job {job_id}")


@app.command()
def explain(
    study: Annotated[
        str | None, typer.Argument(help="Id, accession number, or UID of study, series or instance.")
    ] = None,
    refused: Annotated[bool, typer.Option("--refused", help="List the objects that were not taken.")] = False,
    limit: Limit = 1000,
    before: Before = None,
    config: Config = None,
) -> None:
    """Tell why a study did or did not run: rule by rule, series by series, with the values that were seen."""
    if (study is None) is not refused:
        typer.echo("meddaemon: name a study, or ask for --refused", err=True)
        raise typer.Exit(USAGE)
    with reading(config) as connection:
        if study is None:
            columns = {
                "id": "id",
                "at": "at",
                "instance": "sop_instance_uid",
                "status": "status_code",
                "from": "calling_ae_title",
                "reason": "reason",
            }
            print_rows(history.refusals(connection, limit=limit, before=before), columns, Format.TABLE)
            return
        for line in explanation(connection, study, open_settings(config).outlets):
            typer.echo(line)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where to put everything; made anew.")] = Path("demo-output"),
    volume: Annotated[
        Path | None,
        typer.Option(help="A T1-weighted head of your own (NIfTI) instead of the average one.", exists=True),
    ] = None,
) -> None:
    """Show the main job on real anatomy: a head MR in, SEG, SR and a finding out."""
    from meddaemon.demo import run_demo  # noqa: PLC0415  needs packages of the extra `demo` alone

    run_demo(folder.resolve(), volume, lambda line: print(line, flush=True))  # noqa: T201  progress, line by line


@app.command()
def doctor(
    network: Annotated[bool, typer.Option(help="Also ask destinations, and whom they tell, what they take.")] = True,
    config: Config = None,
) -> None:
    """Look at settings, store, database, models, processes and destinations; exit 1 when one is not well."""
    ill = False
    for check in health.examine(open_settings(config), with_network=network):
        mark = {True: "ok  ", False: "BAD ", None: "    "}[check.well]
        typer.echo(f"{mark}{check.what}: {shown(check.said)}")
        ill = ill or check.well is False
    if ill:
        raise typer.Exit(FAILED)


def _files(paths: list[Path]) -> Iterator[Path]:
    """Yield files in a stable order, folders whole; links are not followed out of a folder."""
    for path in paths:
        if path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.is_file() and not each.is_symlink())
        else:
            yield path


def _remote(to: str, calling: str) -> RemoteEntity:
    ae_title, at, address = to.partition("@")
    host, colon, port = address.rpartition(":")
    if not (ae_title and at and host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise typer.BadParameter(f"{to!r} is not of the form AE@host:port", param_hint="--to")
    return RemoteEntity(ae_title=ae_title, host=host.strip("[]"), port=int(port), calling_ae_title=calling)
