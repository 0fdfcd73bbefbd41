"""A scope's entries, read a page at a time, so that no statement takes long over a slow line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["FIRST_BYTES", "Entries", "page"]

PAGE_ROWS: Final = 4000
PAGE_SECONDS: Final = 0.25
"""What a page should take: who else uses the connection waits for as long, and a page costs a round trip."""
FIRST_BYTES: Final = 1024 * 1024
"""What the values of the first page have, but for its last one: it may have as many more as a value may."""
LEAST_BYTES: Final = 128 * 1024
MOST_BYTES: Final = 4 * 1024 * 1024


def page(scope_id: str, after: str, size: str) -> str:
    """The query of a scope's next entries, in the order of their keys.

    Its columns are `key`, `value`, `expires` (seconds since 1970), `remaining` (seconds until then, NULL for ever) and `found`:
    how many rows there were to choose from.

    Args:
        scope_id: SQL for whose they are.
        after: SQL for the last key of the page before.
        size: SQL for what the values may have, in bytes.
    """
    # The size of a value that is kept apart is known without fetching it.
    return f"""
SELECT key, value, expires, remaining, found FROM (
    SELECT key, value, extract(epoch FROM expires_at)::float8 AS expires,
        CASE WHEN expires_at < 'infinity' THEN extract(epoch FROM expires_at - now())::float8 END AS remaining,
        count(*) OVER () AS found,
        sum(octet_length(value)) OVER (ORDER BY key ROWS UNBOUNDED PRECEDING) - octet_length(value) AS bytes_before
    FROM (
        SELECT key, value, expires_at FROM {{schema}}.entry
        WHERE scope_id = {scope_id} AND key > {after} AND (expires_at IS NULL OR expires_at > now())
        ORDER BY key LIMIT {PAGE_ROWS}
    ) AS next
) AS sized WHERE bytes_before < {size} ORDER BY key"""  # noqa: S608 - what callers write, no value


class Entries:
    """What pages have brought so far.

    Attributes:
        are_all: Whether there are no more.
        ends: As in a `Snapshot`.
    """

    def __init__(self) -> None:
        self.are_all = False
        self.ends: dict[str, float] = {}
        self._last = ""
        self._size: float = FIRST_BYTES
        self._values: dict[str, str] = {}
        self._expiring: dict[str, float] = {}

    async def read_page(
        self, fetch: Callable[..., Awaitable[Sequence[Any]]], query: str, scope_id: int
    ) -> None:
        """Read the next page.

        Args:
            fetch: Returns the rows of a query.
            query: Made of `page`.
            scope_id: Whose entries.
        """
        began = time.monotonic()
        self.add(await fetch(query, scope_id, self._last, int(self._size)))
        wanted = self._size * PAGE_SECONDS / (time.monotonic() - began)
        self._size = min(max(wanted, LEAST_BYTES), MOST_BYTES)

    def add(self, rows: Sequence[Any]) -> None:
        """Take the rows of the next page."""
        now = time.monotonic()
        for key, value, expires, remaining, _ in rows:
            self._values[key] = value
            if expires is not None:
                self._expiring[key] = expires
                if remaining is not None:
                    self.ends[key] = now + remaining
            self._last = key
        self.are_all = not rows or len(rows) == rows[0][4] < PAGE_ROWS

    def at(self, moment: float | None = None) -> dict[str, str]:
        """The values by key, as they were at a moment that is later than each page.

        Args:
            moment: Seconds since 1970; None where all pages are of one moment.
        """
        if moment is not None:
            for key, expires in self._expiring.items():
                if expires <= moment:
                    del self._values[key]
        return self._values
