"""Database or volume away: refused with A700, the association goes on, nothing is written elsewhere; then as before."""

from pathlib import Path

import pytest
from databases import _execute
from encoded import written
from pydicom.uid import ExplicitVRLittleEndian
from running import Home
from scanner import scanner
from sqlalchemy import make_url
from sqlalchemy.engine import URL
from test_receive import OUT_OF_RESOURCES, SUCCESS, ct, new_uid, stored

pytestmark = pytest.mark.parametrize("dialect", ["postgresql"])


def _home(folder: Path, url: str) -> Home:
    return Home.make(folder, f'\n[database]\nurl = "{url}"\n')


@pytest.mark.fault(113, 119)
def test_a_database_that_is_away_is_out_of_resources(tmp_path: Path, database_url: str, postgresql_server: URL) -> None:
    """Faults 113, 119: every connection is cut and none is let in; later all is as before."""
    home = _home(tmp_path, database_url)
    home.config.chmod(0o600)
    name = make_url(database_url).database
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    first, second = new_uid(), new_uid()
    data = {uid: written(ct(uid), ExplicitVRLittleEndian) for uid in (first, second)}
    with home.running("listen") as role, scanner(role.port()) as sender:
        assert sender.store(data[first], first) == SUCCESS
        _execute(postgresql_server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        _execute(postgresql_server, cut)
        assert [sender.store(data[second], second), sender.store(data[first], first)] == [OUT_OF_RESOURCES] * 2
        assert sender.echo() == SUCCESS
        _execute(postgresql_server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert sender.store(data[second], second) == SUCCESS
    assert [stored(home, uid) for uid in (first, second)] == [[data[first]], [data[second]]]
    assert home.cli("store", "check", "--hash").returncode == 0


@pytest.mark.fault(104)
def test_a_volume_that_is_gone_is_out_of_resources_and_its_mount_point_stays_empty(
    tmp_path: Path, database_url: str
) -> None:
    """Fault 104: an empty folder lies where the volume was; nothing is written there, and later all is well."""
    home = _home(tmp_path, database_url)
    home.config.chmod(0o600)
    uid = new_uid()
    data = written(ct(uid), ExplicitVRLittleEndian)
    with home.running("listen") as role, scanner(role.port()) as sender:
        volume = home.store.rename(tmp_path / "unmounted")
        home.store.mkdir()
        assert [sender.store(data, uid), sender.store(data, uid)] == [OUT_OF_RESOURCES] * 2
        assert sender.echo() == SUCCESS
        assert list(home.store.iterdir()) == []
        home.store.rmdir()
        volume.rename(home.store)
        assert sender.store(data, uid) == SUCCESS
    assert stored(home, uid) == [data]
