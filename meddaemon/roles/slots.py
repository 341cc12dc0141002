"""Where workers run: one process for each slot of a GPU or, without one, of the CPU; and what memory each may have."""

import os
from collections.abc import Mapping
from pathlib import Path

from meddaemon.config.settings import WorkerSettings

GPUS = "CUDA_VISIBLE_DEVICES"
MEMORY = "MEDDAEMON_WORKER__MEMORY_BYTES"
PART_OF_MEMORY = 0.8
"""What models may have of the memory that there is; the rest is for those who receive, encode and deliver."""


def worker_environments(settings: WorkerSettings, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Return for each worker process on this machine what its environment has beyond ours."""
    places = _places(settings, environ) * settings.concurrency
    share = settings.memory_bytes or memory_share(len(places))
    return [{**place, MEMORY: str(share)} for place in places]


def memory_share(workers: int) -> int:
    """Return how many bytes the models of one worker may have, among so many on this machine."""
    return int(PART_OF_MEMORY * memory_bytes() / workers)


def memory_bytes() -> int:
    """Return how much memory there is: the machine's, or what our control group may have (cgroups(7), version 2)."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return there
    own = next((line.removeprefix("0::") for line in groups if line.startswith("0::")), "/")
    root = Path("/sys/fs/cgroup")
    folder = root / own.lstrip("/")
    for each in (folder, *folder.parents):
        limit = each / "memory.max"
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            there = min(there, int(text))
    return there


def _places(settings: WorkerSettings, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Return a worker's environment for each GPU; without any, one that leaves it to torch what it finds."""
    if settings.gpus != ("all",):
        return [{GPUS: name} for name in settings.gpus] or [{GPUS: ""}]
    if GPUS in environ:
        named = [name for name in environ[GPUS].split(",") if name.strip()]
        return [{GPUS: name.strip()} for name in named] or [{GPUS: ""}]
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*"))
    return [{GPUS: str(number)} for number in range(len(found))] or [{}]
