"""The proof that our listener kept its word: each acknowledged instance in the store bit for bit, and registered."""

import hashlib
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from meddaemon.db import tables
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of

from .data_sets import Image


class NotKept(Exception):
    """An acknowledged instance is not in the store, not registered, or not what was sent."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Our database, and the folder of the received instances.

    A row may come so many seconds after the acknowledgement, where a synced journal stands in for it until then.
    """

    database: Database
    instances: Path
    patience_seconds: float = 30.0

    def await_registered(self, acknowledged: Collection[str]) -> dict[str, Path]:
        """Wait until every instance has a row and a file under the name that the row says; return the files by UID.

        Raises NotKept when that does not come.
        """
        pause = threading.Event()
        deadline = time.monotonic() + self.patience_seconds
        while True:
            found = self._registered(acknowledged)
            lacking = [uid for uid in acknowledged if uid not in found or not found[uid].exists()]
            if not lacking:
                return found
            if time.monotonic() > deadline:
                raise NotKept(
                    f"{len(lacking)} of {len(acknowledged)} acknowledged instances lost, such as {lacking[0]}"
                )
            pause.wait(0.05)

    def require_exact(self, files: dict[str, Path], sent: Iterable[Image]) -> None:
        """Compare every file with what was sent. Raises NotKept."""
        for image in sent:
            content = files[image.sop_instance_uid].read_bytes()
            if hashlib.sha256(content).hexdigest() != files[image.sop_instance_uid].stem:
                raise NotKept(f"{image.sop_instance_uid} is not what its file is named by")
            if data_set(content) != image.head + image.pixels:
                raise NotKept(f"{image.sop_instance_uid} is not what was sent")

    def _registered(self, acknowledged: Collection[str]) -> dict[str, Path]:
        instance = tables.instance
        query = select(instance.c.sop_instance_uid, instance.c.sha256).where(
            instance.c.sop_instance_uid.in_(acknowledged), ~instance.c.missing, ~instance.c.conflict
        )
        with self.database.read() as connection:
            return {uid: path_of(self.instances, sha256) for uid, sha256 in connection.execute(query)}


def data_set(content: bytes) -> bytes:
    """Return what follows the file meta group of a Part 10 file, without asking pydicom or our own reader."""
    # Prefix, then the group length: (0002,0000) UL 4, so many bytes follow (PS3.10 7.1).
    if content[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00":
        raise NotKept("a file that does not begin as PS3.10 says")
    return content[144 + int.from_bytes(content[140:144], "little") :]
