"""`meddaemon store`: prove that index and store say the same, and make them do so; safe while the daemon runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from meddaemon.cli.opening import FAILED, Config, fail, open_database, open_settings
from meddaemon.cli.output import shown
from meddaemon.config.settings import Settings
from meddaemon.db import instances
from meddaemon.db.engine import Database
from meddaemon.ingest.inspection import Problem, Scrub, check
from meddaemon.ingest.journal import waiting
from meddaemon.ingest.recovery import PREFIXES, Found, recover
from meddaemon.ingest.store import InstanceStore
from meddaemon.ingest.volume import adopt_volume
from meddaemon.roles.process import receiver_of, store_of

store_app = typer.Typer(help="Prove that index and store say the same, and make them do so.", no_args_is_help=True)

_MEGABYTE = 1e6
_WORDS = {
    Found.ADOPTED: "adopted",
    Found.SET_ASIDE: "set aside",
    Found.POSTPONED: "left there",
    Found.MISSING: "missing",
    Found.RETURNED: "there again",
}


@store_app.command("check")
def store_check(
    by_digest: Annotated[bool, typer.Option("--hash", help="Read every file; otherwise sizes must do.")] = False,
    config: Config = None,
) -> None:
    """Look whether every registered file is there and every file registered; change nothing."""
    settings = open_settings(config)
    problems = 0
    with _opened(settings) as (database, store):
        for problem in check(database, store, settings.store.results, by_digest=by_digest):
            problems += 1
            _tell(problem)
        with database.read() as connection:
            registered = instances.count(connection)
    typer.echo(f"{registered} instances registered, {problems} problems")
    if in_journal := len(waiting(store.journals)):
        typer.echo(f"{in_journal} more stand in the ingest journal: the listener, or its next start, registers them")
    if problems:
        raise typer.Exit(FAILED)


@store_app.command("scrub")
def store_scrub(
    rate: Annotated[float, typer.Option(min=0.001, help="Read at most so many megabytes each second.")] = 50.0,
    start: Annotated[
        str, typer.Option("--from", help="Go on where an earlier run was stopped (it says where).")
    ] = "00",
    config: Config = None,
) -> None:
    """Read every file and compare it with its digest; set aside what is damaged and mark what is gone."""
    if start not in PREFIXES:
        raise typer.BadParameter(f"{start!r} is not of two digits 0-9a-f", param_hint="--from")
    problems = 0
    with _opened(open_settings(config)) as (database, store):
        scrub = Scrub(database, store, bytes_per_second=rate * _MEGABYTE, start=start)
        try:
            for problem in scrub.run():
                problems += 1
                _tell(problem)
        except KeyboardInterrupt:
            typer.echo(f"stopped; go on with --from {scrub.prefix}")
            raise
    typer.echo(f"{scrub.files} files, {scrub.bytes / _MEGABYTE:.1f} MB read, {problems} problems")
    if problems:
        raise typer.Exit(FAILED)


@store_app.command("repair")
def store_repair(config: Config = None) -> None:
    """Register what is stored and unknown, set aside what is no object of ours, mark what is gone."""
    settings = open_settings(config)
    with _opened(settings) as (database, store):
        recovered = recover(database, store, receiver_of(settings, database, store), _tell_found)
    typer.echo(
        f"{recovered.adopted} adopted, {recovered.set_aside} set aside, {recovered.returned} there again, "
        f"{recovered.missing} missing, {recovered.postponed} left there, {recovered.swept} half received swept"
    )
    if not recovered.well:
        raise typer.Exit(FAILED)


@store_app.command("adopt")
def store_adopt(
    without_objects: Annotated[
        bool, typer.Option("--without-objects", help="Although the objects that the database knows are not there.")
    ] = False,
    config: Config = None,
) -> None:
    """Take what lies in the store's directory now for the store of this database, where it was moved on purpose."""
    settings = open_settings(config)
    with open_database(settings) as database:
        with database.read() as connection:
            latest = instances.latest(connection, limit=100)
        folder = settings.store.instances
        if latest and not without_objects and not any(instances.path_of(folder, each).is_file() for each in latest):
            fail(
                f"none of the {len(latest)} latest objects that the database knows is under {folder}: is the right "
                "volume mounted? Nothing was changed (--without-objects does it all the same)"
            )
        adopt_volume(database, settings.store.directory)
    typer.echo(f"{settings.store.directory} is the store of this database now; see `meddaemon store check`")


@contextmanager
def _opened(settings: Settings) -> Iterator[tuple[Database, InstanceStore]]:
    with open_database(settings) as database:
        store = store_of(settings, database)
        try:
            yield database, store
        finally:
            store.close()


def _tell(problem: Problem) -> None:
    uid = f"  instance {problem.sop_instance_uid}" if problem.sop_instance_uid else ""
    typer.echo(f"{problem.trouble.value:<14}  {shown(problem.name)}{uid}")


def _tell_found(found: Found, name: str, sop_instance_uid: str) -> None:
    uid = f"  instance {sop_instance_uid}" if sop_instance_uid else ""
    typer.echo(f"{_WORDS[found]:<14}  {shown(name)}{uid}")
