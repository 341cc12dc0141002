"""The roles of the daemon and their supervisor: where everything is put together, started, watched and drained.

Each role is a process: `listen` receives by DICOM and `web` by HTTP, `work` runs models, `deliver` owns every timed
thing (completeness, expired leases, deliveries). `serve` runs them all on one machine; on several, each role runs
alone against one database.
"""

import ctypes
import fcntl
import gc
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from meddaemon import pipeline
from meddaemon.config.settings import DestinationSettings, PeerSettings, Settings, WebSettings
from meddaemon.db import announcements, jobs, processes, studies
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.domain.errors import MeddaemonError
from meddaemon.durable import Staging
from meddaemon.inference.warm import WarmModels
from meddaemon.ingest.announcements import AnnouncementProvider
from meddaemon.ingest.callers import Caller
from meddaemon.ingest.commitment import CommitmentProvider
from meddaemon.ingest.filing import file_abandoned
from meddaemon.ingest.intake import intake_of
from meddaemon.ingest.quota import Quota
from meddaemon.ingest.receive import Receiver
from meddaemon.ingest.recovery import recover
from meddaemon.ingest.scp import Listener, ListenerSettings, TlsSettings
from meddaemon.ingest.storage import StorageProvider
from meddaemon.ingest.store import InstanceStore
from meddaemon.ingest.volume import Volume, open_volume
from meddaemon.jobs.worker import Worker, WorkerSettings
from meddaemon.results.delivery import Retry
from meddaemon.results.delivery import deliver as deliver_to
from meddaemon.results.dimse import ClientTls, RemoteEntity
from meddaemon.telemetry import log
from meddaemon.tls import Identity, TlsUnusable
from meddaemon.web.settings import StowSettings, WebServerSettings

DRAIN_SECONDS = 8.0
"""How long work in hand may go on after SIGTERM; what is not done then is given back or taken up later."""
KILL_SECONDS = 13.0
"""When the supervisor ends a role that does not: well before the 15 seconds in which `serve` promises to be gone."""
MALLOC = {-8: 2, -3: 2**20, -1: 2**21}
"""mallopt(3): two heaps (M_ARENA_MAX); what takes 1 MiB is mapped by itself (M_MMAP_THRESHOLD); 2 MiB that are free at
the end of a heap go back (M_TRIM_THRESHOLD)."""
SIGN_OF_LIFE_SECONDS = 5.0
DESCRIPTORS = 8192
"""For the connections of the listener, where the system allows so many."""
TICK_SECONDS = 0.5
EXPIRY_WARNING_DAYS = 30
"""How long before its end a certificate is spoken of."""
_DAY_SECONDS = 86400.0
FORGET_SECONDS = 3600.0
_SUPERVISOR = "MEDDAEMON_SUPERVISOR_PID"
_PR_SET_PDEATHSIG = 1
_log = log(__name__)


class AlreadyRunning(MeddaemonError):
    """Another `meddaemon serve` works on this store."""


