"""A process that admits what is due, with the settings of a file, when it is told to; prints how many it looked at."""

import sys
from pathlib import Path

from meddaemon import pipeline
from meddaemon.config.settings import load
from meddaemon.db.engine import Database

settings = load(Path(sys.argv[1]), {})
database = Database(settings.database.url)
sys.stdout.write("ready\n")
sys.stdout.flush()
sys.stdin.readline()
sys.stdout.write(f"{pipeline.admit(database, settings)}\n")
