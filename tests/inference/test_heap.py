"""Freed memory stays with a model process, within limits. Each in a process of its own: there is no way back."""

import subprocess
import sys

import pytest

pytest.importorskip("numpy")

BLOCKS = """
import resource, sys
import numpy as np
from meddaemon.inference import heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def layers(count):
    before = faults()
    for _ in range(count):
        np.full(40_000_000, 1, np.uint8)
    return faults() - before
"""


def said(code: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", BLOCKS + code], check=True, capture_output=True, text=True, timeout=60)
    return [int(each) for each in done.stdout.split()]


def test_blocks_are_had_again_without_a_page_fault_for_each_page() -> None:
    code = """
layers(1)
before = layers(10)
kept = heap.keep_freed_memory()
layers(1)
print(int(kept), before, layers(10))
"""
    kept, before, after = said(code)
    if not kept:
        pytest.skip("another C library than glibc")
    # Fewer where the kernel has huge pages at hand.
    assert before > 100
    assert after < before / 20


def test_what_is_free_is_given_back_beyond_a_limit_only() -> None:
    code = """
print(int(heap.keep_freed_memory()))
rested = heap.resident_bytes()
blocks = [np.full(1_000_000, 1, np.uint8) for _ in range(200)]
del blocks
print(heap.resident_bytes() - rested)
heap.give_back(rested + 2**30)
print(heap.resident_bytes() - rested)
heap.give_back(rested + 2**20)
print(heap.resident_bytes() - rested)
"""
    kept, *held = said(code)
    if not kept:
        pytest.skip("another C library than glibc")
    assert held[0] > 150_000_000
    assert held[1] > 150_000_000
    assert held[2] < 50_000_000


def test_where_memory_is_scarce_nothing_is_kept() -> None:
    code = """
print(int(heap.keep_freed_memory()))
rested = heap.resident_bytes()
blocks = [np.full(1_000_000, 1, np.uint8) for _ in range(200)]
del blocks
heap.spare_memory()
print(heap.resident_bytes() - rested)
"""
    kept, held = said(code)
    if not kept:
        pytest.skip("another C library than glibc")
    assert held < 50_000_000


def test_the_largest_blocks_leave_at_once() -> None:
    code = """
heap.keep_freed_memory()
rested = heap.resident_bytes()
large = np.full(600_000_000, 1, np.uint8)
del large
print(heap.resident_bytes() - rested)
"""
    assert said(code)[0] < 100_000_000