class Signals(threading.Event):
    """Set by SIGTERM and SIGINT; SIGHUP has `hung_up` called, in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hung_up: Callable[[], None] = lambda: None


def listen(settings: Settings, stop: Signals) -> None:
    """Receive until `stop` is set, then let open associations finish for a moment.

    When it hangs up, certificates are read anew. Raises OSError when bind fails, TlsUnusable.
    """
    _allow_descriptors()
    _give_memory_back()
    with _database(settings, check=_SUPERVISOR not in os.environ) as database:
        store = store_of(settings, database)
        receiver = receiver_of(settings, database, store)
        file_abandoned(store, receiver)
        recover(database, store, receiver)
        # What was acknowledged before is filed whatever its sender may send now.
        most = settings.listener.caller_bytes_per_day
        receiver = receiver_of(settings, database, store, Quota(database, most) if most else None)
        commitment = CommitmentProvider(database, [peer.ae_title for peer in settings.listening_peers])
        with (
            intake_of(
                database,
                store,
                receiver,
                journal_bytes=settings.store.journal_bytes,
                maximum_bytes=settings.listener.maximum_object_bytes,
            ) as intake,
            Listener(
                _listener_settings(settings),
                receiver.take,
                commitment,
                AnnouncementProvider(database),
                StorageProvider(intake),
                has_room=lambda: store.has_room,
            ) as listener,
        ):
            # What is there now stays: looking through it for garbage again and again takes a tenth of all time.
            gc.collect()
            gc.freeze()
            address = _address_of(listener)
            if listener.tls_address:
                stop.hung_up = partial(_reload, listener)
            with _announced(database, "listen", address, stop):
                _log.info("listening", address=address, ae_titles=settings.listener.ae_titles)
                while not stop.wait(_until_warned(listener)):
                    pass
                listener.stop_accepting()
                _wait_until(lambda: listener.associations == 0, DRAIN_SECONDS)
        store.close()


def web(settings: Settings, stop: Signals) -> None:
    """Serve HTTP until `stop` is set, then let requests in hand finish for a moment. Raises OSError when bind fails."""
    # Only this role pays for them.
    from meddaemon.web.app import create_app  # noqa: PLC0415
    from meddaemon.web.server import WebServer  # noqa: PLC0415
    from meddaemon.web.stow import StoreTransaction  # noqa: PLC0415

    with _database(settings, check=_SUPERVISOR not in os.environ) as database:
        store = store_of(settings, database)
        receiver = receiver_of(settings, database, store)
        file_abandoned(store, receiver)
        recover(database, store, receiver)
        stow = StoreTransaction(receiver, store, _stow_settings(settings.web))
        app = create_app(stow.routes, tokens=settings.web.tokens)
        with WebServer(app, _web_server_settings(settings.web)) as server:
            host, port = server.address
            with _announced(database, "web", f"{host}:{port}", stop):
                _log.info("serving HTTP", address=f"{host}:{port}", tls=bool(settings.web.certificate))
                while not stop.wait(TICK_SECONDS):
                    server.require_running()
        stow.close()
        store.close()


def work(settings: Settings, stop: threading.Event) -> None:
    """Run jobs until `stop` is set; a job in hand may finish, else it is given back unworked."""
    with ExitStack() as stack:
        database = stack.enter_context(_database(settings))
        volume = open_volume(database, settings.store.directory)
        models = stack.enter_context(WarmModels(settings.store.directory / "scratch"))
        staging = Staging(settings.store.results / "incoming")
        staging.sweep()
        worker = Worker(
            database,
            _name("work"),
            WorkerSettings(
                lease_seconds=settings.worker.lease_seconds,
                heartbeat_seconds=settings.worker.heartbeat_seconds,
                backoff_seconds=settings.worker.backoff_seconds,
                poll_seconds=settings.worker.poll_seconds,
                drain_seconds=DRAIN_SECONDS,
                model_digests=[contract.digest for contract in settings.contracts.values()],
            ),
            process=lambda job: pipeline.process(database, settings, models, staging, job),
            interrupt=models.interrupt,
            # Without its volume every job would fail, and use up its attempts.
            ready=lambda: _is_ready(volume, staging),
        )
        with _announced(database, "work", "", stop):
            _log.info("working", models=sorted(settings.contracts))
            worker.run(stop)
        staging.close()


def deliver(settings: Settings, stop: threading.Event) -> None:
    """Own every timed thing until `stop` is set: completeness, expired leases, the outbox of each destination."""
    with _database(settings) as database:
        volume = open_volume(database, settings.store.directory)
        # Schedules live in memory: what is due stands in the database, and a tick that is missed costs nothing.
        scheduler = BackgroundScheduler(
            # Peers that do not answer hold threads of their own pool, never those of completeness and leases.
            executors={
                "default": ThreadPoolExecutor(2),
                "delivery": ThreadPoolExecutor(settings.delivery.concurrency),
                "query": ThreadPoolExecutor(4),
            },
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

        def every(seconds: float, name: str, task: Callable[[], object], executor: str = "default") -> None:
            scheduler.add_job(_guarded(name, task), "interval", seconds=seconds, id=name, executor=executor)

        every(TICK_SECONDS, "admit", lambda: pipeline.admit(database, settings))
        every(min(SIGN_OF_LIFE_SECONDS, settings.worker.lease_seconds / 4), "expire", lambda: _expire(database))
        for destination in settings.destinations:
            every(
                settings.delivery.poll_seconds,
                f"deliver to {destination.name}",
                partial(_on_volume, volume, partial(_drain, database, settings, destination, stop)),
                "delivery",
            )
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
            every(settings.delivery.poll_seconds, "commit", commit, "delivery")
        # A tick that is skipped because the one before still runs is nothing to tell.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        _reopen(database, settings)
        with _announced(database, "deliver", "", stop):
            scheduler.start()
            _log.info("delivering", destinations=[each.name for each in settings.destinations])
            stop.wait()
            scheduler.pause()
            if not _finished(scheduler):
                # A peer that does not answer holds a thread that Python would wait for at exit. What it was sent
                # stays leased in the outbox and is taken up again, under the same UID.
                # Nor is the database asked for anything: it may be what does not answer.
                _log.warning("left a delivery in progress: it will be repeated")
                sys.stderr.flush()
                os._exit(0)


ROLES: dict[str, Callable[[Settings, Signals], None]] = {
    "listen": listen,
    "web": web,
    "work": work,
    "deliver": deliver,
}


def run_role(role: str, settings: Settings) -> None:
    """Run one role in this process until SIGTERM or SIGINT."""
    stop = _heed_signals()
    if (supervisor := os.environ.get(_SUPERVISOR)) is not None:
        # A supervisor that was killed takes its children with it; nobody else would.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(supervisor):
            return
    ROLES[role](settings, stop)


def serve(settings: Settings) -> None:
    """Run every role as a supervised child process until SIGTERM or SIGINT; return once all have ended.

    SIGHUP is passed on to the listener. Raises AlreadyRunning when another `serve` works on the same store.
    """
    stop = _heed_signals()
    database = Database(settings.database.url)
    # Before anything is written: the folder may be one under which the volume is not mounted.
    database.require_sound()
    with only_one(settings.store.directory):
        database.upgrade(create=False)
        open_volume(database, settings.store.directory)
        roles = ["listen", *["web"] * settings.web.enabled, "deliver", *["work"] * settings.worker.concurrency]
        children = [_Child(role) for role in roles]
        ready = False
        stop.hung_up = children[0].hang_up
        try:
            while not stop.wait(0.2):
                for child in children:
                    child.keep_running(settings.file)
                if not ready and _all_announced(database, children):
                    ready = True
                    notify("READY=1")
                    _log.info("ready")
        finally:
            notify("STOPPING=1")
            _end(children)
            database.close()


def notify(state: str) -> None:
    """Tell systemd about our state, where it listens (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())


