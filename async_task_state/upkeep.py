"""Deleting what nobody will ask for any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from async_task_state.runs import run_of
from async_task_state.scopes import TaskScope
from async_task_state.state import configured
from async_task_state.stores import Batch

if TYPE_CHECKING:
    from async_task_state.stores import Store

__all__ = ["clear_state_of", "purge", "purge_all", "purge_sync"]


async def purge(store: str | None = None) -> int:
    """Delete keys past their retention, and states of tasks that have not been in use for the default retention.

    In small transactions, so that whoever is at work is not held up; what `async-task-state purge` does, for a
    task that is to do it.

    Args:
        store: A dsn or `conn_id:NAME`; None takes `[async_task_state] dsn` or `conn_id`.

    Returns:
        How many rows were deleted.

    Raises:
        SettingsError: The store is malformed, or Airflow's own, which `airflow state-store clean` purges.
        StoreError: It cannot serve; what was deleted until then is gone.
    """
    from async_task_state.connections import resolved  # noqa: PLC0415 - loads asyncio, 50 ms
    from async_task_state.lent import LentStore  # noqa: PLC0415 - the same
    from async_task_state.lifetime import writer_for  # noqa: PLC0415 - the same

    given, settings = configured(store)
    # By the writer's own connection: a second one would be a second owner of its file, or one too many for a server.
    return await purge_all(LentStore(writer_for(await resolved(str(given)), settings)))


async def purge_all(store: Store) -> int:
    """Have a store purge until nothing is left; how many rows were deleted."""
    purged = 0
    while deleted := await store.purge():
        purged += deleted
    return purged


def purge_sync(store: str | None = None) -> int:
    """The same for code that does not await."""
    import asyncio  # noqa: PLC0415 - 50 ms

    return asyncio.run(purge(store))


def clear_state_of(task_instance: Any) -> None:
    """Delete all that the task of an Airflow task instance has stored, in the store that is configured.

    Under a lease: Airflow lets an attempt believe that it has succeeded though it has been replaced.

    Raises:
        StaleAttemptError: A later attempt or a newer run has opened the state, and keeps it.
        AsyncTaskStateError: It could not be deleted.
    """
    import asyncio  # noqa: PLC0415 - loaded by now

    from async_task_state.connections import writer_of  # noqa: PLC0415 - loads asyncio
    from async_task_state.writer import Writer  # noqa: PLC0415

    async def clear() -> None:
        store, settings = configured(None)
        writer = await writer_of(store, settings)
        # What is in Airflow's own store is Airflow's to clear: [state_store] clear_on_success.
        if not isinstance(writer, Writer):
            return
        scope = TaskScope.from_airflow(task_instance)
        if await writer.call(writer.store.read, scope) is not None:
            attempt, run = task_instance.try_number, run_of(task_instance)
            held = await writer.call(writer.store.acquire, scope, attempt, run)
            await writer.call(writer.store.commit, [Batch(held.lease, {}, cleared=True)])

    asyncio.run(clear())
