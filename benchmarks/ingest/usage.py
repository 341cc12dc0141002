"""What a tree of processes uses, from /proc: CPU time and peak resident memory; and what the whole machine does."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.02
_MEBIBYTE = 1024.0


def cpu_seconds(roots: Sequence[int]) -> float:
    """Return the CPU time that these processes and their descendants have used, those that have ended included."""
    ticks = 0
    for pid in _tree(roots):
        with suppress(OSError):
            # Behind the name, which may hold anything: utime, stime, and those of children waited for (proc(5)).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def machine_seconds() -> float:
    """Return the CPU time that everything on this machine has used since it started, interrupts included."""
    user, nice, system, _, _, hardware, software, stolen = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + hardware + software + stolen) / _TICKS


class PeakMemory:
    """Watches a tree while the block runs; `mebibytes` is then the largest sum of its processes' peaks.

    A sum of resident sizes: pages that forked processes share count once for each.
    """

    def __init__(self, roots: Sequence[int]) -> None:
        self.mebibytes = 0.0
        self._roots = roots
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        for pid in _tree(self._roots):
            with suppress(OSError):
                # Begin anew with the peak (proc(5), clear_refs); some kernels in containers do not let us.
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        self.mebibytes = max(self.mebibytes, sum(map(_peak_mebibytes, _tree(self._roots))))


def _peak_mebibytes(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / _MEBIBYTE
    return 0.0


def _tree(roots: Sequence[int]) -> Iterator[int]:
    """Yield the processes and their descendants, zombies included."""
    for pid in roots:
        yield pid
        children = []
        with suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):
                    children += Path(thread, "children").read_text().split()
        yield from _tree([int(child) for child in children])