def store_of(settings: Settings, database: Database) -> InstanceStore:
    """Return the store that this database is the index of. Raises VolumeGone when it is not there."""
    return InstanceStore(
        settings.store.directory,
        minimum_free_bytes=settings.store.minimum_free_bytes,
        volume=open_volume(database, settings.store.directory),
    )


def receiver_of(settings: Settings, database: Database, store: InstanceStore, quota: Quota | None = None) -> Receiver:
    """Return the receiver that these settings describe."""
    return Receiver(
        database,
        store,
        quiet_seconds=settings.shortest_quiet_seconds,
        keywords=sorted(settings.keywords),
        quota=quota,
    )


def _is_ready(volume: Volume, staging: Staging) -> bool:
    """Return whether the volume is there; what was open on it is let go while it is not, and opened again after."""
    before = volume.returned
    if not volume.is_there:
        staging.release()
        return False
    if volume.returned != before:
        staging.reopen()
    return True


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


def _retry(settings: Settings) -> Retry:
    return Retry(
        first_seconds=settings.delivery.backoff_seconds,
        longest_seconds=settings.delivery.maximum_backoff_seconds,
        lease_seconds=settings.delivery.lease_seconds,
    )


def remote_of(settings: Settings, destination: DestinationSettings | PeerSettings) -> RemoteEntity:
    """Return the remote AE that a destination or peer names, and how we call it."""
    return RemoteEntity(
        ae_title=destination.ae_title,
        host=destination.host,
        port=destination.port,
        calling_ae_title=settings.delivery.ae_title,
        connection_timeout_seconds=settings.delivery.connection_timeout_seconds,
        association_timeout_seconds=settings.delivery.association_timeout_seconds,
        response_timeout_seconds=settings.delivery.dimse_timeout_seconds,
        tls=_tls_to(settings, destination),
    )


def _tls_to(settings: Settings, destination: DestinationSettings | PeerSettings) -> ClientTls | None:
    if not destination.tls:
        return None
    # A file of its own says who this peer is; one CA for all says only that it is somebody, so that names count.
    return ClientTls(
        identity=_identity(settings), trusted=Path(destination.ca or settings.tls.ca), check_name=not destination.ca
    )


def _identity(settings: Settings) -> Identity | None:
    tls = settings.tls
    return Identity(certificate=Path(tls.certificate), key=Path(tls.key)) if tls.certificate else None


