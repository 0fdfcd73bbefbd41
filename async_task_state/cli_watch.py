"""`async-task-state watch`: one state while it changes, or those of all map indexes of a task."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.live import Live

from async_task_state.cli_check import no_database
from async_task_state.cli_instances import Instances
from async_task_state.cli_progress import states_text
from async_task_state.cli_scope import in_its_region, others_text
from async_task_state.cli_views import iso, scope_document, user_values
from async_task_state.cli_watch_views import Lines, watch_view
from async_task_state.errors import StoreUnavailableError
from async_task_state.scopes import TaskScope
from async_task_state.stores import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from async_task_state.cli_progress import WatchedMany, WatchedState
    from async_task_state.cli_views import Screen
    from async_task_state.stores import Store

__all__ = ["follow", "writing"]

Write: TypeAlias = "Callable[[WatchedMany, str | None, bool], None]"
"""Takes what is known, what to tell the person besides, and whether the store has just been read."""


async def follow(
    dsn: str, store: Store, view: WatchedMany, write: Write, *, interval: float, until: int | None
) -> str | None:
    """Look, write, wait, until so many items are done or nothing more can come.

    Args:
        dsn: Names the store.
        store: The one to look into.
        view: What takes in each look.
        write: Is called after each look.
        interval: Seconds between looks.
        until: How many items; None goes on to the end of the task.

    Returns:
        What has ended the watch; None where that is `until`.
    """
    scope = view.scope
    if not isinstance(scope, TaskScope):
        return await _follow(dsn, store, view, write, None, interval=interval, until=until)
    instances = Instances(scope, all_indexes=not view.is_exact, interval=interval)
    try:
        return await _follow(dsn, store, view, write, instances, interval=interval, until=until)
    finally:
        instances.stop()


async def _follow(
    dsn: str,
    store: Store,
    view: WatchedMany,
    write: Write,
    instances: Instances | None,
    *,
    interval: float,
    until: int | None,
) -> str | None:
    while True:
        # Before the look, which then sees all that there was.
        ended = instances is not None and instances.ended
        note = await _look(dsn, store, view)
        if instances is not None:
            view.instances = instances.found
        unknown = "" if instances is None else instances.unknown
        end = _of_task(view) if ended else _of_state(view) if unknown is not None else None
        fresh = note is None
        if note is not None and not view.states and instances is not None and instances.missing is not None:
            note = f"{note}; Airflow knows {instances.missing}"
        if end is not None:
            note = None
            view.end()
        elif fresh and unknown and until is None:
            note = f"when the task ends is not known here: {unknown}; Ctrl-C ends this"
        write(view, note, fresh or (end is not None and bool(view.states)))
        if end is not None or (until is not None and view.done >= until):
            return end
        if instances is not None and not instances.has_begun:
            instances.begin()
        await asyncio.sleep(interval)


def _of_task(view: WatchedMany) -> str:
    """How the task has ended, once nothing of it can change any more."""
    deleted = "; its state was deleted" if view.bring_back() else ""
    how = states_text(view.instances) or "it is gone from Airflow"
    return f"{view.scope} has ended: {how}{deleted}"


def _of_state(view: WatchedMany) -> str | None:
    """Why nothing more can come where no task is known that could say so; None where it can."""
    if view.is_gone:
        return f"what was stored for {view.scope} was deleted"
    return f"all items of {view.scope} are done" if view.is_done else None


async def _look(dsn: str, store: Store, view: WatchedMany) -> str | None:
    if absent := no_database(dsn):
        return f"waiting: {absent}"
    try:
        if not view.is_mapped:
            snapshot = await store.read(view.scope)
            if snapshot is None:
                view.scope = await in_its_region(store, view.scope)
                snapshot = await store.read(view.scope)
            if snapshot is not None:
                view.take(snapshot)
                return None
        if not view.is_exact and await _look_at_all(store, view):
            return None
        others = await others_text(store, view.scope)
    except StoreUnavailableError as error:
        return f"trying again: {error}"
    if view.states:
        view.is_gone = True
        return f"what was stored for {view.scope} was deleted"
    return f"waiting: nothing is stored yet for {view.scope}{others}"


async def _look_at_all(store: Store, view: WatchedMany) -> bool:
    """Take in the states of all map indexes, by one query; whether there is one."""
    dag_id, run_id, task_id, _, region = view.scope.row
    infos = [
        info
        for info in await store.scopes(Wanted(dag_id, run_id, task_id))
        if region in ("", info.scope.row[4])
    ]
    for info in infos:
        state = view.state(info.scope)
        if state.lacks_total and (snapshot := await store.read(info.scope)) is not None:
            state.find_total(user_values(snapshot))
    if infos:
        view.take_listing(infos)
    return bool(infos)


@contextmanager
def writing(screen: Screen, *, as_json: bool) -> Iterator[Write]:
    """Where a watch goes: drawn over itself on a terminal, else a line for each look."""
    if screen.is_live and not as_json:
        with Live(console=screen.console, auto_refresh=False) as live:
            yield lambda view, note, _: live.update(
                watch_view(view, note, screen.console.height), refresh=True
            )
        return
    noted: str | None = None
    lines = Lines()

    def write(view: WatchedMany, note: str | None, fresh: bool) -> None:
        nonlocal noted
        if note is not None and note != noted:
            screen.note(note)
        noted = note
        if not fresh:
            return
        if as_json:
            for state in view.states.values():
                screen.document(watch_document(view, state), indent=None)
        else:
            for line in lines.of(view):
                screen.show(line)

    yield write


def watch_document(view: WatchedMany, state: WatchedState) -> dict[str, Any]:
    """One state at one moment of a watch."""
    now = state.now
    return {
        "time": iso(time.time()),
        **scope_document(state.scope),
        "state": view.airflow_state(state.scope),
        "attempt": now.attempt,
        "epoch": now.epoch,
        "values": now.values,
        "work": [
            {
                "name": work.name,
                "done": work.done,
                "failed": work.failed,
                "total": work.total,
                "rate": None if work.rate is None else round(work.rate, 3),
                "seconds_left": None if work.seconds_left is None else round(work.seconds_left, 1),
            }
            for work in now.works
        ],
    }
