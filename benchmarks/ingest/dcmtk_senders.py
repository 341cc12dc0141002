"""DCMTK's senders, which are what many modalities and gateways are like."""

import os
import re
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .data_sets import Image
from .sender import Outcome


@dataclass(frozen=True, kw_only=True)
class FileSender:
    """A program that sends a folder of files through one association; `nagle`: Nagle's algorithm is left on."""

    name: str
    program: str
    nagle: bool
    success: re.Pattern[str]
    """What it says of instances that were answered with Success: with a group for their number, or once for each."""

    @property
    def missing(self) -> str:
        """Say why this sender cannot run here, if it cannot."""
        return "" if Path(self.program).exists() else f"{self.program} is not installed"

    def send(self, files: Path, images: Sequence[Image], port: int) -> Outcome:
        """Send the files that hold these images; the clock includes the start of the program."""
        burned, begun = _children_seconds(), time.monotonic()
        ended = subprocess.run(
            (self.program, "-v", "+sd", "127.0.0.1", str(port), str(files)),
            env={**os.environ, "TCP_NODELAY": "0" if self.nagle else "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - begun
        found = self.success.findall(ended.stdout + ended.stderr)
        successes = int(found[0]) if self.success.groups and found else len(found)
        whole = ended.returncode == 0 and successes == len(images)
        return Outcome(
            acknowledged=tuple(image.sop_instance_uid for image in images) if whole else (),
            bytes=sum(image.size for image in images) if whole else 0,
            begun=begun,
            ended=begun + seconds,
            cpu_seconds=_children_seconds() - burned,
            problem="" if whole else f"{self.name}: {successes} of {len(images)} taken, exit code {ended.returncode}",
        )


# By path: pynetdicom installs a program called storescu into the environment.
FILE_SENDERS = (
    FileSender(
        name="storescu, Nagle on",
        program="/usr/bin/storescu",
        nagle=True,
        success=re.compile(r"Received Store Response \(Success\)"),
    ),
    FileSender(
        name="dcmsend",
        program="/usr/bin/dcmsend",
        nagle=False,
        success=re.compile(r"with status SUCCESS\s*:\s*(\d+)"),
    ),
)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