@dataclass
class _Child:
    """A role in a process of its own, started again after ever longer pauses when it ends unasked."""

    role: str
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started_at: float = 0.0
    start_after: float = field(default=0.0)

    def hang_up(self) -> None:
        """Pass SIGHUP on."""
        process = self.process
        if process is not None:
            process.send_signal(signal.SIGHUP)

    def keep_running(self, config: Path | None) -> None:
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            code = self.process.returncode
            self.failures = 1 if now - self.started_at > 60 else self.failures + 1
            self.start_after = now + min(2 ** (self.failures - 1), 30)
            self.process = None
            _log.error("a role ended unasked", role=self.role, code=code, again_in=round(self.start_after - now))
        if self.process is None and now >= self.start_after:
            arguments = [sys.executable, "-m", "meddaemon", self.role]
            if config is not None:
                arguments += ["--config", str(config)]
            self.started_at = now
            self.process = subprocess.Popen(arguments, env={**os.environ, _SUPERVISOR: str(os.getpid())})


def _end(children: list[_Child]) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + KILL_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("a role did not end in time and was killed", pid=process.pid)
            process.kill()
            process.wait()


def _all_announced(database: Database, children: list[_Child]) -> bool:
    with database.read() as connection:
        announced = {process.pid for process in processes.listing(connection)}
    return all(child.process is not None and child.process.pid in announced for child in children)


