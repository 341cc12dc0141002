"""Runs migrations on the connection that `meddaemon.db.engine` hands over (`meddaemon db upgrade`)."""

from typing import Any, Literal

from alembic import context

from meddaemon.db.clock import Utc
from meddaemon.db.tables import Plain, metadata


def render_plain(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Write our own types as the plain ones they are stored as, so that old migrations never need new code."""
    if kind == "type" and isinstance(item, Utc):
        return "sa.Double()"
    if kind == "type" and isinstance(item, Plain):
        return "sa.Text()" if item.length is None else f"sa.String(length={item.length})"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    render_as_batch=True,
    render_item=render_plain,
)
context.run_migrations()
