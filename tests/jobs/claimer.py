"""A process that claims and completes jobs until none is left, and prints the id and fencing token of each."""

import sys

from meddaemon.db import jobs
from meddaemon.db.engine import Database

database = Database(sys.argv[1])
sys.stdout.write("ready\n")
sys.stdout.flush()
sys.stdin.readline()
while True:
    with database.write() as connection:
        job = jobs.claim(connection, worker=sys.argv[2], lease_seconds=60)
    if job is None:
        break
    with database.write() as connection:
        jobs.complete(connection, job)
    sys.stdout.write(f"{job.id} {job.fence}\n")
