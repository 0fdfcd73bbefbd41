"""State in Airflow's own store: no database but Airflow's, one request a key, from inside awaited calls only.

Airflow keeps keys and gives them one by one: it has no list of them. So an index is kept beside them, in a key of its
own: the names of all keys, and the text of the small ones that are nobody's business but ours.
"""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import anyio

from async_task_state.alarms import alarm_held
from async_task_state.codec import RESERVED_PREFIX, decode, encode_json
from async_task_state.compat import has_task_store, reaches_task_store, task_store_of
from async_task_state.errors import (
    AsyncTaskStateError,
    SettingsError,
    StaleWriterError,
    StoreError,
    StoreUnavailableError,
)
from async_task_state.records import damaged, reading
from async_task_state.scopes import AssetScope, running_task
from async_task_state.settings import NEVER_EXPIRE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_task_state.scopes import RunningTask, Scope
    from async_task_state.stores import Batch

__all__ = [
    "DSN",
    "AirflowStore",
    "Channel",
    "channel_for",
    "no_state_across_iterations",
    "trigger_channel",
    "when_timed_out",
]

DSN: Final = "airflow:"
INDEX: Final = f"{RESERVED_PREFIX}index"
SMALL_CHARS: Final = 32
BUSY_SECONDS: Final = 0.001
PATIENCE_SECONDS: Final = 5.0
"""How long a request may take before the store counts as away: some never end."""
HTTP_NOT_FOUND: Final = 404


@runtime_checkable
class Channel(Protocol):
    """Reads and writes the keys of one scope in Airflow's store, each with one request."""

    async def get(self, key: str) -> Any:
        """The value of a key; None where there is none."""

    async def set(self, key: str, value: Any, retention: timedelta) -> None:
        """Save a value."""

    async def delete(self, key: str) -> None:
        """Remove a key."""

    async def clear(self) -> None:
        """Remove every key."""


class _AccessorChannel:
    """A way through one of Airflow's accessors.

    Args:
        accessor: Of the task's or the asset's store.
        expires: Whether it takes a retention; an asset's does not.
    """

    def __init__(self, accessor: Any, *, expires: bool) -> None:
        self._accessor = accessor
        self._expires = expires

    async def get(self, key: str) -> Any:
        """See `Channel`."""
        return await self._call("get", key)

    async def set(self, key: str, value: Any, retention: timedelta) -> None:
        """See `Channel`."""
        options = {"retention": retention} if self._expires else {}
        await self._call("set", key, value, **options)

    async def delete(self, key: str) -> None:
        """See `Channel`."""
        await self._call("delete", key)

    async def clear(self) -> None:
        """See `Channel`."""
        await self._call("clear")

    async def _call(self, method: str, *args: Any, **options: Any) -> Any:
        raise NotImplementedError


class TaskChannel(_AccessorChannel):
    """The way of a task's process: Airflow's own blocking calls.

    They block the event loop for the ten milliseconds that a request takes. A request that is awaited instead makes
    every blocking call of Airflow's SDK fail that the task makes meanwhile, in any of its coroutines.
    """

    async def _call(self, method: str, *args: Any, **options: Any) -> Any:
        from airflow.sdk.execution_time.comms import DeadlockImminentError  # noqa: PLC0415 - of Airflow 3.3

        turn: Any = nullcontext()
        with anyio.move_on_after(PATIENCE_SECONDS):
            while True:
                async with turn:
                    pass
                # Whoever is next in the queue has its turn when the event loop runs, which is after this.
                try:
                    with alarm_held():
                        return getattr(self._accessor, method)(*args, **options)
                except DeadlockImminentError:
                    # The task awaits a request of its own, and Airflow has sent nothing of ours: get into its queue. Airflow
                    # 3.4 refuses also while the queue is this one's.
                    turn = _queue()
                await anyio.sleep(BUSY_SECONDS)
        # One that was cancelled half way may have left Airflow's lock taken, for good.
        raise StoreUnavailableError(
            f"a request to Airflow that the task awaits itself has been under way for {PATIENCE_SECONDS:g} s"
        )


