"""A worker in a process of its own that tells its stages; its inference waits for a file."""

import os
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from queue_samples import finish, wait_until

from meddaemon.db.engine import Database
from meddaemon.db.jobs import Job
from meddaemon.jobs.worker import Worker, WorkerSettings

url, name, folder, lease_seconds = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
database = Database(url)


def tell(said: str) -> None:
    """Say what begins now; what the file `poison` names is the end of this process."""
    sys.stdout.write(f"{said}\n")
    sys.stdout.flush()
    poison = folder / "poison"
    if poison.exists() and poison.read_text() == said:
        os.kill(os.getpid(), signal.SIGKILL)


class Told:
    """Stages that say when each begins."""

    def prepare(self, job: Job) -> None:
        tell(f"prepare {job.id}")

    def infer(self, job: Job, prepared: None) -> None:
        tell(f"infer {job.id}")
        wait_until((folder / "go").exists, seconds=120)

    def discard(self, prepared: None) -> None:
        """Nothing is held."""

    def publish(self, job: Job, inferred: None) -> None:
        with database.write() as connection:
            finish(connection, job)
            tell(f"publish {job.id}")
        tell(f"published {job.id}")

    def interrupt(self) -> None:
        """Nothing can be interrupted."""


settings = WorkerSettings(
    lease_seconds=lease_seconds,
    heartbeat_seconds=lease_seconds / 4,
    backoff_seconds=0,
    poll_seconds=0.1,
    drain_seconds=5,
)
Worker(database, name, settings, Told()).run(threading.Event())
