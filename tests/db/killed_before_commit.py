"""A worker that is killed when its result is written and not yet committed."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from queue_samples import OVER, claim, finish

from meddaemon.db.engine import Database

database = Database(sys.argv[1])
job = claim(database, lease_seconds=OVER)
with database.write() as connection:
    finish(connection, job)
    sys.stdout.write("written\n")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
