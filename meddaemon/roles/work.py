"""The worker: runs models."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

from meddaemon.config.settings import Settings
from meddaemon.config.settings import WorkerSettings as Configured
from meddaemon.db.engine import DatabaseUnavailable
from meddaemon.durable import Staging
from meddaemon.inference import sandbox
from meddaemon.inference.runtime import Limits
from meddaemon.inference.warm import WarmModels
from meddaemon.ingest.volume import Volume, open_volume
from meddaemon.jobs.worker import Worker, WorkerSettings
from meddaemon.pipeline import JobStages, tell_of_failure
from meddaemon.roles.process import DRAIN_SECONDS, announced, database_of, process_name
from meddaemon.roles.slots import memory_share
from meddaemon.telemetry import log

_log = log(__name__)


def work(settings: Settings, stop: threading.Event) -> None:
    """Run jobs until `stop` is set; a model that runs then may finish, every other job is given back unworked.

    Raises SandboxUnavailable when models may only run confined and the kernel cannot do it.
    """
    if settings.contracts and settings.worker.sandbox == "required":
        sandbox.require()
    with ExitStack() as stack:
        database = stack.enter_context(database_of(settings))
        volume = open_volume(database, settings.store.directory)
        models = stack.enter_context(WarmModels(settings.store.directory / "scratch", _limits(settings.worker)))
        if settings.contracts:
            models.start()
        staging = Staging(settings.store.results / "incoming")
        staging.sweep()
        # Without its volume every job would fail, and use up its attempts.
        ready = partial(_is_ready, volume, staging, threading.Lock())
        worker = Worker(
            database,
            process_name("work"),
            WorkerSettings(
                lease_seconds=settings.worker.lease_seconds,
                heartbeat_seconds=settings.worker.heartbeat_seconds,
                backoff_seconds=settings.worker.backoff_seconds,
                poll_seconds=settings.worker.poll_seconds,
                drain_seconds=DRAIN_SECONDS,
                model_digests=[contract.digest for contract in settings.admitted.values()],
                prefetch=settings.worker.prefetch,
                batch_jobs=settings.worker.batch_jobs,
                ageing_seconds=settings.worker.ageing_seconds,
            ),
            JobStages(database, settings, models, staging),
            ready=ready,
        )
        tell = partial(tell_of_failure, database, settings, staging)
        with announced(database, "work", "", stop), ThreadPoolExecutor(1, "failures") as teller:
            _log.info("working", models=sorted(settings.admitted))
            telling = teller.submit(_tell, lambda: ready() and tell(), stop, settings.worker.poll_seconds)
            try:
                worker.run(stop)
            finally:
                stop.set()
            telling.result()
        staging.close()


def _tell(tell: Callable[[], bool], stop: threading.Event, poll_seconds: float) -> None:
    """Tell of jobs that failed, one by one, until `stop` is set; nothing that runs waits for it.

    Many may fail at once, when their deadline passes: as long as one took, nothing is done.
    """
    try:
        while not stop.is_set():
            began = time.monotonic()
            try:
                told = tell()
            except DatabaseUnavailable as failure:
                _log.error("cannot reach the queue", reason=type(failure).__name__)
                told = False
            stop.wait(time.monotonic() - began if told else poll_seconds)
    finally:
        # What nobody foresaw ends the worker, too: the supervisor starts a new one.
        stop.set()


def _limits(settings: Configured) -> Limits:
    """Return what the models of this worker may have."""
    return Limits(
        sandbox=settings.sandbox,
        memory_bytes=settings.memory_bytes or memory_share(settings.concurrency),
        scratch_bytes=settings.scratch_bytes,
        # Alone on its GPU, or one of several that share it.
        gpu_fraction=1 / settings.concurrency,
        prepare_beside=settings.preprocess_ahead if settings.prefetch else "never",
    )


def _is_ready(volume: Volume, staging: Staging, asking: threading.Lock) -> bool:
    """Return whether the volume is there; what was open on it is let go while it is not, and opened again after.

    Who claims jobs asks, and who begins them: one after the other.
    """
    with asking:
        before = volume.returned
        if not volume.is_there:
            staging.release()
            return False
        if volume.returned != before:
            staging.reopen()
        return True
