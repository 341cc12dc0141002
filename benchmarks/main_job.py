"""The main job hop by hop: one daemon, one series sent several times as different studies, the clock beside it."""

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from pydicom import dcmread

from meddaemon.config.settings import load
from meddaemon.db import deliveries, jobs, processes, results, studies
from meddaemon.demo.anatomy import head_volume
from meddaemon.demo.run import SETTINGS
from meddaemon.demo.scanner import scan
from meddaemon.demo.stage import Daemon, Pacs, poll, running_daemon, send
from meddaemon.domain.states import DeliveryState, JobState, StudyState
from meddaemon.domain.uids import derived_uid
from meddaemon.results.dimse import RemoteEntity

HOPS = ("received", "complete", "claimed", "completed", "delivered")


def another_study(series: list[Path], folder: Path, run: int) -> list[Path]:
    """Copy a series under other UIDs, so that it is new work."""
    folder.mkdir()
    for path in series:
        header = dcmread(path)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(header, keyword, derived_uid(str(header[keyword].value), str(run)))
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.save_as(folder / path.name, enforce_file_format=True)
    return sorted(folder.iterdir())


def one_run(daemon: Daemon, files: list[Path]) -> tuple[dict[str, float], dict[str, float]]:
    """Send one study; return seconds since the first C-STORE at which each hop was over, and the worker's own steps."""
    with daemon.database.read() as connection:
        before = len(studies.summaries(connection, limit=100))
    started = time.monotonic()
    send(files, RemoteEntity(ae_title="MEDDAEMON", host=daemon.host, port=daemon.port, calling_ae_title="BENCH"))
    at = {"received": time.monotonic() - started}

    def look() -> dict[str, float] | None:
        now = time.monotonic() - started
        with daemon.database.read() as connection:
            rows = studies.summaries(connection, limit=100)
            if len(rows) <= before:
                return None
            study = rows[0]
            (job,) = jobs.listing(connection, study_id=study.id) or (None,)
            heads = results.heads(connection, study_id=study.id)
            sent = deliveries.listing(connection, result_ids=[head.id for head in heads])
        if study.state is StudyState.COMPLETE:
            at.setdefault("complete", now)
        if job is not None and job.state in {JobState.DISCARDED, JobState.CANCELLED}:
            raise SystemExit(f"the job was {job.state}: {job.reason}")
        if job is not None and job.attempt:
            at.setdefault("claimed", now)
        if heads:
            at.setdefault("completed", now)
        if sent and all(each.state is DeliveryState.SENT for each in sent):
            at.setdefault("delivered", now)
            return dict(heads[0].seconds)
        return None

    steps = poll(look, 600, "the delivered SR")
    return at, steps


def peak_megabytes(pid: int) -> float:
    """Return the largest resident size that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("series", type=Path, nargs="?", help="a folder with one T1-weighted head MR series")
    arguments.add_argument("--runs", type=int, default=4)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="meddaemon-bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        series = sorted(given.series.iterdir()) if given.series else scan(head_volume(), folder / "scanner")
        pacs = stack.enter_context(Pacs(folder / "pacs").listening())
        file = folder / "meddaemon.toml"
        file.write_text(SETTINGS.format(pacs_port=pacs.address[1]))
        daemon = stack.enter_context(running_daemon(load(file, {}), folder))
        runs = [
            one_run(daemon, another_study(series, folder / f"study{run}", run)) for run in range(max(given.runs, 2))
        ]
        print(f"{len(series)} images; quiet time 2 s; seconds since the first C-STORE at which each hop was over")
        print(f"{'hop':12}{'cold':>8}{'warm':>8}{'(warm min–max)':>18}")
        for hop in HOPS:
            warm = [at[hop] for at, _ in runs[1:]]
            spread = f"{min(warm):.2f}–{max(warm):.2f}"
            print(f"{hop:12}{runs[0][0][hop]:8.2f}{statistics.median(warm):8.2f}{spread:>18}")
        print("\nthe worker's own steps, seconds")
        for step in dict.fromkeys(step for _, steps in runs for step in steps):
            warm = [steps.get(step, 0.0) for _, steps in runs[1:]]
            print(f"{step:12}{runs[0][1].get(step, 0.0):8.2f}{statistics.median(warm):8.2f}")
        print("\npeak memory, MB")
        with daemon.database.read() as connection:
            running = processes.listing(connection)
        print(f"{'serve':12}{peak_megabytes(daemon.pid):8.0f}")
        for process in running:
            print(f"{process.role:12}{peak_megabytes(process.pid):8.0f}")
            if process.role == "work":
                for child in children(process.pid):
                    print(f"{'  model':12}{peak_megabytes(child):8.0f}")


if __name__ == "__main__":
    sys.exit(main())