@contextmanager
def only_one(store: Path) -> Iterator[None]:
    """Keep every other `serve` from this store. Raises AlreadyRunning."""
    store.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (store / "serve.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise AlreadyRunning(f"another `meddaemon serve` works on {store}") from held
        yield


@contextmanager
def _database(settings: Settings, *, check: bool = False) -> Iterator[Database]:
    database = Database(settings.database.url)
    try:
        if check:
            database.require_sound()
        database.require_schema()
        yield database
    finally:
        database.close()


@contextmanager
def _announced(database: Database, role: str, address: str, stop: threading.Event) -> Iterator[None]:
    """Say that this process is there, again and again until the end; then that it has gone."""
    name = _name(role)
    with database.write() as connection:
        processes.announce(
            connection, name=name, role=role, pid=os.getpid(), host=socket.gethostname(), address=address
        )

    def say() -> None:
        while not stop.wait(SIGN_OF_LIFE_SECONDS):
            _guarded("sign of life", lambda: _seen(database, name))()

    teller = threading.Thread(target=say, name="sign-of-life", daemon=True)
    teller.start()
    try:
        yield
    finally:
        try:
            with database.write() as connection:
                processes.withdraw(connection, name, os.getpid())
        except DatabaseUnavailable as failure:
            # Its silence will say the same.
            _log.warning("cannot sign off", reason=type(failure).__name__)


def _seen(database: Database, name: str) -> None:
    with database.write() as connection:
        processes.seen(connection, name)


def _expire(database: Database) -> None:
    with database.write() as connection:
        expired = jobs.expire(connection)
    if expired:
        _log.warning("took back jobs whose worker went silent", jobs=expired)


def _forget(database: Database) -> None:
    with database.write() as connection:
        announcements.forget(connection)


def _inquire(database: Database, settings: Settings, peer: PeerSettings, stop: threading.Event) -> None:
    while not stop.is_set() and pipeline.inquire(database, remote_of(settings, peer)):
        pass


def _reopen(database: Database, settings: Settings) -> None:
    """Have the rules asked again where work waits for a version of a model that is not there any more."""
    with database.write() as connection:
        reopened = studies.reopen_for_changed_models(
            connection, {name: contract.digest for name, contract in settings.contracts.items()}
        )
    if reopened:
        _log.warning("models changed: the rules are asked again", studies=reopened)


def _drain(database: Database, settings: Settings, destination: DestinationSettings, stop: threading.Event) -> None:
    remote, retry = remote_of(settings, destination), _retry(settings)
    while not stop.is_set() and deliver_to(database, settings.store.results, destination.name, remote, retry, stop):
        pass


def _guarded(name: str, task: Callable[[], object]) -> Callable[[], None]:
    """Let a timed task survive a database that is away for a while; anything else is a defect and is told as one."""

    def run() -> None:
        try:
            task()
        except DatabaseUnavailable as failure:
            _log.error("the database is out of reach", task=name, reason=type(failure).__name__)
        except MeddaemonError as failure:
            _log.error("a timed task failed", task=name, reason=str(failure))

    return run


def _finished(scheduler: BackgroundScheduler) -> bool:
    """Wait for the tasks in hand, for a while; return whether all have ended."""
    done = threading.Thread(target=scheduler.shutdown, name="shutdown", daemon=True)
    done.start()
    done.join(DRAIN_SECONDS)
    return not done.is_alive()


def _listener_settings(settings: Settings) -> ListenerSettings:
    listener = settings.listener
    return ListenerSettings(
        ae_title=listener.ae_title,
        host=listener.host,
        port=listener.port,
        maximum_associations=listener.maximum_associations,
        maximum_pdu_bytes=listener.maximum_pdu,
        idle_timeout_seconds=listener.idle_timeout_seconds,
        association_timeout_seconds=listener.association_timeout_seconds,
        message_timeout_seconds=listener.idle_timeout_seconds,
        everyone=listener.accept == "everyone",
        callers=tuple(
            Caller(ae_title=peer.ae_title, addresses=peer.addresses, called_ae_titles=peer.called_ae_titles)
            for peer in settings.peers
        ),
        called_ae_titles=listener.ae_titles,
        plain="plain" in listener.transports,
        tls=_listener_tls(settings),
    )


def _stow_settings(web: WebSettings) -> StowSettings:
    return StowSettings(
        called_ae_title=web.ae_title,
        maximum_uploads=web.maximum_uploads,
        maximum_object_bytes=web.maximum_object_bytes,
        maximum_request_bytes=web.maximum_request_bytes,
        idle_seconds=web.idle_timeout_seconds,
    )


def _web_server_settings(web: WebSettings) -> WebServerSettings:
    return WebServerSettings(
        host=web.host,
        port=web.port,
        maximum_connections=web.maximum_connections,
        request_seconds=web.request_timeout_seconds,
        drain_seconds=DRAIN_SECONDS,
        certificate=web.certificate,
        private_key=web.private_key,
    )


def _allow_descriptors() -> None:
    """Let the reception hold as many half-open connections as it may: shells and services begin with 1024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _give_memory_back() -> None:
    """Keep the C library from holding on to what big objects took, once for each thread that ever took one.

    By default each of many heaps grows to the largest object that it ever held; after a storm of big ones the process
    is hundreds of megabytes larger for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in MALLOC.items():
            mallopt(option, value)


def _listener_tls(settings: Settings) -> TlsSettings | None:
    identity = _identity(settings)
    if "tls" not in settings.listener.transports or identity is None:
        return None
    return TlsSettings(
        port=settings.listener.tls_port,
        identity=identity,
        trusted=Path(settings.tls.ca) if settings.tls.ca else None,
        own={peer.ae_title: Path(peer.ca) for peer in settings.peers if peer.ca},
        required=settings.tls.client_certificates == "required",
    )


def _address_of(listener: Listener) -> str:
    """Return where it listens: `host:port`, `TLS host:port`, or both, the plain one last."""
    plain = "{}:{}".format(*listener.address)
    tls = "TLS {}:{}".format(*listener.tls_address) if listener.tls_address else ""
    if listener.tls_address == listener.address:
        return tls
    return f"{tls}, {plain}" if tls else plain


def _reload(listener: Listener) -> None:
    try:
        listener.reload()
    except TlsUnusable as failure:
        _log.error("certificates not read anew: those in use stay", reason=str(failure))
    else:
        _log.info("certificates read anew", expires_at=listener.tls_expires_at)


def _until_warned(listener: Listener) -> float | None:
    """Say how long our certificate lasts, in its last days; return the seconds until that is to be said again."""
    expires_at = listener.tls_expires_at
    if expires_at is None:
        return None
    left = (expires_at - datetime.now(UTC)).total_seconds()
    if left <= 0:
        _log.error("our certificate has expired: nobody should accept it any more", expires_at=expires_at)
    elif left <= EXPIRY_WARNING_DAYS * _DAY_SECONDS:
        _log.warning("our certificate expires soon", days=int(left // _DAY_SECONDS), expires_at=expires_at)
    return _DAY_SECONDS


def _heed_signals() -> Signals:
    """Return what SIGTERM, SIGINT and SIGHUP speak to.

    Not set by the handler itself: that runs in the middle of whatever the main thread does, which may be holding
    the event's own lock. The signal's number goes through a pipe to a thread that may wait for it.
    """
    stop = Signals()
    told, teller = os.pipe()
    os.set_blocking(teller, False)
    signal.set_wakeup_fd(teller)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        while os.read(told, 1) == bytes([signal.SIGHUP]):
            # Whatever becomes of that, the next signal is heard.
            threading.Thread(target=stop.hung_up, name="hangup", daemon=True).start()
        stop.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not done() and time.monotonic() < deadline:
        pause.wait(0.05)


def _name(role: str) -> str:
    return f"{role}@{socket.gethostname()}:{os.getpid()}"
