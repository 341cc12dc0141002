"""The command line: parse, call, print. Errors become exit codes here: 1 failed, 2 wrong configuration or usage."""

from meddaemon.cli.app import main

__all__ = ["main"]
