"""Owner of every timed thing: completeness, expired leases, windows, deadlines, deliveries, questions to peers."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from meddaemon import pipeline
from meddaemon.config.custody import policy_of
from meddaemon.config.destinations import DestinationSettings
from meddaemon.config.settings import PeerSettings, Settings
from meddaemon.db import announcements, gates, jobs, studies
from meddaemon.db.engine import Database
from meddaemon.domain.custody import Proof
from meddaemon.domain.notices import NoticeForm
from meddaemon.domain.schedule import Window
from meddaemon.ingest.custody import CustodyReports
from meddaemon.ingest.volume import Volume, open_volume
from meddaemon.results.custody import confirm
from meddaemon.results.delivery import Retry
from meddaemon.results.delivery import deliver as deliver_to
from meddaemon.results.notices.outbox import announce
from meddaemon.roles.process import DRAIN_SECONDS, SIGN_OF_LIFE_SECONDS, TICK_SECONDS, announced, database_of, guarded
from meddaemon.roles.remote import custodian_of, pace_of, remote_of, teller_of, way_to
from meddaemon.telemetry import log

FORGET_SECONDS = 3600.0
WINDOW_SECONDS = 2.0
"""How late a window may open; it closes by the database's clock, whether anybody looks or not."""
CLOCK_SECONDS = 1.0
"""How far the clock is set back when it counts as set back."""
_log = log(__name__)