class TriggererChannel(_AccessorChannel):
    """The way of a triggerer, where requests are awaited and answered in any order."""

    async def _call(self, method: str, *args: Any, **options: Any) -> Any:
        with anyio.move_on_after(PATIENCE_SECONDS):
            return await getattr(self._accessor, f"a{method}")(*args, **options)
        # A triggerer that ends has nobody left who reads the answers.
        raise StoreUnavailableError(f"Airflow has not answered the triggerer for {PATIENCE_SECONDS:g} s")


def _queue() -> Any:
    """The lock for which requests wait that are awaited; one that another thread blocks for does not."""
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415 - loaded by now

    return getattr(task_runner.SUPERVISOR_COMMS, "_async_lock", nullcontext())


def when_timed_out(save: Callable[[], None]) -> None:
    """Have `save` called if the running task times out, once its event loop is abandoned.

    To Airflow a retry is another task instance, and the one that timed out is unknown, as soon as it has been told of
    the timeout: `before_stopping` of its listeners comes after that, and `on_kill` of the task before it.
    """
    if running_task() is None:
        return
    from airflow.sdk import get_current_context  # noqa: PLC0415 - loaded by now

    task: Any = get_current_context()["task"]
    if not isinstance(task.on_kill, _SaveFirst):
        task.on_kill = _SaveFirst(save, task.on_kill)


@dataclass(frozen=True, slots=True)
class _SaveFirst:
    """A task's `on_kill`, before which what is left is saved if the task has timed out."""

    save: Callable[[], None]
    on_kill: Callable[[], None]

    def __call__(self) -> None:
        from airflow.sdk.exceptions import AirflowTaskTimeout  # noqa: PLC0415 - loaded by now

        # A signal may have come in the middle of a request; a timeout has left it.
        if isinstance(sys.exc_info()[1], AirflowTaskTimeout):
            self.save()
        self.on_kill()


def channel_for(scope: Scope, running: RunningTask | None = None) -> Channel:
    """The way to a scope's keys from where this is called.

    Args:
        scope: Whose keys.
        running: A task that defers, and so runs no more; None is the one that runs here.

    Raises:
        SettingsError: There is none: from a deferrable trigger, from another task, or from outside Airflow.
    """
    if not has_task_store():
        raise SettingsError(
            "the dsn airflow: keeps state in Airflow's own store, which this Airflow does not have: it needs 3.3 or"
            f" later; {_INSTEAD}"
        )
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415 - takes a second
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor  # noqa: PLC0415 - of Airflow 3.3

    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if comms is None:
        raise SettingsError(
            f"the dsn airflow: is for Airflow's own processes, and none runs here; {_INSTEAD}"
        )
    running = running_task() if running is None else running
    if isinstance(scope, AssetScope):
        accessor = AssetStateStoreAccessor(**({"name": scope.name} if scope.name else {"uri": scope.uri}))
        way = TriggererChannel if running is None else TaskChannel
        return way(accessor, expires=False)
    if running is None:
        raise SettingsError(
            "the dsn airflow: cannot keep a trigger's state: Airflow 3.3 does not let triggers reach the task store;"
            f" {_INSTEAD}"
        )
    if running.over is not None and running.over.scope == scope:
        raise no_state_across_iterations()
    if running.scope != scope:
        raise SettingsError(
            f"the dsn airflow: keeps the state of the running task, {running.scope}, and not of {scope}; {_INSTEAD}"
        )
    return TaskChannel(running.task_store, expires=True)


def trigger_channel(trigger: Any, whose: RunningTask) -> Channel:
    """The way to a trigger's task's keys, where Airflow gives triggers one.

    Args:
        trigger: In a triggerer, or in the task that defers to it.
        whose: The task.

    Raises:
        SettingsError: This Airflow does not.
    """
    if not reaches_task_store(trigger):
        raise SettingsError(
            "the dsn airflow: cannot keep a trigger's state: this Airflow does not let triggers reach the task store;"
            f" {_INSTEAD}"
        )
    accessor = task_store_of(trigger)
    if accessor is None:
        return channel_for(whose.scope, whose)
    return TriggererChannel(accessor, expires=True)


def no_state_across_iterations() -> SettingsError:
    """What is said to a task in a loop that asks for one state over all iterations."""
    return SettingsError(
        "the dsn airflow: keeps the state of each iteration of a loop, and Airflow's own store has none over all of"
        f" them; {_INSTEAD}"
    )


