"""The store's volume: away, another one, back again; and what the database remembers of it."""

from pathlib import Path

import pytest
from databases import Database
from encoded import written
from pydicom.uid import ExplicitVRLittleEndian
from running import Home
from scanner import scanner
from test_receive import OUT_OF_RESOURCES, SUCCESS, ct, new_uid, stored
from volumes import mounted, run, unmount

from meddaemon.db import volumes
from meddaemon.db.engine import NoDatabase
from meddaemon.durable import Staging
from meddaemon.ingest.store import InstanceStore, StoreUnavailable
from meddaemon.ingest.volume import SENTINEL, VolumeGone, adopt_volume, check_volume, identity_of, open_volume
from meddaemon.roles.deliver import deliver
from meddaemon.roles.listen import listen
from meddaemon.roles.process import Signals
from meddaemon.roles.web import web
from meddaemon.roles.work import work

ELSEWHERE = '\n[database]\nurl = "sqlite:///database.sqlite"\n'
"""The database beside the store, not on its volume."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_the_first_start_makes_what_every_later_one_finds(database: Database, directory: Path) -> None:
    check_volume(database, directory)
    open_volume(database, directory).require()
    check_volume(database, directory)
    identity = identity_of(directory)
    open_volume(database, directory).require()
    assert identity_of(directory) == identity
    with database.read() as connection:
        assert volumes.remembered(connection) == volumes.RememberedVolume(identity=str(identity), placed=True)
    assert [path.name for path in directory.iterdir()] == [SENTINEL]


@pytest.mark.fault(104)
@pytest.mark.parametrize("there", [None, "", "another\n"])
def test_a_volume_that_is_not_the_one_is_refused_at_start(
    database: Database, directory: Path, there: str | None
) -> None:
    open_volume(database, directory)
    (directory / SENTINEL).unlink()
    if there is not None:
        (directory / SENTINEL).write_text(there)
    before = sorted(directory.iterdir())
    with pytest.raises(VolumeGone):
        check_volume(database, directory)
    with pytest.raises(VolumeGone, match="meddaemon store adopt"):
        open_volume(database, directory)
    assert sorted(directory.iterdir()) == before


def test_whoever_is_stopped_between_database_and_file_goes_on(database: Database, directory: Path) -> None:
    with database.write() as connection:
        volumes.remember(connection, "remembered")
    open_volume(database, directory).require()
    assert identity_of(directory) == "remembered"


def test_whoever_is_stopped_between_file_and_database_goes_on(database: Database, directory: Path) -> None:
    open_volume(database, directory)
    with database.write() as connection:
        volumes.adopt(connection, str(identity_of(directory)))
    open_volume(database, directory)
    with database.read() as connection:
        known = volumes.remembered(connection)
    assert known is not None
    assert known.placed


@pytest.mark.fault(117)
def test_an_empty_database_where_one_was_is_refused(database: Database, directory: Path) -> None:
    """The store has objects of a database that this one has nothing of."""
    directory.mkdir()
    (directory / SENTINEL).write_text("of another database\n")
    with pytest.raises(VolumeGone, match="another database"):
        open_volume(database, directory)
    adopt_volume(database, directory).require()
    open_volume(database, directory).require()
    assert identity_of(directory) == "of another database"


@pytest.mark.fault(104)
def test_a_volume_that_goes_and_comes_back_is_told_once_each(
    database: Database, tmp_path: Path, directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    volume = open_volume(database, directory)
    directory.rename(tmp_path / "away")
    assert [volume.is_there, volume.is_there] == [False, False]
    directory.mkdir()
    assert not volume.is_there
    directory.rmdir()
    (tmp_path / "away").rename(directory)
    assert volume.is_there
    assert volume.returned == 1
    said = capfd.readouterr().err
    assert (said.count("volume is gone"), said.count("volume is back")) == (1, 1)


@pytest.mark.fault(104)
def test_a_store_is_not_made_where_its_volume_is_not(database: Database, tmp_path: Path, directory: Path) -> None:
    volume = open_volume(database, directory)
    directory.rename(tmp_path / "away")
    directory.mkdir()
    with pytest.raises(StoreUnavailable):
        InstanceStore(directory, minimum_free_bytes=0, volume=volume)
    assert list(directory.iterdir()) == []


def test_what_was_being_received_is_kept_from_others_again_when_the_volume_is_back(tmp_path: Path) -> None:
    """Whoever sweeps must see that we live, although our lock was on a volume that is not there any more."""
    staging = Staging(tmp_path / "incoming")
    (staging.folder / "lock").unlink()  # as after a mount: another file under the same name
    (staging.folder / "half").touch()
    staging.reopen()
    staging.reopen()
    other = Staging(tmp_path / "incoming")
    assert other.sweep() == 0
    assert (staging.folder / "half").exists()
    staging.close()
    assert not staging.folder.exists()


@pytest.mark.fault(103, 104)
def test_nothing_is_written_where_the_volume_was_and_all_goes_on_when_it_is_back(tmp_path: Path) -> None:
    """Unmounted; another volume in its place, with a store of its own and on the same device; and back."""
    ours, another = tmp_path / "volumes" / "ours", tmp_path / "volumes" / "another"
    for folder in (ours, another / "instances", another / "incoming"):
        folder.mkdir(parents=True)
    (another / SENTINEL).write_text("another\n")
    home = Home.make(tmp_path / "home", ELSEWHERE)
    uid = new_uid()
    data = written(ct(uid), ExplicitVRLittleEndian)
    foreign = sorted(another.rglob("*"))
    with mounted(home.store, "--bind", ours):
        with home.running("listen") as role, scanner(role.port()) as sender:
            unmount(home.store)
            assert [sender.store(data, uid), sender.store(data, uid)] == [OUT_OF_RESOURCES] * 2
            assert list(home.store.iterdir()) == []
            run("mount", "--bind", another, home.store)
            assert sender.store(data, uid) == OUT_OF_RESOURCES
            assert sorted(another.rglob("*")) == foreign
            unmount(home.store)
            run("mount", "--bind", ours, home.store)
            assert sender.store(data, uid) == SUCCESS
            assert stored(home, uid) == [data]
            told = role.log_text()
            assert told.count("volume is gone") == told.count("volume is back") == 1
        unmount(home.store)
        for role in (listen, web, work, deliver):
            with pytest.raises(VolumeGone, match="not mounted"):
                role(home.settings, Signals())
        for command in (["serve"], ["store", "repair"]):
            refused = home.cli(*command)
            assert refused.returncode == 1
            assert "not mounted" in refused.stderr
            assert "Traceback" not in refused.stderr
        assert {path.name for path in home.store.iterdir()} <= {"serve.lock"}


@pytest.mark.fault(104, 117)
def test_a_database_that_lies_on_the_volume_is_not_begun_anew(tmp_path: Path) -> None:
    """The default: the SQLite file is in the store. Without its volume there is neither."""
    home = Home.make(tmp_path)
    home.store.rename(tmp_path / "away")
    home.store.mkdir()
    for role in (listen, web, work, deliver):
        with pytest.raises(NoDatabase):
            role(home.settings, Signals())
    for command in (["serve"], ["import", home.config], ["doctor", "--no-network"]):
        refused = home.cli(*command)
        assert refused.returncode == 1
        assert "is its volume mounted?" in refused.stderr + refused.stdout
        assert "Traceback" not in refused.stderr
    assert list(home.store.iterdir()) == []


def test_a_store_that_was_moved_on_purpose_is_adopted(tmp_path: Path) -> None:
    home = Home.make(tmp_path, ELSEWHERE)
    uid = new_uid()
    (tmp_path / "file").write_bytes(written(ct(uid), ExplicitVRLittleEndian))
    assert home.cli("import", tmp_path / "file").returncode == 0
    # A copy of the objects without our own file, and a disk with nothing on it.
    (home.store / SENTINEL).unlink()
    objects = (home.store / "instances").rename(tmp_path / "instances")
    told = home.cli("store", "adopt")
    assert told.returncode == 1
    assert "--without-objects" in told.stderr
    assert not (home.store / SENTINEL).exists()
    objects.rename(home.store / "instances")
    assert home.cli("store", "adopt").returncode == 0
    with home.database() as database:
        open_volume(database, home.store).require()
