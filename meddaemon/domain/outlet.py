"""What of a result leaves, and to whom."""

from dataclasses import dataclass

from meddaemon.domain.filters import Filter


@dataclass(frozen=True, kw_only=True)
class Outlet:
    """One destination: the kinds of object that it takes, and of which results (None: all)."""

    kinds: tuple[str, ...]
    when: Filter | None = None
