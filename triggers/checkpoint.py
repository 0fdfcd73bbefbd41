"""The base of triggers that keep state."""

from __future__ import annotations

import asyncio
import functools
from abc import abstractmethod
from contextlib import aclosing, nullcontext
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar, Final

from airflow.configuration import conf
from airflow.triggers.base import BaseTrigger

from async_task_state.errors import AsyncTaskStateError, NoScopeError, StaleWriterError, StateNotOpenError
from async_task_state.instances import state_in_airflow
from async_task_state.runs import run_of
from async_task_state.scopes import RunningTask, TaskScope, running_task
from async_task_state.state import OnClear, TaskState, configured
from async_task_state.stores.airflow import DSN as AIRFLOW
from async_task_state.stores.airflow import trigger_channel
from async_task_state.sync import SyncTaskState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from airflow.triggers.base import TriggerEvent

    from async_task_state.stores import Store

__all__ = ["CheckpointTrigger"]

TO_RUN_AGAIN: Final = frozenset({"scheduled", "queued", "running"})
"""Airflow's states of a task that was cleared, and of one that is told in the worker that it has timed out."""

CLOCKS_DIFFER: Final = timedelta(minutes=1)
"""By how much, at most."""


class CheckpointTrigger(BaseTrigger):
    """A trigger whose state is that of the task that deferred to it, and outlives the triggerer.

    Subclasses write `serialize()`, as for any trigger, and `run_with_state()` in place of `run()`. When the triggerer
    dies, or the trigger is moved to another one, the next process is given what was checkpointed.

    Two triggerers may run the same trigger for a while. The one that opened the state last owns it; the other ends
    quietly, as cancelled, for a trigger that fails makes Airflow fail the task.

    Attributes:
        max_delay: Seconds until a checkpoint is durable, at most; None takes `[async_task_state] max_delay`.
        store: A dsn or a store of its own; None takes `[async_task_state] dsn`, as the task does.
        on_clear: What is found when a user has cleared the task: see `async_task_state.task_state`. May be a method
            that takes the values there were and returns those that are kept.
    """

    max_delay: float | None = None
    store: str | Store | None = None
    on_clear: OnClear | None = None

    _state: TaskState | None = None
    _fired = False
    _killing: asyncio.Future[None] | None = None
    _deferred_by: RunningTask | None = None
    # dag.test() runs a trigger in the process of the task that deferred, and does not tell it whose it is.
    _deferring: ClassVar[RunningTask | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "serialize" in cls.__dict__:
            # Airflow's last call in the worker before the task is deferred.
            cls.serialize = _beginning(cls.serialize)  # type: ignore[method-assign]
        if cls.run is not CheckpointTrigger.run and not hasattr(cls.run, "notes_events"):
            cls.run = _noting_events(cls.run)  # type: ignore[method-assign]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._deferred_by = running_task()
        CheckpointTrigger._deferring = self._deferred_by or CheckpointTrigger._deferring

    @abstractmethod
    def run_with_state(self, state: TaskState) -> AsyncGenerator[TriggerEvent, None]:
        """What the trigger does, as an async generator that yields its events.

        Args:
            state: Open; what was recorded in it is durable before an event leaves.
        """

    async def on_user_kill(self, state: TaskState) -> None:
        """Called when a user cleared or marked the task: the place to cancel remote work.

        Not called when the trigger was only moved to another triggerer, which Airflow's `on_kill` cannot tell apart.
        Airflow bounds its time by `[triggerer] on_kill_timeout`.

        Args:
            state: Open, under the lease that `run_with_state` had.
        """

    def task_state(self) -> TaskState:
        """The state of the task that deferred to this trigger, for an author who writes `run()` by hand.

        Raises:
            NoScopeError: No task instance is known: the trigger watches an asset, or runs outside a triggerer.
        """
        task_instance: Any = self.task_instance
        if task_instance is not None:
            attempt, run = task_instance.try_number, run_of(task_instance)
            whose = RunningTask(TaskScope.from_airflow(task_instance), attempt, None, run)
        elif CheckpointTrigger._deferring is not None:
            whose = CheckpointTrigger._deferring
        else:
            raise NoScopeError(
                f"{type(self).__name__} has no task instance: only a trigger that a task deferred to has a task's state"
            )
        self._state = self._state_of(whose)
        return self._state

    def _state_of(self, whose: RunningTask) -> TaskState:
        store, settings = configured(self.store)
        if store == AIRFLOW:
            store = trigger_channel(self)
        return TaskState(
            whose.scope,
            attempt=whose.attempt,
            run=whose.run,
            store=store,
            settings=settings,
            max_delay=self.max_delay,
            on_clear=self.on_clear,
            max_tries=whose.max_tries,
        )

    def _begin(self) -> None:
        """Open the state in the task that defers: only there is it known whether a user has cleared the task."""
        whose, self._deferred_by = self._deferred_by, None
        if whose is not None:
            with SyncTaskState(self._state_of(whose)):
                pass

    async def run(self) -> AsyncGenerator[TriggerEvent, None]:
        """Open the state, run the author's part, and let no event leave before what it rests on is durable."""
        try:
            async with self.task_state() as state, aclosing(self._events(state)) as events:
                async for event in events:
                    yield event
        except (GeneratorExit, asyncio.CancelledError):
            raise
        except BaseException as error:
            if not await self._is_fenced(error):
                raise
            self.log.info(
                "another trigger or a later attempt has taken over: ending without an event (%s)", error
            )
            raise asyncio.CancelledError from error

    async def on_kill(self) -> None:
        """Call `on_user_kill` if this trigger still owns the state; not if it was only moved, or has fired."""
        # In a task of its own: Airflow cancels a trigger anew every second or so until it has ended, and this with it.
        bounded = asyncio.wait_for(self._kill(), conf.getint("triggerer", "on_kill_timeout", fallback=30))
        self._killing = asyncio.ensure_future(bounded)
        self._killing.add_done_callback(self._note_killed)
        await asyncio.shield(self._killing)

    def _note_killed(self, killing: asyncio.Future[None]) -> None:
        if not killing.cancelled() and (error := killing.exception()) is not None:
            self.log.error("on_kill has failed: %r", error)

    async def _kill(self) -> None:
        state = self._state
        # Airflow also kills a trigger whose event has resumed the task, which then looks after itself.
        if state is None or self._fired:
            return
        try:
            if not await state.is_current():
                self.log.info("on_user_kill is not called: another trigger or attempt has taken over")
                return
        except StateNotOpenError:
            self.log.warning("killed while its state was being opened: on_user_kill is not called")
            return
        # Where it was moved nobody may have taken over yet.
        task_state = await state_in_airflow(state.scope)
        if not self._is_users_kill(task_state):
            self.log.info("on_user_kill is not called: the task is %s in Airflow", task_state)
            return
        async with state:
            await self.on_user_kill(state)

    def _is_users_kill(self, task_state: str | None) -> bool:
        """Whether a kill is a user's, by Airflow's state of the task; None if it does not answer."""
        if task_state in TO_RUN_AGAIN and self._may_be_timing_out:
            return False
        return task_state != "deferred"

    @property
    def _may_be_timing_out(self) -> bool:
        """Whether the deferral is over by the scheduler's clock, which ends it, though not yet by this one's."""
        timeout: datetime | None = getattr(self, "timeout_after", None)
        if timeout is None:
            return False
        if timeout.tzinfo is None:
            timeout = timeout.replace(tzinfo=timezone.utc)
        return timeout - datetime.now(timezone.utc) < CLOCKS_DIFFER

    async def _events(self, state: TaskState) -> AsyncGenerator[TriggerEvent, None]:
        async with aclosing(self.run_with_state(state)) as events:
            async for event in events:
                # An event resumes the task, which opens the state and so fences what is not saved yet; and the event
                # of a trigger that was replaced must not leave at all.
                if not await state.is_current():
                    raise StaleWriterError(f"{state.scope} has another holder")
                self._fired = True
                yield event

    async def _is_fenced(self, error: BaseException) -> bool:
        """Whether an error ends a trigger that has been replaced: then it is nobody's failure."""
        if isinstance(error, StaleWriterError):
            return True
        if self._state is None:
            return False
        try:
            return not await self._state.is_current()
        except AsyncTaskStateError:
            return False


def _noting_events(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    async def run_and_note(self: CheckpointTrigger) -> AsyncGenerator[TriggerEvent, None]:
        events = run(self)
        async with aclosing(events) if hasattr(events, "aclose") else nullcontext():
            async for event in events:
                self._fired = True
                yield event

    run_and_note.notes_events = True  # type: ignore[attr-defined]
    return run_and_note


def _beginning(serialize: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(serialize)
    def begin_and_serialize(self: CheckpointTrigger) -> Any:
        self._begin()
        return serialize(self)

    return begin_and_serialize