_INSTEAD: Final = "set [async_task_state] dsn to sqlite:///path or postgresql://..., or leave it empty"


@dataclass(slots=True)
class AirflowStore:
    """The keys of one scope, by way of a channel.

    What other stores promise and this one cannot: the changes of a flush are requests of their own, so a crash between
    two of them leaves the first only; and there is no lease but Airflow's, which refuses attempts that are over.

    Args:
        scope: Whose keys.
        channel: The way to Airflow.
        index: What Airflow has, as far as is known: each key, and the text of a small one of our own.
    """

    scope: Scope
    channel: Channel
    index: dict[str, str | None] = field(default_factory=dict)

    async def load(self) -> dict[str, str]:
        """Every key and its text, with one request each and one for the index."""
        await self._read_index()
        entries = {}
        for key, text in self.index.items():
            found = text if text is not None else await self.look(key)
            if found is not None:
                entries[key] = found
        return entries

    async def look(self, key: str) -> str | None:
        """The text of one key, in the index or not."""
        value = await self._asked(self.channel.get(key))
        with reading(self.scope, f"key {key!r}"):
            return None if value is None else encode_json(value)

    async def commit(self, batch: Batch) -> None:
        """Save what a batch changes; what was saved when this raises is saved again by the next try.

        Raises:
            StaleWriterError: Airflow does not know this attempt any more.
            StoreUnavailableError: Airflow does not answer, or refuses.
        """
        if batch.cleared:
            await self._asked(self.channel.clear())
            self.index = {}
        if batch.changes and isinstance(self.scope, AssetScope):
            # Others save beside: watchers, and tasks. What they have cleared must be named again.
            await self._read_index()
        kept = self._index_after(batch)
        gone = {key for key, (text, _) in batch.changes.items() if text is None}
        # Names first, for a key that the index does not name would not be found; names that go, and small texts, last: of
        # a text that becomes large the index has the old one until the new one is saved, and an item is not done
        # before the values that belong to it.
        new = {key: None for key, text in kept.items() if text is None and key not in self.index}
        if new:
            await self._write_index({**self.index, **new})
        for key, (text, retention) in batch.changes.items():
            if text is not None and kept[key] is None:
                # Airflow knows expiries of keys and none of states: what lives with its state lives with its run there.
                keep = (
                    timedelta(seconds=retention) if retention and math.isfinite(retention) else NEVER_EXPIRE
                )
                await self._asked(self.channel.set(key, decode(text), keep))
        for key in sorted(gone):
            await self._asked(self.channel.delete(key))
        if self.index != kept:
            await self._write_index(kept)

    def _index_after(self, batch: Batch) -> dict[str, str | None]:
        index = dict(self.index)
        for key, (text, _) in batch.changes.items():
            index.pop(key, None)
            if text is not None:
                index[key] = text if key.startswith(RESERVED_PREFIX) and len(text) <= SMALL_CHARS else None
        return index

    async def _read_index(self) -> None:
        index = await self._asked(self.channel.get(INDEX)) or {}
        if not isinstance(index, dict) or not all(
            text is None or isinstance(text, str) for text in index.values()
        ):
            raise damaged(self.scope, f"key {INDEX!r}", "it is no index of keys")
        self.index = index

    async def _write_index(self, index: dict[str, str | None]) -> None:
        await self._asked(self.channel.set(INDEX, index, NEVER_EXPIRE))
        self.index = index

    async def _asked(self, request: Awaitable[Any]) -> Any:
        try:
            return await request
        except AsyncTaskStateError:
            raise
        except Exception as error:
            detail = getattr(getattr(error, "error", None), "detail", None)
            if isinstance(detail, dict) and detail.get("status_code") == HTTP_NOT_FOUND:
                if isinstance(self.scope, AssetScope):
                    raise StoreError(
                        f"Airflow knows no active asset of that name or URI: {self.scope}"
                    ) from error
                raise StaleWriterError(
                    f"Airflow does not know this attempt any more, and nothing more of it is saved ({error})"
                ) from error
            raise StoreUnavailableError(f"Airflow's own store: {error}") from error
