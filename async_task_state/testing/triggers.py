"""Running a trigger as the triggerer does, and ending it in every way that the triggerer can."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from threading import Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

from airflow.models.trigger import Trigger

from async_task_state.codec import MAX_TRIES
from async_task_state.connections import writer_of
from async_task_state.digests import work_records
from async_task_state.errors import InvalidArgumentError, StaleWriterError
from async_task_state.records import author_values
from async_task_state.results import WorkCounts
from async_task_state.scopes import RunningTask, TaskScope
from async_task_state.settings import load_settings
from async_task_state.stores.memory import MemoryStore
from async_task_state.sync import SyncTaskState
from async_task_state.testing.runs import run_made
from async_task_state.waiting import turn_at_each_call
from async_task_state.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.triggers.base import TriggerEvent

    from async_task_state.runs import Run
    from async_task_state.state import TaskState
    from async_task_state.triggers.checkpoint import CheckpointTrigger

__all__ = ["TriggerRun", "run_trigger"]

USER_ACTION: Final = "__airflow_user_action__"
"""The message of the cancellation by which Airflow tells `on_kill` is wanted."""

_instances: WeakKeyDictionary[CheckpointTrigger, dict[tuple[int, TaskScope, int], int]] = WeakKeyDictionary()
"""In which order the task instances of loops were made, which one state over all iterations goes by."""
_stores: WeakKeyDictionary[CheckpointTrigger, MemoryStore] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class TriggerRun:
    """What one run of a trigger left.

    Attributes:
        events: What it fired, in order.
        values: Every key of its state, as the next process will find it.
        work: How many items of each work set are done and failed.
        recorded: How many calls of this run have changed the state: a run that resumes records only what is left.
    """

    events: list[TriggerEvent]
    values: dict[str, Any]
    work: dict[str, WorkCounts]
    recorded: int


async def run_trigger(
    trigger: CheckpointTrigger,
    *,
    stop: Literal["shutdown", "crash", "user_kill", "clear", "move"] | None = None,
    when: Callable[[TaskState], bool] | None = None,
    scope: TaskScope | None = None,
    attempt: int = 1,
    run: int = 1,
    timeout: float = 30.0,
) -> TriggerRun:
    """Run a trigger as the triggerer does; on asyncio, as the triggerer is.

    Each run makes a new trigger from what `trigger.serialize()` gives, through Airflow's own serialization, so
    nothing that was set on `self` survives. All runs of one `trigger` share one store in memory: what was durable
    when a run ended is what the next one finds. That a trigger resumes takes five lines to prove:

        async def test_resumes():
            trigger = WaitForPages(pages=10)
            await run_trigger(trigger, stop="shutdown", when=lambda state: state.stats.recorded == 5)
            run = await run_trigger(trigger)
            assert (run.values["next"], run.recorded) == (10, 5)

    Args:
        trigger: What to run; it is not run itself. Its `store`, if it has one, is used in place of the one in memory.
        stop: How to end it before it ends by itself. "shutdown": cancelled, as by SIGTERM to the triggerer. "crash":
            what is not durable is lost, as by SIGKILL; the trigger's own `finally` blocks do run, but cannot save
            anything. "user_kill": cancelled and `on_kill()` called, as when a user marks the task, or clears it and the
            triggerer is the first to learn of it. "clear": the same, after the worker of the next attempt has opened the
            state, found the clear and emptied it; go on with `attempt + 1`. "move": the same, after another holder has
            opened the state, as when another triggerer took over.
        when: Called with the open state until it is true; then the trigger is stopped. It is called at every turn of
            the event loop, and every call that records gives one; those of several tasks, as in `WorkSet.process`,
            may share one, so compare with `>=` there. None stops it as soon as its state is open.
        scope: The task it belongs to; one with a region is an iteration of a loop, whose number is its `map_index`. For
            one state over all iterations an attempt counts as made when it is first run here.
        attempt: That task's try number.
        run: Which of the runs made under the same id: a higher number is one that was made again after the earlier one
            was deleted, and starts over.
        timeout: Seconds after which `TimeoutError` is raised.

    Returns:
        The events, and what is durable.

    Raises:
        InvalidArgumentError: `stop` is not one of the five.
        AssertionError: The trigger ended before `when` was true.
        Exception: Whatever the trigger raises; Airflow would fail the task.
    """
    if stop not in (None, "shutdown", "crash", "user_kill", "clear", "move"):
        raise InvalidArgumentError(
            f"stop must be 'shutdown', 'crash', 'user_kill', 'clear', 'move' or None, not {stop!r}"
        )
    scope = scope or TaskScope("dag", "run", "task")
    running = _rebuild(trigger, scope, attempt, run)
    events: list[TriggerEvent] = []
    task = asyncio.create_task(_drive(running, events))
    try:
        if stop is not None:
            with turn_at_each_call():
                await _until(running, task, when, time.monotonic() + timeout)
            _stop(running, task, stop, partial(_run_of, trigger, scope, attempt + 1, run))
        done, _ = await asyncio.wait([task], timeout=timeout)
        if not done:
            raise TimeoutError(f"the trigger has not ended within {timeout:g} s; events so far: {events}")
    finally:
        task.cancel()
        await asyncio.wait([task])
    # Airflow drops a trigger that ended as cancelled without a word.
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
    return await _outcome(running, scope, events)


def _rebuild(trigger: CheckpointTrigger, scope: TaskScope, attempt: int, run: int) -> CheckpointTrigger:
    class_path, arguments = trigger.serialize()
    arguments = Trigger._decrypt_kwargs(Trigger.encrypt_kwargs(arguments))
    running: CheckpointTrigger = resolve_name(class_path)(**arguments)
    running.store = trigger.store or _stores.setdefault(trigger, MemoryStore())
    task_instance: Any = SimpleNamespace(
        id=_run_of(trigger, scope, attempt, run).instance,
        dag_id=scope.dag_id,
        run_id=scope.run_id,
        task_id=scope.task_id,
        # As in a loop: the index in the region is what tells iterations apart.
        map_index=scope.map_index if scope.region_id is None else -1,
        region_id=scope.region_id,
        region_index=scope.map_index,
        try_number=attempt,
    )
    running.task_instance = task_instance
    return running


def _run_of(trigger: CheckpointTrigger, scope: TaskScope, attempt: int, run: int) -> Run:
    if scope.region_id is None:
        return run_made(run, attempt)
    made = _instances.setdefault(trigger, {})
    # An earlier attempt was made before a later one, whether it is run here or not.
    for each in range(min(attempt, 1), attempt + 1):
        made.setdefault((run, scope, each), len(made) + 1)
    return run_made(run, made[run, scope, attempt])


async def _drive(trigger: CheckpointTrigger, events: list[TriggerEvent]) -> None:
    """What the triggerer does with a trigger, in its own order."""
    try:
        async for event in trigger.run():
            events.append(event)  # noqa: PERF401 - what was fired before an error must not be lost
    except asyncio.CancelledError as error:
        if error.args == (USER_ACTION,):
            await trigger.on_kill()
        raise
    finally:
        await trigger.cleanup()


async def _until(
    trigger: CheckpointTrigger,
    task: asyncio.Task[None],
    when: Callable[[TaskState], bool] | None,
    deadline: float,
) -> None:
    while not ((state := trigger._state) is not None and state.is_open and (when is None or when(state))):
        if task.done():
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
            raise AssertionError("the trigger ended before when() was true")
        if time.monotonic() > deadline:
            raise TimeoutError("when() has not become true in time")
        await asyncio.sleep(0)


def _stop(
    trigger: CheckpointTrigger, task: asyncio.Task[None], how: str, next_run: Callable[[], Run]
) -> None:
    state = trigger._state
    if state is None or state._pending is None:
        raise AssertionError("only a trigger whose state is open is stopped")
    if how == "crash":
        state._pending.abandon(StaleWriterError("run_trigger() has crashed this trigger"))
    elif how in ("move", "clear"):
        writer = state._pending._writer
        if not isinstance(writer, Writer):
            raise AssertionError("only a trigger whose state has a lease is moved or cleared")
        # Without letting the event loop run: the trigger stands still meanwhile, as in a triggerer that is frozen.
        if how == "move":
            writer.ask(writer.store.acquire, state.scope, state.attempt)
        else:
            # As the worker has noted it when it deferred.
            writer.ask(writer.store.write, state.scope, {MAX_TRIES: ("0", None)})
            next_worker = Thread(target=_find_clear, args=(trigger, state, next_run()))
            next_worker.start()
            next_worker.join()
    task.cancel(*([USER_ACTION] if how in ("user_kill", "clear", "move") else []))


def _find_clear(trigger: CheckpointTrigger, state: TaskState, next_run: Run) -> None:
    """Open the state as the next attempt's worker does after a clear, which has changed how many tries there are."""
    attempt = state.attempt + 1
    task = RunningTask(state.scope, attempt, attempt, next_run)
    with SyncTaskState(trigger._state_of(task, trigger.serialize()[0])):
        pass


async def _outcome(trigger: CheckpointTrigger, scope: TaskScope, events: list[TriggerEvent]) -> TriggerRun:
    if trigger.store is None:
        raise AssertionError("run_trigger() gives every trigger a store")
    writer = await writer_of(trigger.store, load_settings())
    snapshot = await writer.call(writer.store.read, scope)
    entries = {} if snapshot is None else snapshot.entries
    values = author_values(scope, entries)
    work = {
        name: WorkCounts(record.done, len(record.failures))
        for name, record in work_records(scope, entries).items()
    }
    recorded = 0 if trigger._state is None else trigger._state.stats.recorded
    return TriggerRun(events, values, work, recorded)
