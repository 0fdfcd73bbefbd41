"""The base of triggers that keep state."""

from __future__ import annotations

import asyncio
import functools
import time
from abc import abstractmethod
from contextlib import aclosing, nullcontext
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import uuid4

from airflow.configuration import conf
from airflow.triggers.base import BaseTrigger

from async_task_state import claims
from async_task_state.compat import iteration_of, releases_moved_triggers
from async_task_state.errors import (
    AsyncTaskStateError,
    NoScopeError,
    StaleAttemptError,
    StaleWriterError,
    StateNotOpenError,
)
from async_task_state.instances import TRIGGERER_SECONDS, is_users_kill, state_in_airflow
from async_task_state.runs import run_of
from async_task_state.scopes import RunningTask, TaskScope, over_iterations, running_task
from async_task_state.state import OnClear, TaskState, configured
from async_task_state.stores.airflow import DSN as AIRFLOW
from async_task_state.stores.airflow import no_state_across_iterations, trigger_channel
from async_task_state.sync import SyncTaskState
from async_task_state.text import COMMANDING, plain, told
from async_task_state.wire import carried, check_payload

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from airflow.triggers.base import TriggerEvent

    from async_task_state.stores import Store

__all__ = ["CheckpointTrigger"]

CLOCKS_DIFFER: Final = timedelta(minutes=1)
"""By how much, at most."""

