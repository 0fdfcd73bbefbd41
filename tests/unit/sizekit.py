"""A state with a limit, and how much it holds."""

from __future__ import annotations

from async_task_state import Settings


def with_limit(dsn, limit, **options):
    return Settings(dsn=dsn, max_state_bytes=limit, **options)


def size(entries):
    return sum(len(key.encode()) + len(text.encode()) for key, text in entries.items())