def deliver(settings: Settings, stop: threading.Event) -> None:
    """Own every timed thing until `stop` is set: completeness, expired leases, the outbox of each destination."""
    with database_of(settings) as database:
        volume = open_volume(database, settings.store.directory)
        # Schedules live in memory: what is due stands in the database, and a tick that is missed costs nothing.
        scheduler = BackgroundScheduler(
            # Peers that do not answer hold threads of their own pool, never those of completeness and leases.
            executors={
                "default": ThreadPoolExecutor(2),
                # Each destination its own: one that swallows all that it is sent, and never answers, holds up no other.
                **{_way(each): ThreadPoolExecutor(each.connections) for each in settings.destinations},
                "commit": ThreadPoolExecutor(1),
                "query": ThreadPoolExecutor(4),
                # Each question, and each form of telling, its own.
                "custody": ThreadPoolExecutor(max(1, sum(map(_patient, settings.destinations)))),
            },
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

        def every(
            seconds: float, name: str, task: Callable[[], object], executor: str = "default", at_once: int = 1
        ) -> None:
            scheduler.add_job(
                guarded(name, task), "interval", seconds=seconds, id=name, executor=executor, max_instances=at_once
            )

        every(TICK_SECONDS, "admit", lambda: pipeline.admit(database, settings))
        every(min(SIGN_OF_LIFE_SECONDS, settings.worker.lease_seconds / 4), "expire", lambda: _expire(database))
        for destination in settings.destinations:
            every(
                settings.delivery.poll_seconds,
                _way(destination),
                partial(_on_volume, volume, partial(_drain, database, settings, destination, stop)),
                _way(destination),
                destination.connections,
            )
        for destination in settings.destinations:
            every(
                settings.delivery.poll_seconds,
                f"custody at {destination.name}",
                partial(_confirm, database, settings, destination, stop),
                # One that keeps its association open for a report holds up no other.
                "custody" if Proof(destination.custody) is not Proof.SENT else "default",
            )
            # Where nobody is told, that is noted.
            forms = {each.form for each in destination.told} or {NoticeForm.IAN}
            for form in sorted(forms):
                every(
                    settings.delivery.poll_seconds,
                    f"availability at {destination.name} by {form.value}",
                    partial(_announce, database, settings, destination, form, stop),
                    "custody" if destination.told else "default",
                )
        _remove_windows(database, settings.windows)
        if settings.windows:
            every(WINDOW_SECONDS, "windows", lambda: _keep_windows(database, settings.windows))
        every(FORGET_SECONDS, "forget", lambda: _forget(database))
        for peer in settings.listening_peers:
            if peer.query:
                every(
                    settings.delivery.poll_seconds,
                    f"ask {peer.ae_title}",
                    partial(_inquire, database, settings, peer, stop),
                    "query",
                )
        if settings.listening_peers:
            commit = partial(_on_volume, volume, partial(_commit, database, settings, stop))
            every(settings.delivery.poll_seconds, "commit", commit, "commit")
        # A tick that is skipped because the one before still runs is nothing to tell.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        _reopen(database, settings)
        with announced(database, "deliver", "", stop):
            scheduler.start()
            _log.info("delivering", destinations=[each.name for each in settings.destinations])
            _run(scheduler, stop)
            scheduler.pause()
            if not _finished(scheduler):
                # A peer that does not answer holds a thread that Python would wait for at exit. What it was sent
                # stays leased in the outbox and is taken up again, under the same UID.
                # Nor is the database asked for anything: it may be what does not answer.
                _log.warning("left a delivery in progress: it will be repeated")
                sys.stderr.flush()
                os._exit(0)


def _run(scheduler: BackgroundScheduler, stop: threading.Event) -> None:
    """Wait for the end. A clock that is set back would have every task wait for the time that it showed before."""
    ahead = time.time() - time.monotonic()
    while not stop.wait(CLOCK_SECONDS):
        before, ahead = ahead, time.time() - time.monotonic()
        if ahead < before - CLOCK_SECONDS:
            _log.warning("the clock was set back: every task runs now", seconds=round(before - ahead))
            for task in scheduler.get_jobs():
                task.modify(next_run_time=datetime.now(UTC))


def _on_volume(volume: Volume, task: Callable[[], object]) -> None:
    """Do what reads the store's files, as long as they are there: that a volume is away says nothing of its files."""
    if volume.is_there:
        task()


def _commit(database: Database, settings: Settings, stop: threading.Event) -> None:
    # The peer asked our listener for commitment, so it hears of it from that AE title.
    peers = {
        peer.ae_title: replace(remote_of(settings, peer), calling_ae_title=settings.listener.ae_title)
        for peer in settings.listening_peers
    }
    while not stop.is_set() and pipeline.commit(database, settings.store.instances, peers, _retry(settings)):
        pass


def _retry(settings: Settings, maximum_tries: int | None = None) -> Retry:
    return Retry(
        first_seconds=settings.delivery.backoff_seconds,
        longest_seconds=settings.delivery.maximum_backoff_seconds,
        lease_seconds=settings.delivery.lease_seconds,
        maximum_tries=maximum_tries,
        pace=pace_of(settings),
    )


def _expire(database: Database) -> None:
    with database.write() as connection:
        expired = jobs.expire(connection)
        missed = jobs.miss(connection)
    if expired:
        _log.warning("took back jobs whose worker went silent", jobs=expired)
    if missed:
        _log.warning("discarded jobs whose deadline passed before they began", jobs=missed)


def _keep_windows(database: Database, windows: Sequence[Window]) -> None:
    """Open each window until its next close, and shut those that should be shut, by the database's clock."""
    with database.write() as connection:
        at = gates.clock(connection)
        for window in windows:
            until = window.open_until(at)
            if gates.keep(connection, window.name, until):
                _log.info("window", window=window.name, open_until=until.isoformat() if until else "closed")


def _remove_windows(database: Database, windows: Sequence[Window]) -> None:
    """Shut the windows that are not configured any more, and tell of the jobs that wait for them in vain."""
    with database.write() as connection:
        for gone in gates.remove(connection, but=[window.name for window in windows]):
            _log.error(
                "jobs wait for a window that is not configured: `meddaemon jobs hurry` or `cancel` them",
                window=gone.name,
                jobs=gone.waiting,
            )


def _forget(database: Database) -> None:
    with database.write() as connection:
        announcements.forget(connection)


def _inquire(database: Database, settings: Settings, peer: PeerSettings, stop: threading.Event) -> None:
    while not stop.is_set() and pipeline.inquire(database, remote_of(settings, peer)):
        pass


def _reopen(database: Database, settings: Settings) -> None:
    """Have the rules asked again where a model changed that work waits for, or one was admitted that was not."""
    with database.write() as connection:
        reopened = studies.reopen_for_changed_models(
            connection, {name: contract.digest for name, contract in settings.contracts.items()}
        )
        reopened += studies.reopen_for_admitted_models(connection, set(settings.admitted))
    if reopened:
        _log.warning("models changed: the rules are asked again", studies=reopened)


def _drain(database: Database, settings: Settings, destination: DestinationSettings, stop: threading.Event) -> None:
    send, retry = way_to(settings, destination), _retry(settings, destination.maximum_tries)
    outbox = partial(
        deliver_to,
        database,
        settings.store.results,
        destination.name,
        send,
        retry,
        stop,
        editions=destination.outlet.editions,
        kinds=destination.objects,
    )
    while not stop.is_set() and _is_open(database, destination.window) and outbox():
        pass


def _patient(destination: DestinationSettings) -> int:
    """Return how many tasks of a destination wait for peers beside sending: custody, and each form of notice."""
    return (Proof(destination.custody) is not Proof.SENT) + len({each.form for each in destination.told})


def _way(destination: DestinationSettings) -> str:
    return f"deliver to {destination.name}"


def _is_open(database: Database, window: str) -> bool:
    """Return whether a destination may be sent to now; a pause of the queue is none of its business."""
    if not window:
        return True
    with database.read() as connection:
        return gates.is_open(connection, window)


def _confirm(database: Database, settings: Settings, destination: DestinationSettings, stop: threading.Event) -> None:
    policy = policy_of(destination, settings.custody)
    custodian = custodian_of(settings, destination, policy, CustodyReports(database).answer, stop)
    while not stop.is_set() and confirm(database, destination.name, policy, custodian):
        pass


def _announce(
    database: Database, settings: Settings, destination: DestinationSettings, form: NoticeForm, stop: threading.Event
) -> None:
    tell = teller_of(settings, database, destination, form)
    told, retry = destination.told, _retry(settings, destination.maximum_tries)
    while not stop.is_set() and announce(database, destination.name, form, told, tell, retry):
        pass


def _finished(scheduler: BackgroundScheduler) -> bool:
    """Wait for the tasks in hand, for a while; return whether all have ended."""
    done = threading.Thread(target=scheduler.shutdown, name="shutdown", daemon=True)
    done.start()
    done.join(DRAIN_SECONDS)
    return not done.is_alive()
