"""This process's writers: made on first use, one a store; drained when it ends, paused while it forks."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING
from weakref import WeakSet

from async_task_state.errors import StateNotOpenError
from async_task_state.lent import LentStore
from async_task_state.stores import is_same_store, open_store
from async_task_state.writer import Writer

if TYPE_CHECKING:
    from async_task_state.awaited import AwaitedWriter
    from async_task_state.settings import Settings
    from async_task_state.stores import Store
    from async_task_state.stores.airflow import Channel

__all__ = ["awaited_writer", "drain", "lent_store", "opened_before_fork", "shutdown", "writer_for"]

_writers: dict[str | Store, Writer] = {}
_writers_lock = threading.Lock()
_inherited: list[Writer] = []
_awaited: WeakSet[AwaitedWriter] = WeakSet()


def writer_for(store: str | Store, settings: Settings) -> Writer:
    """This process's writer for a store, given as a dsn or as itself; made when there is none.

    One a file or database, whatever the name it is given by: two connections of one process to one file of SQLite by
    two hard links have one index of two logs.
    """
    with _writers_lock:
        writer = _writer_of(store)
        if writer is None:
            if not _writers:
                atexit.register(shutdown)
            opened = (
                open_store(store, default_retention=settings.default_retention)
                if isinstance(store, str)
                else store
            )
            writer = _writers[store] = Writer(opened, settings)
        return writer


def lent_store(dsn: str, *, default_retention: float | None = None) -> Store:
    """The store of this process's writer for what a dsn names; or where there is none one of its own.

    Args:
        dsn: Not `airflow:`.
        default_retention: Of one of its own.
    """
    with _writers_lock:
        writer = _writer_of(dsn)
    return open_store(dsn, default_retention=default_retention) if writer is None else LentStore(writer)


def _writer_of(store: str | Store) -> Writer | None:
    found = _writers.get(store)
    if found is not None and not found.gone:
        return found
    living = {known: writer for known, writer in _writers.items() if not writer.gone}
    return next((writer for known, writer in living.items() if is_same_store(known, store)), None)


def awaited_writer(settings: Settings, channel: Channel | None) -> AwaitedWriter:
    """A writer for one state in Airflow's own store."""
    from async_task_state.awaited import AwaitedWriter  # noqa: PLC0415 - few use that store, and it loads for 15 ms

    writer = AwaitedWriter(settings, channel)
    _awaited.add(writer)
    return writer


def drain() -> None:
    """Block until everything that this process has recorded is saved, at most `exit_timeout` a store.

    Airflow's task processes leave without running `atexit`; the listener calls this before they do.
    """
    for writer in _all_writers():
        writer.drain()


def shutdown() -> None:
    """Drain, close every store and end the threads; a state opened later starts anew."""
    with _writers_lock:
        writers = list(_writers.values())
        _writers.clear()
    for writer in writers:
        writer.stop()


def _all_writers() -> list[Writer | AwaitedWriter]:
    return [*_writers.values(), *_awaited]


def opened_before_fork(what: str) -> StateNotOpenError:
    """The error for what was opened before this process was forked."""
    return StateNotOpenError(f"{what} was opened by the process that this one was forked from: open it here")


def _before_fork() -> None:
    """Close every store, for SQLite keeps its locks in memory and a child would take its parent's for its own.

    It would wait for ever for what nobody holds, or write to a log that its parent may delete.
    """
    _writers_lock.acquire()
    for writer in _writers.values():
        writer.pause()


def _after_fork_in_parent() -> None:
    for writer in _writers.values():
        writer.resume()
    _writers_lock.release()


def _after_fork_in_child() -> None:
    global _writers_lock  # noqa: PLW0603 - a lock is released by the thread that took it, or replaced
    _writers_lock = threading.Lock()
    # Kept for ever: a store that could not be closed before the fork must not be closed after it.
    _inherited.extend(_writers.values())
    for writer in _all_writers():
        writer.disown(opened_before_fork)
    _writers.clear()
    _awaited.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
