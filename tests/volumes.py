"""Real volumes for tests: mounted where the store lies, made full, read-only or taken away; skips where none may."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def run(*command: str | Path) -> None:
    """Run a command to its end; it must succeed."""
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)


@contextmanager
def mounted(at: Path, *how: str | Path) -> Iterator[None]:
    """Mount something in a folder until the block ends; skips the test where nobody may."""
    at.mkdir(parents=True, exist_ok=True)
    try:
        run("mount", *how, at)
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("no volume may be mounted here")
    try:
        yield
    finally:
        unmount(at)


def unmount(at: Path) -> None:
    """Take everything away that is mounted in a folder, although files on it are open."""
    while subprocess.run(["umount", "-l", str(at)], check=False, capture_output=True).returncode == 0:
        pass


@contextmanager
def in_memory(at: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory, as `size=8m` or `nr_inodes=60` say."""
    with mounted(at, "-t", "tmpfs", "-o", options, "meddaemon-test"):
        yield


def resize(at: Path, options: str) -> None:
    """Give a file system in memory other limits."""
    run("mount", "-o", f"remount,{options}", at)
