"""Every fault of the catalogue has a test; what has none yet is named, so that nothing is forgotten."""

from catalogue import FAULTS, by_fault

NOT_YET = {
    # TLS.
    27,
    28,
    29,
    30,
    # Until objects go to the disk as they come; its test is there and is expected to fail.
    46,
    # Storage and database.
    *range(101, 125),
}
"""Faults without a test: exactly these."""


def test_every_fault_has_a_test_or_is_named_here() -> None:
    shown = by_fault()
    assert set(FAULTS) - set(shown) == NOT_YET
    assert set(shown) <= set(FAULTS), "a mark of a fault that the catalogue does not have"


def test_the_catalogue_is_whole() -> None:
    """Association, DIMSE, data set, identity and geometry (1-92), storage and database (101-124)."""
    assert list(FAULTS) == [*range(1, 93), *range(101, 125)]
