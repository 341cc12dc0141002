"""Custody with real processes: a request outlives who made it, and its report comes to whoever is there."""

import signal
from pathlib import Path

from pydicom.uid import CTImageStorage

from meddaemon.db import tables
from meddaemon.domain.states import DeliveryState
from tests.results.archive import Archive
from tests.results.test_delivery import post_reports
from tests.running import Home, wait_until
from tests.system.test_commitment import ask

SITE = """
accept = "listed"

[delivery]
ae_title = "SENDER"
poll_seconds = 0.1

[custody]
association_seconds = 600

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


def test_a_report_comes_after_restarts_of_everybody(tmp_path: Path) -> None:
    archive = Archive(report="never")
    with archive.listening() as to:
        home = site(tmp_path / "home", to.port)
        with home.database() as database:
            post_reports(database, home.settings.store.results)
            with database.write() as connection:
                # No rule is to be asked about its study again.
                connection.execute(tables.study.update().values(due_at=None))
        with home.running("deliver", failpoint="commitment_requested:kill") as deliverer:
            assert wait_until(deliverer.process.poll, what="the request") == -signal.SIGKILL
            deliverer.process.returncode = 0  # asked for
        with home.database() as database, database.write() as connection:
            connection.execute(tables.delivery.update().values(custody_at=0.0))
        with home.running("deliver") as deliverer:
            wait_until(lambda: [row for row in home.rows(tables.custody) if row.taken_at], what="another request")
            # Waiting for the report keeps nobody from ending, within 15 s and with exit code 0.
            deliverer.stop()
            assert "left a delivery" not in deliverer.log_text()
        assert "3 sent since 20" in home.cli("doctor", "--no-network").stdout
        (transaction, asked), (another, _) = archive.requests
        assert transaction != another
        assert sorted(archive.arrived) == sorted(archive.there), "something was sent twice"
        with home.running("listen") as listener:
            port = listener.port()
            # The other side of the same service: there we are the provider.
            assert ask(port, "2.25.1000", [(CTImageStorage, "2.25.11")], calling="PACS") == 0x0000
            report = archive.truth(transaction, asked)
            assert archive.tell(port, report, calling="OTHER") is None
            assert archive.tell(port, report) == 0x0000
            assert {row.state for row in home.rows(tables.delivery)} == {DeliveryState.COMMITTED}
            assert archive.tell(port, report, called="MEDDAEMON") == 0x0000
            assert "on nothing that this AE was asked for" not in listener.log_text()
            assert archive.tell(port, archive.truth("1.2.3.4", asked)) == 0x0112
            assert "on nothing that this AE was asked for" in listener.log_text()
    assert "pacs 1/1" in home.cli("studies").stdout
