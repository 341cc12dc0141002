"""`meddaemon doctor`: whether everything is there that the daemon needs, and whether it runs."""

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from meddaemon.cli.oddities import oddities
from meddaemon.cli.output import shown
from meddaemon.config.settings import Settings
from meddaemon.db import commitments, custody, deliveries, gates, holds, instances, jobs, processes, studies
from meddaemon.db.engine import Connection, Database, DatabaseUnavailable
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import MeddaemonError
from meddaemon.domain.states import DeliveryState, JobState
from meddaemon.inference import sandbox
from meddaemon.ingest.volume import VolumeGone, check_volume
from meddaemon.roles.probing import Check, probe
from meddaemon.roles.process import EXPIRY_WARNING_DAYS, SIGN_OF_LIFE_SECONDS
from meddaemon.tls import TlsUnusable, expires_at


def examine(settings: Settings, *, with_network: bool) -> Iterator[Check]:
    """Yield one check after the other; with the network also of everybody whom we call."""
    yield _store(settings)
    yield _inference()
    yield _sandbox(settings)
    for name, contract in sorted(settings.contracts.items()):
        yield _model(name, contract)
    if not settings.contracts:
        yield Check(what="models", well=None, said="none configured: instances are received, nothing is run")
    for warning in settings.warnings:
        yield Check(what="settings", well=None, said=warning)
    yield from _certificates(settings)
    yield from _database(settings)
    yield from oddities(settings)
    if with_network:
        yield from probe(settings)


def _model(name: str, contract: ModelContract) -> Check:
    said = f"version {contract.version}, digest {contract.digest[:12]}"
    admission = contract.admission
    if admission.refusal:
        return Check(what=f"model {name}", well=False, said=f"{said}, gets no work: {admission.refusal}")
    if admission.forced:
        return Check(what=f"model {name}", well=None, said=f"{said}, admitted by force: {admission.forced}")
    return Check(what=f"model {name}", well=True, said=f"{said}, checked")


def _store(settings: Settings) -> Check:
    folder = settings.store.directory
    if not folder.is_dir():
        return Check(what="store", well=None, said=f"{folder} is not there yet; it is made at the first start")
    if not os.access(folder, os.W_OK | os.X_OK):
        said = f"user {os.geteuid()} may not write to {folder}, or it is mounted read-only"
        return Check(what="store", well=False, said=said)
    free = shutil.disk_usage(folder).free
    least = settings.store.minimum_free_bytes
    return Check(
        what="store", well=free > least, said=f"{folder}: {free / 1e9:.1f} GB free, {least / 1e9:.1f} GB must stay free"
    )


def _certificates(settings: Settings) -> Iterator[Check]:
    """Yield how long our certificate lasts, and those of others."""
    peers = [*(each.ca for each in settings.destinations), *(each.ca for each in settings.peers)]
    if settings.tls.certificate:
        yield _certificate("certificate", Path(settings.tls.certificate))
    for file in dict.fromkeys([settings.tls.ca, *peers]):
        if file:
            yield _certificate("certificates of others", Path(file))


def _certificate(what: str, file: Path) -> Check:
    try:
        end = expires_at(file)
    except TlsUnusable as failure:
        return Check(what=what, well=False, said=str(failure))
    left = end - datetime.now(UTC)
    if left.total_seconds() <= 0:
        return Check(what=what, well=False, said=f"{file}: expired on {end:%Y-%m-%d}")
    said = f"{file}: ends on {end:%Y-%m-%d}, in {left.days} days"
    return Check(what=what, well=None if left.days < EXPIRY_WARNING_DAYS else True, said=said)


def _inference() -> Check:
    missing = [name for name in ("torch", "monai") if importlib.util.find_spec(name) is None]
    if missing:
        return Check(what="inference", well=None, said=f"no {' and '.join(missing)}: this installation runs no models")
    return Check(what="inference", well=True, said="torch and MONAI are installed")


def _sandbox(settings: Settings) -> Check:
    """Say whether models and decoders run confined, as the settings want it."""
    lacks, wanted = sandbox.missing(), settings.worker.sandbox
    if wanted == "off":
        return Check(
            what="sandbox", well=None, said='models run with the rights of the daemon (worker.sandbox = "off")'
        )
    if not lacks:
        said = f"models run confined (Landlock {sandbox.landlock_abi()}, seccomp)"
        return Check(what="sandbox", well=True, said=said)
    said = f"this kernel has no {' and no '.join(lacks)}"
    if wanted == "preferred":
        return Check(what="sandbox", well=None, said=f'{said}: models run without (worker.sandbox = "preferred")')
    return Check(what="sandbox", well=False, said=f'{said}, and worker.sandbox is "required": no model is run')


