"""Every fault of the catalogue has a test; what has none yet is named, so that nothing is forgotten."""

from catalogue import FAULTS, by_fault

NOT_YET: set[int] = set()
"""Faults without a test: exactly these."""


def test_every_fault_has_a_test_or_is_named_here() -> None:
    shown = by_fault()
    assert set(FAULTS) - set(shown) == NOT_YET
    assert set(shown) <= set(FAULTS), "a mark of a fault that the catalogue does not have"


def test_the_catalogue_is_whole() -> None:
    """Association to pixels (1-100), storage, database (101-124), processes, queue (125-139), models (168-176)."""
    assert list(FAULTS) == [*range(1, 140), *range(168, 177)]