CLAIM_SECONDS: Final = 5.0
"""How much longer than `on_user_kill` may take its claim counts."""


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
    _is_owed_kills: ClassVar[bool] = True
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

        A clear is followed by one call, whichever process finds it first: by this trigger when Airflow kills it, else by
        the next trigger of the same class that the task defers to, before that one runs. The call may be made twice
        where a process dies, or a trigger is moved, during it. Where `on_clear` is "resume" a clear is followed by
        none, because the task goes on with what it has left; nor where a user of Airflow 3.4 keeps the state at the clear,
        unless Airflow kills this trigger before the next attempt opens the state. A task that is marked as failed or as successful has
        no next trigger: where no triggerer is alive then, the call is made after the next clear, if there is one.

        Not called when the trigger was only moved to another triggerer, which Airflow's `on_kill` cannot tell apart, nor
        for a run that was deleted and made again, nor before Airflow has said whose kill it is, which Airflow 3.4 needs only
        near a timeout: where it says nothing for 25 seconds a clear is left to the next trigger. An error is logged, and it is not called again. `[triggerer]
        on_kill_timeout` bounds its time.

        Args:
            state: Open, with the values that the killed trigger had. Where the next attempt has opened the state since,
                it has no work sets, and what is recorded in it is dropped, as by the clear.
        """

    def task_state(self, *, across_iterations: bool = False) -> TaskState:
        """The state of the task that deferred to this trigger, for an author who writes `run()` by hand.

        Args:
            across_iterations: Of a task in a loop, the one state over all iterations, as for
                `async_task_state.task_state`; it is opened inside `run_with_state`, too.

        Raises:
            NoScopeError: No task instance is known: the trigger watches an asset, or runs outside a triggerer.
            SettingsError: The store is malformed, or Airflow's own, which has no state over all iterations.
        """
        whose = self._whose()
        # It is deferred by now, also where dag.test() runs it in the process of its task.
        self._deferred_by = None
        if across_iterations and (whose.over is not None or self._state is not None):
            over = whose.over or whose
            return self._state_of(over, None, after_clear=over.after_clear)
        self._state = self._state_of(whose, self.serialize()[0], on_open=self._call_what_is_owed)
        return self._state

    def _whose(self) -> RunningTask:
        task_instance: Any = self.task_instance
        if task_instance is not None:
            attempt, run = task_instance.try_number, run_of(task_instance)
            # No number of tries reaches a trigger: the worker has noted a clear in the iteration's own state.
            own = self._state if self._state is not None and self._state.is_open else None
            cleared = own is not None and own.cleared and not claims.keeps_all(own)
            after_clear = cleared and iteration_of(task_instance) == 0
            over = over_iterations(task_instance, run, after_clear=after_clear)
            return RunningTask(TaskScope.from_airflow(task_instance), attempt, None, run, over=over)
        if CheckpointTrigger._deferring is not None:
            return CheckpointTrigger._deferring
        raise NoScopeError(
            f"{type(self).__name__} has no task instance: only a trigger that a task deferred to has a task's state"
        )

    def _state_of(self, whose: RunningTask, class_path: str | None, **options: Any) -> TaskState:
        store, settings = configured(self.store)
        # In Airflow's own store nothing is claimed, because no write there can expect what is stored.
        is_owed = self._is_owed_kills and self._has_kill_hook and store != AIRFLOW
        if store == AIRFLOW:
            if whose.attempt is None:
                raise no_state_across_iterations()
            store = trigger_channel(self, whose)
        return TaskState(
            whose.scope,
            attempt=whose.attempt,
            run=whose.run,
            store=store,
            settings=settings,
            max_delay=self.max_delay,
            on_clear=self.on_clear,
            max_tries=whose.max_tries,
            begun=whose.begun,
            deferring=whose,
            trigger=class_path if is_owed else None,
            **options,
        )

    @property
    def _has_kill_hook(self) -> bool:
        return type(self).on_user_kill is not CheckpointTrigger.on_user_kill

    def _begin(self, whose: RunningTask, class_path: str) -> None:
        """Open the state in the task that defers: only there is it known whether a user has cleared the task."""
        with SyncTaskState(self._state_of(whose, class_path)):
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
                if (escaped := carried(error)) is not error:
                    raise escaped from None
                raise
            self.log.info("ending without an event, because the state was taken over or cleared (%s)", error)
            if not isinstance(error, StaleAttemptError):
                # It may have been a clear, of which Airflow does not tell a trigger that has ended.
                await asyncio.wait([self._begin_to_kill()])
            raise asyncio.CancelledError from error

    async def on_kill(self) -> None:
        """Call `on_user_kill` if a user has cleared or marked the task; not if it was only moved, or has fired."""
        await asyncio.shield(self._begin_to_kill())

    def _begin_to_kill(self) -> asyncio.Future[None]:
        # In a task of its own: Airflow cancels a trigger anew every second or so until it has ended, and this with it.
        if self._killing is None:
            self._killing = asyncio.ensure_future(self._kill())
            self._killing.add_done_callback(self._note_killed)
        return self._killing

    def _note_killed(self, killing: asyncio.Future[None]) -> None:
        if not killing.cancelled() and (error := killing.exception()) is not None:
            self.log.error(
                "on_user_kill has failed, and is not called again: %s",
                plain(told(error, repr)),
                exc_info=carried(error, COMMANDING),
            )

    async def _kill(self) -> None:
        state = self._state
        # Airflow also kills a trigger whose event has resumed the task, which then looks after itself.
        if state is None or self._fired or not self._has_kill_hook:
            return
        claim, called = uuid4().hex, False
        error: Exception | None = None
        try:
            if await state.is_current():
                if not await self._is_users_kill(state):
                    return
                async with state:
                    await claims.claim_lease(state, claim)
                    error = await self._call_on_user_kill(state)
                    called = True
                    claims.forget_trigger(state)
        except StateNotOpenError:
            self.log.warning("killed while its state was being opened: on_user_kill is not called")
        except StaleWriterError:
            error = await self._kill_after_clear(state, claim, called=called) or error
        else:
            if not called:
                error = await self._kill_after_clear(state, claim, called=False)
        if error is not None:
            raise error

    async def _kill_after_clear(self, state: TaskState, claim: str, *, called: bool) -> Exception | None:
        """Make the call that is owed if it was a clear that has taken the lease; the error that it raised."""
        key = await claims.wait_for_note(state)
        note = None if key is None else await claims.claim_note(state, key, claim)
        if note is None:
            self.log.info(
                "on_user_kill is not called here: another trigger or attempt has taken over, and calls it if a user has cleared the task"
            )
            return None
        error = None
        if not called:
            async with claims.private_state(state, claims.held_values(state)) as left:
                error = await self._call_on_user_kill(left)
        await claims.remove(state, note)
        return error

    async def _call_what_is_owed(self, state: TaskState) -> None:
        """Make the calls that clears owe to earlier triggers of the task, before this one runs."""
        for owed in claims.notes_of(state):
            if not claims.is_owed_to(owed, state):
                self.log.warning(
                    "a user has cleared the task while it was deferred to %s, whose on_user_kill is called when the task defers to"
                    " that trigger again, and not by this one",
                    plain(owed.trigger),
                )
                continue
            patience = self._kill_seconds + CLAIM_SECONDS
            note = await claims.claim_note(state, owed.key, uuid4().hex, patience=patience)
            if note is None:
                continue
            async with claims.private_state(state, note.values, note.attempt) as left:
                error = await self._call_on_user_kill(left)
            await claims.remove(state, note)
            if error is not None:
                self.log.error(
                    "on_user_kill has failed: %s",
                    plain(told(error, repr)),
                    exc_info=carried(error, COMMANDING),
                )

    async def _call_on_user_kill(self, state: TaskState) -> Exception | None:
        """Call it, and return what it raised.

        Raises:
            StaleWriterError: A clear has taken the state from it.
        """
        self.log.info("on_user_kill is called: a user has stopped attempt %d", state.attempt)
        begun = time.monotonic()
        try:
            await asyncio.wait_for(self.on_user_kill(state), self._kill_seconds)
            self.log.info("on_user_kill has returned after %.1f s", time.monotonic() - begun)
        except StaleWriterError:
            raise
        except Exception as error:  # noqa: BLE001 - the author's
            return error
        return None

    @property
    def _kill_seconds(self) -> int:
        return conf.getint("triggerer", "on_kill_timeout", fallback=30)

    async def _is_users_kill(self, state: TaskState) -> bool:
        """Whether a kill is a user's, by Airflow's state of the task where the kill alone does not say it."""
        resumes = claims.goes_on_after_clear(state)
        if releases_moved_triggers() and not resumes and not self._may_be_timing_out:
            return True
        # Where it was moved nobody may have taken over yet.
        task_state = await state_in_airflow(state.scope, patience=TRIGGERER_SECONDS)
        killed = is_users_kill(task_state, doubtful=not self._may_be_timing_out, resumes=resumes)
        if not killed:
            self.log.info(
                "on_user_kill is not called: the task is %s in Airflow", task_state or "in no known state"
            )
        return killed

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
                check_payload(event.payload)
                claims.forget_trigger(state)
                if not await state.is_current():
                    # Says which.
                    await state.flush()
                    raise StaleWriterError(f"{state.scope} has another holder")
                self._fired = True
                yield event

    async def _is_fenced(self, error: BaseException) -> bool:
        """Whether an error ends a trigger that has been replaced: then it is nobody's failure."""
        refused = isinstance(error, StaleWriterError)
        if self._state is None:
            return refused
        try:
            # Not told by the error alone, which may be about another state that the trigger uses.
            return not await self._state.is_current()
        except StateNotOpenError:
            return refused
        except AsyncTaskStateError:
            return False


def _noting_events(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    async def run_and_note(self: CheckpointTrigger) -> AsyncGenerator[TriggerEvent, None]:
        events = run(self)
        try:
            async with aclosing(events) if hasattr(events, "aclose") else nullcontext():
                async for event in events:
                    check_payload(event.payload)
                    self._fired = True
                    claims.forget_trigger(self._state)
                    yield event
        except Exception as error:
            if (escaped := carried(error)) is not error:
                raise escaped from None
            raise

    run_and_note.notes_events = True  # type: ignore[attr-defined]
    return run_and_note


def _beginning(serialize: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(serialize)
    def begin_and_serialize(self: CheckpointTrigger) -> Any:
        whose, self._deferred_by = self._deferred_by, None
        try:
            serialized = serialize(self)
        except BaseException:
            self._deferred_by = whose
            raise
        if whose is not None:
            self._begin(whose, serialized[0])
        return serialized

    return begin_and_serialize
