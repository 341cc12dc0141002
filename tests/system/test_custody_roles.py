"""Custody with real processes: a request outlives who made it, and its report comes to whoever is there."""

from pathlib import Path

from pydicom.uid import CTImageStorage

from meddaemon.db import tables
from meddaemon.db.engine import Database
from meddaemon.domain.states import DeliveryState
from tests.results.archive import Archive
from tests.results.test_delivery import OBJECTS, post_reports
from tests.running import Home, wait_until
from tests.system.test_commitment import ask

SITE = """
accept = "listed"

[delivery]
ae_title = "SENDER"
poll_seconds = 0.1

[custody]
association_seconds = 0

[[peers]]
ae_title = "PACS"
called_ae_titles = ["MEDDAEMON"]
host = "127.0.0.1"
port = {port}

[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
custody = "commitment"
"""


def site(folder: Path, port: int) -> Home:
    listener, rest = SITE.format(port=port).split("\n\n", 1)
    home = Home.make(folder, "\n" + rest)
    home.config.write_text(home.config.read_text().replace("[listener]", f"[listener]{listener}"))
    return home


def post(database: Database, home: Home) -> None:
    """Put a result into the outbox that no rule is to be asked about again."""
    post_reports(database, home.settings.store.results)
    with database.write() as connection:
        connection.execute(tables.study.update().values(due_at=None))


def states(home: Home) -> list[str]:
    return [row.state for row in home.rows(tables.delivery)]


def test_a_report_comes_after_restarts_of_everybody(tmp_path: Path) -> None:
    archive = Archive(report="never")
    with archive.listening() as to:
        home = site(tmp_path / "home", to.port)
        with home.database() as database:
            post(database, home)
        with home.running("deliver") as deliverer:
            wait_until(lambda: [row for row in home.rows(tables.custody) if row.taken_at], what="the request")
            deliverer.kill_all()
            deliverer.process.returncode = 0  # asked for
        ((transaction, asked),) = archive.requests
        with home.running("listen") as listener:
            # The other side of the same service: there we are the provider.
            assert ask(listener.port(), "2.25.1000", [(CTImageStorage, "2.25.11")], calling="PACS") == 0x0000
            listener.kill_all()
            listener.process.returncode = 0  # asked for
        with home.running("listen") as listener:
            assert archive.tell(listener.port(), archive.truth(transaction, asked), calling="OTHER") is None
            assert archive.tell(listener.port(), archive.truth(transaction, asked)) == 0x0000
            assert states(home) == [DeliveryState.COMMITTED] * OBJECTS
            assert archive.tell(listener.port(), archive.truth(transaction, asked), called="MEDDAEMON") == 0x0000
            assert "on nothing that this AE was asked for" not in listener.log_text()
            assert archive.tell(listener.port(), archive.truth("1.2.3.4", asked)) == 0x0112
            assert "on nothing that this AE was asked for" in listener.log_text()
    assert "3 of 3 committed" in home.cli("explain", "1").stdout
    assert "done at pacs: 20" in home.cli("explain", "1").stdout
    assert "pacs 1/1" in home.cli("studies").stdout
    assert "committed" in home.cli("deliveries", "list").stdout


def test_a_deliverer_that_hears_on_its_own_association_or_must_end(tmp_path: Path) -> None:
    """Nobody listens here: the report comes where it was asked for; and waiting for one keeps nobody from ending."""
    archive = Archive()
    with archive.listening() as to:
        home = site(tmp_path / "home", to.port)
        home.config.write_text(home.config.read_text().replace("association_seconds = 0", "association_seconds = 600"))
        with home.database() as database:
            post(database, home)
        with home.running("deliver"):
            wait_until(lambda: states(home) == [DeliveryState.COMMITTED] * OBJECTS, what="custody")
        archive.report = "never"
        with home.database() as database, database.write() as connection:
            connection.execute(tables.delivery.update().values(state=DeliveryState.SENT, done_at=None, custody_at=0.0))
        with home.running("deliver"):
            wait_until(lambda: len(archive.requests) == 2, what="another request")
            # The end comes within 15 s and with exit code 0, and leaves nothing in progress.
    assert all("left a delivery" not in each.read_text() for each in home.folder.glob("deliver-*.log"))
