"""The deliver role tells by HL7 what its configuration names, once, when a result is done."""

from pathlib import Path

from sqlalchemy import update

from meddaemon.db import tables
from meddaemon.domain.states import DeliveryState
from tests.results.test_hl7 import Ris, post
from tests.running import Home, wait_until

SITE = """
[delivery]
poll_seconds = 0.1

[[destinations]]
name = "pacs"
kind = "folder"
directory = "out"
objects = ["SR"]
hl7 = "127.0.0.1:{port}"
hl7_sender = "AI|CLINIC"
"""


def test_the_deliver_role_tells_by_hl7_once(tmp_path: Path) -> None:
    ris = Ris()
    with ris.listening() as to:
        home = Home.make(tmp_path / "home", SITE.format(port=to.port))
        (tmp_path / "home" / "out").mkdir()
        with home.database() as database:
            post(database, home.settings.store.results)
            with database.write() as connection:
                connection.execute(tables.study.update().values(due_at=None))
                # It is to be sent yet.
                connection.execute(
                    update(tables.delivery).values(state=DeliveryState.PENDING, sent_at=None, done_at=None)
                )
        with home.running("deliver") as deliverer:
            wait_until(
                lambda: [row for row in home.rows(tables.notice) if row.state == DeliveryState.SENT], what="a notice"
            )
            assert "told that a result is available" in deliverer.log_text()
            assert "Müller" not in deliverer.log_text()
        listed = home.cli("notices", "list").stdout
    (heard,) = ris.heard
    assert (heard.msh.msh_3.value, heard.msh.msh_4.value) == ("AI", "CLINIC")
    assert "hl7" in listed
