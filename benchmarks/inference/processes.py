"""Contestants in processes of their own, with what their trees of processes use."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

Answer = dict[str, object]
TICKS = os.sysconf("SC_CLK_TCK")


class Contestant:
    """A process that stays, and is asked again and again."""

    def __init__(self, kind: str, contract: Path, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.inference.contestant", kind, str(contract)],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, dicom: Path, labels: Path) -> Answer:
        """Return what one study took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        before = _cpu(self._process.pid)
        self._process.stdin.write(f"{dicom} {labels}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            return {"failed": f"ended with {self._process.wait()}"}
        answer: Answer = json.loads(line)
        return {**answer, "cpu": _cpu(self._process.pid) - before, "peak_mb": _peak_mb(self._process.pid)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def _tree(pid: int) -> Iterator[Path]:
    yield Path(f"/proc/{pid}")
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _tree(int(child))


def _cpu(pid: int) -> float:
    """User and system time of a process, of those below it, and of those that it has waited for."""
    total = 0
    for process in _tree(pid):
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))
    return total / TICKS


def _peak_mb(pid: int) -> float:
    """The most that any one process of the tree held: what they share counts once."""
    lines = [line for process in _tree(pid) for line in (process / "status").read_text().splitlines()]
    return max(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
