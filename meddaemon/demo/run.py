"""The demo itself: starts the daemon, sends the series, shows what happens, and leaves nothing running."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from pydicom import dcmread

from meddaemon.config.settings import Settings, load
from meddaemon.db import deliveries, jobs, processes, results, studies
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.demo.anatomy import head_volume
from meddaemon.demo.picture import draw
from meddaemon.demo.scanner import scan
from meddaemon.domain.errors import MeddaemonError
from meddaemon.domain.states import DeliveryState, JobState, StudyState
from meddaemon.durable import Staging, write_new
from meddaemon.ingest.part10 import read_part10
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.scp import Listener, ListenerSettings
from meddaemon.ingest.store import as_part10
from meddaemon.results.dimse import Outgoing, RemoteEntity, Verdict, store

MARKER = ".meddaemon-demo"
"""Marks a folder that a demo made, so that the next one may clear it."""
START_SECONDS, RUN_SECONDS, STOP_SECONDS = 60.0, 600.0, 20.0

SETTINGS = """\
# Written by `meddaemon demo`: the least that a working installation needs.
[store]
directory = "data"
minimum_free_bytes = 100_000_000

[listener]
port = 0            # any free port of the loopback interface

[completeness]
quiet_seconds = 2   # a scanner wants 30 or more

[logging]
format = "text"

[[destinations]]
name = "pacs"
ae_title = "DEMO_PACS"
host = "127.0.0.1"
port = {pacs_port}

[[rules]]
name = "brain volume of every T1-weighted head MR"
models = ["brain_volume"]
destinations = ["pacs"]
"""


T = TypeVar("T")


class DemoFailed(MeddaemonError):
    """The demo did not come to its end; the message says where it stopped."""


def run_demo(folder: Path, volume: Path | None, say: Callable[[str], None]) -> None:
    """Show the main job in `folder`, which is made anew; `say` prints one line.

    Raises DemoFailed, NoAnatomy, NotAHead, OSError.
    """
    begun = time.monotonic()
    _clear(folder)
    say("1/5 taking a T1-weighted average head" if volume is None else f"1/5 taking {volume.name}")
    series = scan(volume or head_volume(), folder / "scanner")
    say(f"    {len(series)} DICOM MR images in {folder / 'scanner'}")
    with ExitStack() as stack:
        pacs = stack.enter_context(_Pacs(folder / "pacs").listening())
        file = folder / "meddaemon.toml"
        file.write_text(SETTINGS.format(pacs_port=pacs.address[1]))
        settings = load(file, {})
        say("2/5 starting meddaemon: listener, worker, scheduler and delivery")
        database, address = stack.enter_context(_daemon(settings, folder))
        host, _, port = address.rpartition(":")
        say(f"3/5 sending the series by C-STORE to {settings.listener.ae_title} at {address}")
        sending = time.monotonic()
        _send(series, RemoteEntity(ae_title="MEDDAEMON", host=host, port=int(port), calling_ae_title="DEMO_MR"))
        say(f"    every image acknowledged in {time.monotonic() - sending:.1f} s")
        say("4/5 the daemon at work")
        result = _watch(database, say, sending)
        say("5/5 the finding, the objects in the PACS, and a picture")
        _show(folder, series, result, say)
    say(f"done in {time.monotonic() - begun:.0f} s; nothing is left running")


class _Pacs:
    """The demo's PACS: keeps every object that arrives as a file named by its kind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staging = Staging(folder / "incoming")

    def take(self, incoming: Incoming) -> None:
        """Keep one object."""
        content = as_part10(
            incoming.data,
            sop_class_uid=incoming.sop_class_uid,
            sop_instance_uid=incoming.sop_instance_uid,
            transfer_syntax_uid=incoming.transfer_syntax_uid,
        )
        write_new(self._folder / f"{incoming.sop_instance_uid}.dcm", content, self._staging)

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Serve on a port of the system's choice."""
        settings = ListenerSettings(
            ae_title="DEMO_PACS",
            host="127.0.0.1",
            port=0,
            maximum_associations=4,
            maximum_pdu_bytes=131_072,
            idle_timeout_seconds=60,
            association_timeout_seconds=30,
            message_timeout_seconds=60,
        )
        with Listener(settings, self.take) as listener:
            yield listener
        self._staging.close()