def _database(settings: Settings) -> Iterator[Check]:
    database = Database(settings.database.url)
    try:
        database.require_schema()
        problems = database.integrity_problems()
        yield Check(what="database", well=not problems, said=problems[0] if problems else f"{database.dialect}, sound")
        for name in database.durability_problems():
            said = f"{name} is off on the server: what was acknowledged is lost when its machine fails; switch it on"
            yield Check(what="database", well=False, said=said)
        yield _volume(settings, database)
        yield from _state(settings, database)
    except (MeddaemonError, DatabaseUnavailable) as failure:
        said = str(failure) if isinstance(failure, MeddaemonError) else f"out of reach: {shown(failure.orig)}"
        yield Check(what="database", well=False, said=said)
    finally:
        database.close()


def _volume(settings: Settings, database: Database) -> Check:
    try:
        check_volume(database, settings.store.directory)
    except VolumeGone as gone:
        return Check(what="volume", well=False, said=str(gone))
    return Check(what="volume", well=True, said="the one that the database knows, or none yet")


def _state(settings: Settings, database: Database) -> Iterator[Check]:
    with database.read() as connection:
        yield from _processes(connection)
        yield from _instances(connection)
        yield from _jobs(connection, settings)
        yield from _commitments(connection)
        yield from _deliveries(connection, settings)


def _processes(connection: Connection) -> Iterator[Check]:
    running = processes.listing(connection)
    for process in running:
        silent = process.silent_for > 4 * SIGN_OF_LIFE_SECONDS
        address = f" on {process.address}" if process.address else ""
        said = f"pid {process.pid}{address}, last sign of life {max(process.silent_for, 0):.0f} s ago"
        yield Check(what=process.role, well=not silent, said=said)
    if not running:
        yield Check(what="processes", well=None, said="none is running")


def _instances(connection: Connection) -> Iterator[Check]:
    counts = instances.counts(connection)
    troubles = counts["conflicts"] + counts["missing"]
    more = "more than " if counts["stored"] >= instances.COUNTED_TO else ""
    said = more + ", ".join(f"{count} {what}" for what, count in counts.items())
    yield Check(what="instances", well=None if troubles else True, said=said)
    if held := holds.held(connection):
        yield Check(
            what="held for a person", well=None, said=f"contradictory, incomplete, or of nobody: {_named(held)}"
        )
    if in_conflict := studies.in_conflict(connection):
        yield Check(what="conflicts", well=None, said=f"several objects under one UID in {_named(in_conflict)}")
    if alarms := instances.alarms(connection):
        said = f"{alarms} refused, whose UID is that of another study's or patient's: see `meddaemon explain --refused`"
        yield Check(what="identity alarms", well=None, said=said)


def _jobs(connection: Connection, settings: Settings) -> Iterator[Check]:
    counts = jobs.state_counts(connection)
    said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"
    yield Check(what="jobs", well=None if counts.get(JobState.DISCARDED) else True, said=said)
    configured = {gates.QUEUE, *(window.name for window in settings.windows)}
    for gate in gates.listing(connection):
        if gate.name == gates.QUEUE and not gate.open:
            said = f"paused since {shown(gate.changed_at)}: {gate.reason}; `meddaemon jobs resume` lets jobs begin"
            yield Check(what="queue", well=None, said=said)
        elif gate.name not in configured and gate.waiting:
            said = f"{gate.waiting} wait for a window that is not configured: `meddaemon jobs hurry` or `cancel` them"
            yield Check(what=f"jobs of window {gate.name}", well=False, said=said)
    digests = {name: contract.digest for name, contract in settings.contracts.items()}
    for (model, digest), count in sorted(jobs.waiting_models(connection).items()):
        if digests.get(model) != digest:
            said = f"{count} wait for a version that is not configured; a restart of `deliver` asks the rules again"
            yield Check(what=f"jobs of model {model}", well=False, said=said)
        elif model not in settings.admitted:
            yield Check(what=f"jobs of model {model}", well=False, said=f"{count} wait until the model is admitted")


def _commitments(connection: Connection) -> Iterator[Check]:
    for state, count in sorted(commitments.state_counts(connection).items()):
        yield Check(what="storage commitment", well=None, said=_waiting(state, count))


def _deliveries(connection: Connection, settings: Settings) -> Iterator[Check]:
    known = {each.name for each in settings.destinations}
    for (destination, state), count in sorted(deliveries.state_counts(connection).items()):
        there = destination in known
        said = _waiting(state, count) + ("" if there else ", but no such destination")
        if state is DeliveryState.HELD:
            said += f": see `meddaemon deliveries list --state held --destination {destination}`"
        yield Check(what=f"deliveries to {destination}", well=None if there else False, said=said)
    for destination, (count, since) in custody.unconfirmed(connection).items():
        said = f"{count} sent since {shown(since)} and not confirmed"
        yield Check(what=f"custody at {destination}", well=None, said=said)


def _waiting(state: DeliveryState, count: int) -> str:
    return f"{count} held for a person" if state is DeliveryState.HELD else f"{count} {state}"


def _named(study_ids: Sequence[int]) -> str:
    more = f" and {len(study_ids) - 10} more" if len(study_ids) > 10 else ""
    return f"study {', '.join(map(str, study_ids[:10]))}{more}: see `meddaemon explain ID`"
