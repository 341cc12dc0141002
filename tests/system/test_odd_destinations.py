"""Destinations that are configured oddly: what is wrong, where, and what to do stands where a person looks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from meddaemon.cli.explain import explain
from meddaemon.cli.oddities import oddities
from meddaemon.config.settings import Settings, load
from meddaemon.db import notices, tables
from meddaemon.db.engine import Database
from meddaemon.domain.errors import InvalidConfiguration
from meddaemon.domain.filters import parse_filter
from meddaemon.domain.notices import NoticeForm, Target
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.states import DeliveryState
from tests.results.test_hl7 import post
from tests.running import Home

FOLDER = '[[destinations]]\nname = "{}"\nkind = "folder"\ndirectory = "out"\n'
DICOM = '[[destinations]]\nname = "a"\nae_title = "PACS"\nhost = "pacs.example.org"\nport = 104\n'


def rule(*destinations: str) -> str:
    return f'[[rules]]\nname = "all"\nmodels = ["brain_volume"]\ndestinations = {list(destinations)}\n'


@pytest.fixture
def dialect() -> str:
    """One database will do."""
    return "sqlite"


def settings(folder: Path, text: str) -> Settings:
    file = folder / "meddaemon.toml"
    file.write_text(text)
    return load(file, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FOLDER.format("a") + rule("a"), []),
        (FOLDER.format("a") + rule(), ["no rule names it: nothing goes there"]),
        (
            FOLDER.format("a") + FOLDER.format("b") + rule("a", "b"),
            ["is the same place as 'a': what both take of rule 'all' goes there twice"],
        ),
        (FOLDER.format("a") + 'when = "volume > 30 mL or status = \\"plausible\\""\n' + rule("a"), []),
        (
            FOLDER.format("a") + 'when = "present and volum > 30 mL"\n' + rule("a"),
            [
                "its condition asks for 'volum', which brain_volume does not measure, or not in such a unit; "
                "known: volume"
            ],
        ),
        (
            FOLDER.format("a") + 'when = "volume > 30 mm"\n' + rule("a"),
            ["its condition asks for 'volume', which brain_volume does not measure, or not in such a unit"],
        ),
        (
            FOLDER.format("a") + 'when = \'finding = "Splen" or segment = "brain"\'\n' + rule("a"),
            ["its condition asks for finding 'Splen', which brain_volume never says"],
        ),
        (
            DICOM + 'custody = "commitment"\n' + rule("a") + '[[peers]]\nae_title = "PACS"\n',
            ["10 s calls our listener, which takes calls from this machine only: [listener] host is '127.0.0.1'"],
        ),
    ],
)
def test_what_is_hardly_meant_is_remarked(tmp_path: Path, text: str, said: list[str]) -> None:
    found = list(oddities(settings(tmp_path, text)))
    assert len(found) == len(said), found
    for check, expected in zip(found, said, strict=True):
        assert expected in check.said
        assert check.well is None


@pytest.mark.parametrize("objects", ["", 'objects = ["SEG", "KO"]\n'])
def test_a_report_that_could_never_be_encoded_is_no_configuration(tmp_path: Path, objects: str) -> None:
    with pytest.raises(InvalidConfiguration) as refused:
        settings(tmp_path, f'{DICOM}transfer_syntaxes = ["jpeg-ls", "rle"]\n{objects}')
    (problem,) = refused.value.problems
    assert re.search(
        r":6: destinations\[0\].transfer_syntaxes: (SR|KO) could never leave: .* add \"explicit\"", problem
    )
    settings(tmp_path, f'{DICOM}transfer_syntaxes = ["jpeg-ls", "explicit"]\n{objects}')


def told(database: Database, **outlets: Outlet) -> str:
    with database.read() as connection:
        return "\n".join(explain(connection, "1", outlets))


def put(database: Database, state: DeliveryState, **values: Any) -> None:
    with database.write() as connection:
        fresh = {"sent_at": None, "done_at": None, "attempt": 0, **values}
        connection.execute(update(tables.delivery).values(state=state, **fresh))


def test_one_look_says_what_where_when_and_to_whom(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path)
    there = Outlet(kinds=("SR",))
    at = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    with database.write() as connection:
        ris = [Target(form=NoticeForm.IAN, target=each) for each in ("RIS", "ROUTER", "LATE")]
        notices.post(connection, "pacs", ris)
        for ok in (True, False):
            notice = notices.claim(connection, "pacs", NoticeForm.IAN, lease_seconds=60)
            assert notice is not None
            if ok:
                notices.accept(connection, notice, note="")
            else:
                notices.refuse(connection, notice, reason="PACS rejected the association")
    said = told(database, pacs=there)
    assert re.search(rf"\n    done at pacs: {at}\n      SR: sent {at}\n      told RIS \(ian\) {at}\n", said), said
    held = "not told ROUTER (ian), held after 1 attempt; `meddaemon notices requeue 2` tells it again: PACS rejected"
    assert held in said
    assert "not told LATE (ian) yet" in said


def test_what_waits_says_for_what_and_what_is_held_how_it_goes_on(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path)
    there = Outlet(kinds=("SR",))
    put(database, DeliveryState.PENDING)
    assert re.search(
        r"done at pacs: not yet, 0 of 1 objects are\n      SR: waits since 20[-: \d]+$", told(database), re.M
    )
    nights = Outlet(kinds=("SR",), window="nights")
    assert "window 'nights' is closed: `meddaemon jobs windows`" in told(database, pacs=nights)
    assert "SR: waits since 20" in told(database, other=there)
    assert "there is no such destination any more" in told(database, other=there)
    put(database, DeliveryState.HELD, attempt=3, status=0xA900, reason="refused")
    assert "SR: held after 3 attempts; `meddaemon deliveries requeue 1` sends it again: status A900H, refused" in told(
        database, pacs=there
    )
    put(database, DeliveryState.RETRYABLE, attempt=2, reason="out is mounted read-only")
    assert re.search(
        r"SR: failed after 2 attempts, again after 20[-: \d]+: status A900H, out is mounted read-only",
        told(database, pacs=there),
    )


def test_a_condition_on_what_nothing_measures_is_named(database: Database, tmp_path: Path) -> None:
    asked = "surface > 30 cm2 or volume > 9 mm"
    post(database, tmp_path)
    with database.write() as connection:
        connection.execute(tables.delivery.delete())
    said = told(database, pacs=Outlet(kinds=("SR",), when=parse_filter(asked), asked=asked))
    assert (
        f"not to pacs: it is none of the results that this destination takes ({asked}): "
        "nothing here is called 'surface' or 'volume', in a unit that compares" in said
    )


def test_the_list_of_deliveries_says_why_one_waits(tmp_path: Path) -> None:
    text = FOLDER.format("pacs") + 'window = "nights"\n'
    text += '[[windows]]\nname = "nights"\ntimes = ["Mon 02:00-03:00"]\ntime_zone = "Europe/Berlin"\n'
    home = Home.make(tmp_path / "home", text)
    with home.database() as database:
        post(database, home.settings.store.results)
        put(database, DeliveryState.PENDING)
    (row,) = json.loads(home.cli("deliveries", "list", "--format", "json").stdout)
    assert (row["state"], row["reason"]) == ("pending", "window 'nights' is closed: `meddaemon jobs windows`")
