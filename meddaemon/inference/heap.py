"""Memory that a model process keeps between the layers of a network, rather than ask the kernel for it each time.

The C library gives large blocks back as soon as they are free, and gets them again as empty pages, one fault for each
4 KiB: a good part of every forward pass on a CPU. Numbers are the same either way. Only glibc is told; elsewhere
nothing changes.
"""

import ctypes
import os
from pathlib import Path

KEPT_BYTES = 2**31
"""What a process may hold between two runs beyond what it held when it was loaded; a run holds what it needs."""
_LARGEST_KEPT = 2**28
"""Blocks of more than this, such as the stitched output of many classes, go back at once: they leave no holes."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _USUAL = -1, 2**17


def keep_freed_memory() -> bool:
    """Have freed blocks stay with this process from now on; return whether its C library does that (mallopt(3))."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))


def spare_memory() -> None:
    """Have freed blocks go back at once again, and those that are free now: for runs that memory is scarce for."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL)
        libc.mallopt(_M_TRIM_THRESHOLD, _USUAL)
        libc.malloc_trim(0)


def give_back(beyond: int) -> None:
    """Give free memory back to the kernel if this process holds more than `beyond` bytes (malloc_trim(3))."""
    if resident_bytes() > beyond:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def resident_bytes() -> int:
    """Return how much memory this process has, what it shares with others included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
