"""The demo itself: starts the daemon, sends the series, shows what happens, and leaves nothing running."""

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pydicom import dcmread

from meddaemon.config.settings import load
from meddaemon.db import deliveries, jobs, results, studies
from meddaemon.db.engine import Database
from meddaemon.demo.anatomy import head_volume
from meddaemon.demo.picture import draw
from meddaemon.demo.scanner import scan
from meddaemon.demo.stage import DemoFailed, Pacs, poll, running_daemon, send
from meddaemon.domain.result import ResultStatus
from meddaemon.domain.states import DELIVERY_TAKEN, DeliveryState, JobState, StudyState
from meddaemon.results.dimse import RemoteEntity

MARKER = ".meddaemon-demo"
"""Marks a folder that a demo made, so that the next one may clear it."""
RUN_SECONDS = 600.0

SETTINGS = """\
# Written by `meddaemon demo`: the least that a working installation needs.
[store]
directory = "data"
minimum_free_bytes = 100_000_000

[listener]
port = 0            # any free port of the loopback interface

[completeness]
quiet_seconds = 2   # a scanner wants 30 or more

[worker]
sandbox = "preferred"   # models run confined as far as this kernel can; yours should be "required"

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
        pacs = stack.enter_context(Pacs(folder / "pacs").listening())
        file = folder / "meddaemon.toml"
        file.write_text(SETTINGS.format(pacs_port=pacs.address[1]))
        settings = load(file, {})
        say("2/5 starting meddaemon: listener, worker, scheduler and delivery")
        running = stack.enter_context(running_daemon(settings, folder))
        title = settings.listener.ae_title
        say(f"3/5 sending the series by C-STORE to {title} at {running.host}:{running.port}")
        sending = time.monotonic()
        send(series, RemoteEntity(ae_title=title, host=running.host, port=running.port, calling_ae_title="DEMO_MR"))
        say(f"    every image acknowledged in {time.monotonic() - sending:.1f} s")
        say("4/5 the daemon at work")
        result = _watch(running.database, say, sending)
        say("5/5 the finding, the objects in the PACS, and a picture")
        _show(folder, series, result, say)
    say(f"done in {time.monotonic() - begun:.0f} s; nothing is left running")


def _clear(folder: Path) -> None:
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise DemoFailed(f"{folder} is not a folder that an earlier demo made: name another with --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


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
            for row in found:
                if row.status is not ResultStatus.PLAUSIBLE:
                    raise DemoFailed(f"the result is {row.status.value} and was not sent: {row.reason}")
        delivered = bool(sent) and all(delivery.state in DELIVERY_TAKEN for delivery in sent)
        return found[0] if found and delivered else None

    return poll(look, RUN_SECONDS, "the result")


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
