"""How much one caller may have stored in a day, so that one that runs wild does not take the room of all others."""

import threading
import time
from collections import Counter

from meddaemon.db import instances
from meddaemon.db.engine import Database
from meddaemon.domain.errors import StoreUnavailable

DAY_SECONDS = 86_400.0
_COUNTED_EVERY_SECONDS = 60.0


class Quota:
    """Counts what each calling AE title has stored in the last 24 hours; several threads may ask.

    The index is asked once a minute, which other listeners write to as well; in between we count what we take.
    """

    def __init__(self, database: Database, bytes_per_day: int) -> None:
        """Every caller may have `bytes_per_day` stored."""
        self._database = database
        self._bytes_per_day = bytes_per_day
        self._counting = threading.Lock()
        self._used: Counter[str] = Counter()
        self._count_again_at = 0.0

    def require(self, calling_ae_title: str, size: int) -> None:
        """Count an object that is about to be stored. Raises StoreUnavailable when its caller has had its share."""
        with self._counting:
            if time.monotonic() >= self._count_again_at:
                with self._database.read() as connection:
                    self._used = Counter(instances.bytes_by_caller(connection, within_seconds=DAY_SECONDS))
                self._count_again_at = time.monotonic() + _COUNTED_EVERY_SECONDS
            if self._used[calling_ae_title] + size > self._bytes_per_day:
                raise StoreUnavailable(
                    f"its caller has stored {self._used[calling_ae_title]} bytes within 24 hours, of "
                    f"{self._bytes_per_day} that each may (listener.caller_bytes_per_day)"
                )
            self._used[calling_ae_title] += size
