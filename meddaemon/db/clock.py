"""Time as the database tells it.

Leases and due times are compared by the database's own clock, so that a worker whose clock is wrong can neither
steal a lease nor keep one. Times are stored as seconds since 1970-01-01 UTC in a double, which both databases can
add to and compare in the same way; they come back as aware datetimes.
"""

import math
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Dialect, Double, type_coerce
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Utc(TypeDecorator[datetime]):
    """A point in time: epoch seconds in the database, an aware datetime in Python.

    Adding seconds (a float) to a column or to `now()` gives a later time.
    """

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: datetime | float | None, dialect: Dialect) -> float | None:
        """Accept an aware datetime, or plain seconds in arithmetic."""
        return value.timestamp() if isinstance(value, datetime) else value

    def process_result_value(self, value: float | None, dialect: Dialect) -> datetime | None:
        """Return an aware datetime in UTC."""
        if value is None:
            return None
        # Rounded down, so that a time read from a row never lies after what the row holds.
        return _EPOCH + timedelta(microseconds=math.floor(value * 1e6))

    def coerce_compared_value(self, op: object, value: object) -> "Utc | Double[float]":
        """Bind datetimes as times and numbers as seconds."""
        return self if isinstance(value, datetime) else Double()


class now(FunctionElement[datetime]):  # noqa: N801  (reads as the SQL function it is)
    """The current time by the database's clock."""

    type = Utc()
    inherit_cache = True
    name = "now"


@compiles(now, "sqlite")
def _sqlite(element: now, compiler: SQLCompiler, **kw: object) -> str:
    # julianday has a resolution of about 40 µs; unixepoch('subsec') needs SQLite 3.42.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql(element: now, compiler: SQLCompiler, **kw: object) -> str:
    # Not now(): that stands still within a transaction. As a subquery it is asked once for a statement, not once for
    # a row, so that an index on a time can be used.
    return "(SELECT extract(epoch from clock_timestamp())::double precision)"


def after(seconds: float) -> ColumnElement[datetime]:
    """Return the time `seconds` from now."""
    return type_coerce(now() + seconds, Utc)
