"""A store that may only be read: whoever starts or asks is told which, and what may be the reason."""

from pathlib import Path

from tests.running import Home
from tests.volumes import in_memory, resize


def test_a_store_that_may_only_be_read_is_named(tmp_path: Path) -> None:
    with in_memory(tmp_path / "store", "size=32m"):
        home = Home.make(tmp_path)
        resize(tmp_path / "store", "ro")
        told = home.cli("serve")
        assert told.returncode == 1
        assert f"may not write to {home.store}, where the database is: is it mounted read-only" in told.stderr
        found = home.cli("doctor", "--no-network").stdout
        assert f"BAD store: user 0 may not write to {home.store}" in found
        assert f"may not write to {home.store}, where the database is" in found
