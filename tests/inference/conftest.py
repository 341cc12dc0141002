"""What tests of bundles share."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def own_code_of_one_bundle() -> Iterator[None]:
    """Every bundle calls its code `scripts`: what one brought is forgotten before the next."""
    path = list(sys.path)
    _forget()
    yield
    sys.path[:] = path
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
