"""From a fresh checkout to the demo or the tests in one command: `python3 -m meddaemon.bootstrap demo|test [ARGS]`.

Needs nothing but Python: it makes `.venv` beside the checkout, installs the pinned dependencies into it and hands
over. When they are unchanged since the last time, it hands over at once. Standard library only, and in words that an
older Python understands, so that it can say that it is too old.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / "meddaemon-bootstrap.json"
CONSTRAINTS = ROOT / "config" / "constraints.txt"
OLDEST_PYTHON = (3, 11)

COVERED_BY = {"demo": ("demo", "test"), "test": ("test",)}
"""Which installed extras serve a command: the tests bring all that the demo needs."""

TORCH_NOTICE = """\
No NVIDIA GPU was found, so the CPU build of PyTorch is enough, but the package registry gives Linux the build that
brings CUDA libraries (several GB). To get the small one, stop here and name PyTorch's CPU index as an extra one:
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu python3 -m meddaemon.bootstrap ...
"""


def main(arguments: list[str]) -> int:
    """Install what the command needs and become it; return an exit status only when that is not possible."""
    if not arguments or arguments[0] not in COVERED_BY:
        _say("usage: python3 -m meddaemon.bootstrap demo|test [ARGS]")
        return 2
    command, *rest = arguments
    obstacle = obstacle_to(sys.version_info[:2], importlib.util.find_spec("ensurepip") is not None)
    if obstacle:
        _say(obstacle)
        return 1
    if not installed(command):
        status = _install(command)
        if status:
            _say("pip could not install the dependencies (see above); nothing else was changed.")
            return status
    return _become(command_line(command, rest))


def obstacle_to(version: tuple[int, ...], has_ensurepip: bool) -> str | None:
    """Return why this Python cannot be used and what to do, or None."""
    if version < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        return f"meddaemon needs Python {needed} or later; this is {'.'.join(map(str, version))} ({sys.executable})."
    if not has_ensurepip and not _python().exists():
        return "This Python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"
    return None


def command_line(command: str, rest: list[str]) -> list[str]:
    """Return what is run in the end."""
    if command == "test":
        return [str(ROOT / "scripts" / "check"), *rest]
    return [str(ENVIRONMENT / "bin" / "meddaemon"), "demo", *rest]


def installed(command: str) -> bool:
    """Return whether the environment holds what the command needs, as it is pinned now."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return _python().exists() and stamp.get("digest") == digest() and stamp.get("extra") in COVERED_BY[command]


def digest() -> str:
    """Return a digest of everything that decides what gets installed, and of where: an editable install has a path."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), CONSTRAINTS.read_bytes(), str(ROOT).encode(), sys.version.encode()]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _install(command: str) -> int:
    started = time.monotonic()
    if not _python().exists():
        _say(f"Making {ENVIRONMENT}")
        made = subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=False)
        if made.returncode:
            return made.returncode
    STAMP.unlink(missing_ok=True)
    if shutil.which("nvidia-smi") is None and not _has_torch():
        _say(TORCH_NOTICE)
    _say(f"Installing meddaemon[{command}] and its dependencies; the first time takes a minute or more ...")
    pip = [str(_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*pip, "-c", str(CONSTRAINTS), "-e", f"{ROOT}[{command}]"], check=False, cwd=ROOT)
    if done.returncode:
        return done.returncode
    STAMP.write_text(json.dumps({"digest": digest(), "extra": command}))
    _say(f"Installed in {time.monotonic() - started:.0f} s.")
    return 0


def _python() -> Path:
    return ENVIRONMENT / "bin" / "python"


def _has_torch() -> bool:
    return any(ENVIRONMENT.glob("lib/python*/site-packages/torch"))


def _become(target: list[str]) -> NoReturn:
    sys.stdout.flush()
    os.chdir(ROOT)
    os.execve(target[0], target, _environment())  # noqa: S606 - the shell-less way is what is wanted


def _environment() -> dict[str, str]:
    """Return the environment of the command: ours, with the tools of the virtual environment found first."""
    path = os.pathsep.join([str(ENVIRONMENT / "bin"), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "VIRTUAL_ENV": str(ENVIRONMENT)}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
