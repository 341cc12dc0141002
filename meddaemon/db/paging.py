"""Going through what grows page by page: a page begins where the one before ended, however far back that is."""

from sqlalchemy import ColumnElement


def earlier(key: ColumnElement[int], before: int | None) -> tuple[ColumnElement[bool], ...]:
    """Return the condition for rows that come before the last row of the page before; none for the first page."""
    return () if before is None else (key < before,)