def _clear(folder: Path) -> None:
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise DemoFailed(f"{folder} is not a folder that an earlier demo made: name another with --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


@contextmanager
def _daemon(settings: Settings, folder: Path) -> Iterator[tuple[Database, str]]:
    """Run `meddaemon serve`; give its database and the address of its listener once every role is there."""
    with (folder / "daemon.log").open("wb") as logs:
        process = subprocess.Popen(
            [sys.executable, "-m", "meddaemon", "serve", "--config", str(settings.file)],
            stdout=logs,
            stderr=logs,
            stdin=subprocess.DEVNULL,
            env={key: value for key, value in os.environ.items() if not key.startswith("MEDDAEMON_")},
        )
        database = Database(settings.database.url)
        try:
            yield database, _poll(lambda: _address(database, process), START_SECONDS, "the daemon to start")
        finally:
            database.close()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(database: Database, process: subprocess.Popen[bytes]) -> str | None:
    if process.poll() is not None:
        raise DemoFailed(f"the daemon ended with exit code {process.returncode}; see daemon.log in the demo's folder")
    try:
        database.require_schema()
        with database.read() as connection:
            running = {each.role: each.address for each in processes.listing(connection)}
    except (MeddaemonError, DatabaseUnavailable):
        return None  # the daemon has not made its database yet
    return running["listen"] if {"listen", "work", "deliver"} <= set(running) else None


def _send(series: list[Path], remote: RemoteEntity) -> None:
    outgoing = [_outgoing(path) for path in series]
    for answer in store(remote, outgoing):
        if answer.verdict is not Verdict.TAKEN:
            raise DemoFailed(f"{answer.outgoing.path.name} was not taken: {answer.reason}")


def _outgoing(path: Path) -> Outgoing:
    incoming = read_part10(path)
    return Outgoing(
        path=path,
        sop_class_uid=incoming.sop_class_uid,
        sop_instance_uid=incoming.sop_instance_uid,
        transfer_syntax_uid=incoming.transfer_syntax_uid,
    )


def _watch(database: Database, say: Callable[[str], None], since: float) -> results.ResultRow:
    """Tell each step as it happens until everything is delivered; return the finding."""
    told: set[str] = set()

    def tell(what: str) -> None:
        if what not in told:
            told.add(what)
            say(f"    {time.monotonic() - since:5.1f} s  {what}")

    def look() -> results.ResultRow | None:
        with database.read() as connection:
            for study in studies.summaries(connection):
                tell(f"study received: {study.instances} images, waiting for the quiet time")
                if study.state is StudyState.COMPLETE:
                    tell("study complete, rules decided")
            for job in jobs.listing(connection):
                tell(f"job {job.id} ({job.model}): {job.state.value}")
                if job.state in {JobState.DISCARDED, JobState.CANCELLED}:
                    raise DemoFailed(f"job {job.id} was {job.state.value}: {job.reason}")
            sent = deliveries.listing(connection)
            for delivery in sent:
                tell(f"{delivery.kind} to {delivery.destination}: {delivery.state.value}")
                if delivery.state is DeliveryState.HELD:
                    raise DemoFailed(f"the {delivery.kind} was not taken: {delivery.reason}")
            found = results.query(connection)
        delivered = bool(sent) and all(delivery.state is DeliveryState.SENT for delivery in sent)
        return found[0] if found and delivered else None

    return _poll(look, RUN_SECONDS, "the result")


def _show(folder: Path, series: list[Path], result: results.ResultRow, say: Callable[[str], None]) -> None:
    finding = f"{result.finding}: {result.measurement} {result.value:.0f} {result.unit}"
    say(f"    {finding}  ({result.model} {result.model_version}, {result.status})")
    for path in sorted((folder / "pacs").glob("*.dcm")):
        header = dcmread(path, specific_tags=["Modality", "SeriesDescription"], stop_before_pixels=True)
        say(f"    {header.Modality:3}  {path}")
        if header.Modality == "SEG":
            draw(series, path, f"{finding} ({result.model} {result.model_version})", folder / "brain.png")
    say(f"    PNG  {folder / 'brain.png'}")
    command, config = Path(sys.executable).with_name("meddaemon"), folder / "meddaemon.toml"
    say(f"    ask the database: {command} results --config {config}")
    say(f"    ask why:          {command} explain 1 --config {config}")


def _poll(look: Callable[[], T | None], seconds: float, what: str) -> T:
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        pause.wait(0.1)
    raise DemoFailed(f"waited {seconds:.0f} s for {what} in vain; see daemon.log in the demo's folder")
