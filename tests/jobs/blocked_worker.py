"""A worker in a process of its own, whose work waits for a file and then completes the job with a result."""

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from queue_samples import OneStage, finish, wait_until

from meddaemon.db.engine import Database
from meddaemon.db.jobs import Job
from meddaemon.jobs.worker import Worker, WorkerSettings

url, name, gate, lease_seconds = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
database = Database(url)


def process(job: Job) -> None:
    sys.stdout.write(f"{job.id} {job.attempt} {job.fence}\n")
    sys.stdout.flush()
    wait_until(gate.exists, seconds=120)
    with database.write() as connection:
        finish(connection, job)
    sys.stdout.write("completed\n")
    sys.stdout.flush()


settings = WorkerSettings(
    lease_seconds=lease_seconds,
    heartbeat_seconds=lease_seconds / 4,
    backoff_seconds=0,
    poll_seconds=0.1,
    drain_seconds=5,
)
Worker(database, name, settings, OneStage(process)).run(threading.Event())
