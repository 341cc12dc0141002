"""`python -m meddaemon` is the `meddaemon` command."""

from meddaemon.cli import main

main()
