"""The listener that the tests of faults share, and break if they can."""

from collections.abc import Iterator

import pytest
from running import Home
from watched import Watched


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    home = Home.make(tmp_path_factory.mktemp("faults"))
    with home.running("listen") as role:
        yield Watched(home, role, role.port())
