"""Inserting what may be there already, also when another transaction inserts it at the same time."""

from collections.abc import Mapping

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_unless_there(connection: Connection, table: Table, values: Mapping[str, object]) -> int | None:
    """Insert a row and return its id; None when a unique key says that it is there already.

    Waits for the end of another transaction that inserts the same row.
    """
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = dialect_insert(table).values(**values).on_conflict_do_nothing().returning(table.c.id)
    row_id: int | None = connection.execute(statement).scalar()
    return row_id
