"""Which volume the store lies on: an identity that this database remembers, and that a file on the volume repeats."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from meddaemon.db import tables
from meddaemon.db.insertion import insert_unless_there

_volume = tables.volume
_ONLY = 1


@dataclass(frozen=True, kw_only=True)
class RememberedVolume:
    """The identity of the store's volume; `placed` once the file that repeats it was written there."""

    identity: str
    placed: bool


def remembered(connection: Connection) -> RememberedVolume | None:
    """Return the volume that the store of this database lies on; None before the first start."""
    row = connection.execute(select(_volume.c.identity, _volume.c.placed).where(_volume.c.id == _ONLY)).first()
    return None if row is None else RememberedVolume(identity=row.identity, placed=bool(row.placed))


def remember(connection: Connection, identity: str) -> None:
    """Remember a volume whose file is about to be written, unless one is remembered already."""
    insert_unless_there(connection, _volume, {"id": _ONLY, "identity": identity, "placed": False})


def note_placed(connection: Connection) -> None:
    """Note that the file lies on the volume: from now on a store without it is not ours."""
    connection.execute(update(_volume).where(_volume.c.id == _ONLY).values(placed=True))


def adopt(connection: Connection, identity: str) -> None:
    """Remember this volume instead of any other; its file may still have to be written."""
    connection.execute(delete(_volume))
    connection.execute(insert(_volume).values(id=_ONLY, identity=identity, placed=False))
