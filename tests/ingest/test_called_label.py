"""AE titles of ours that mean something: rules ask for their labels, and `explain` shows what was seen."""

from pathlib import Path

import pytest

from meddaemon import pipeline
from meddaemon.db import tables
from meddaemon.ingest.part10 import read_part10
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.store import InstanceStore
from meddaemon.roles.process import receiver_of
from tests.running import Home
from tests.system.site import head, make_site


def make_home(folder: Path) -> Home:
    home = make_site(folder, {})
    config = home.config.read_text() + 'study = { attribute = "called_label", equals = "research" }\n'
    config = config.replace("port = 0", 'port = 0\nlabels = { RESEARCH = "research", URGENT = "urgent" }')
    home.config.write_text(config.replace("quiet_seconds = 0.5", "quiet_seconds = 0"))
    return home


def receive(home: Home, files: list[Path], *called: str) -> None:
    """Take the files as if they had been sent to these AE titles of ours, in turn."""
    with home.database() as database:
        store = InstanceStore(home.settings.store.directory, minimum_free_bytes=0)
        receiver = receiver_of(home.settings, database, store)
        for number, path in enumerate(files):
            one = read_part10(path, calling_ae_title="CT1")
            fields = {name: getattr(one, name) for name in one.__dataclass_fields__}
            receiver.take(Incoming(**(fields | {"called_ae_title": called[number % len(called)]})))
        store.close()
        assert pipeline.admit(database, home.settings) == 1


@pytest.mark.parametrize(
    ("called", "jobs", "explained"),
    [
        (("RESEARCH",), 1, "yes: called_label equals 'research'; saw research"),
        (("URGENT",), 0, "no: called_label equals 'research'; saw urgent"),
        (("MEDDAEMON",), 0, "no: called_label equals 'research'; saw (absent)"),
        (("RESEARCH", "MEDDAEMON"), 0, "no: called_label equals 'research'; saw research, (absent)"),
    ],
)
def test_a_rule_asks_for_the_label(tmp_path: Path, called: tuple[str, ...], jobs: int, explained: str) -> None:
    home = make_home(tmp_path / "home")
    receive(home, head(tmp_path / "series", planes=4), *called)
    assert len(home.rows(tables.job)) == jobs
    assert explained in home.cli("explain", "1").stdout
