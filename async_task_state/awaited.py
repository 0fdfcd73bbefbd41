"""Coalescing without a thread: what a state records is saved from inside the calls on it that are awaited.

For a store that only the caller's own event loop may talk to. There is no timer: a checkpoint is saved by the first
call on the state that comes when it is due, or when the state is left.
"""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakValueDictionary

import anyio
import anyio.lowlevel

from async_task_state.alarms import alarm_held
from async_task_state.errors import AlreadyOpenError, StaleWriterError, StoreUnavailableError
from async_task_state.leaving import to_its_end
from async_task_state.logs import Log
from async_task_state.pending import Pending
from async_task_state.scopes import running_task
from async_task_state.stores import Lease, Snapshot
from async_task_state.stores.airflow import (
    BUSY_SECONDS,
    AirflowStore,
    channel_for,
    when_timed_out,
)
from async_task_state.waiting import Waiter, wake
from async_task_state.wire import check_changes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.settings import Settings
    from async_task_state.stores import Change
    from async_task_state.stores.airflow import Channel

__all__ = ["AwaitedWriter", "drain"]

log = Log(__name__)

FLUSH_AT: Final = 0.95
"""The part of `max_delay` after which a flush is due; nothing but the requests comes after it."""
FIRST_RETRY_SECONDS: Final = 0.2
LAST_RETRY_SECONDS: Final = 5.0

_unsaved: Final[set[AwaitedWriter]] = set()
"""Those that `drain` is for: where a loop was abandoned nobody else holds them."""

_opened: Final[WeakValueDictionary[tuple[Scope, object], AwaitedWriter]] = WeakValueDictionary()
"""What the running task has opened, in each event loop."""


def drain() -> None:
    """Save what abandoned event loops left."""
    for writer in list(_unsaved):
        writer.drain()


class AwaitedPending(Pending):
    """The changes of a lease whose store is Airflow's."""

    __slots__ = ()

    def admit(self, changes: Mapping[str, Change]) -> None:
        """Refuse what Airflow cannot send, which it would else be asked for again and again.

        Raises:
            InvalidValueError: A value has a number beyond 64 bits, or a lone surrogate.
        """
        check_changes(changes)

    def record(self, changes: Mapping[str, Change]) -> None:
        """See `Pending`."""
        self.admit(changes)
        super().record(changes)


class AwaitedWriter:
    """Saves what one handle records, when that handle is called.

    Args:
        settings: For the timeouts.
        channel: The way to the store; None finds it when a state is opened.
    """

    inline: Literal[True] = True
    """Saves within its callers' calls."""

    def __init__(self, settings: Settings, channel: Channel | None = None) -> None:
        self.gone = False
        self.store = self
        self._settings = settings
        self._channel = channel
        self._airflow: AirflowStore
        self._pending: Pending | None = None
        self._turn = anyio.Lock(fast_acquire=True)
        self._away_since: float | None = None
        self._away_because = ""
        self._failed = False
        self._reason: Callable[[str], Exception] | None = None
        self._disowned: Callable[[Pending], Exception] | None = None
        self._opening = False
        self._not_before = 0.0
        self._retry_after = FIRST_RETRY_SECONDS

    @property
    def trouble(self) -> Callable[[Pending], Exception] | None:
        """What keeps states from being saved, if anything does; now and then a call may try all the same."""
        if self._failed and time.monotonic() < self._not_before:
            return self._outage
        return self._disowned

    def disown(self, reason: Callable[[str], Exception]) -> None:
        """Raise from here on `reason` of whatever is asked for: the way to Airflow is another process's."""
        self.gone, self._reason = True, reason
        self._disowned = lambda pending: reason(f"the state of {pending.lease.scope}")

    def check(self, scope: Scope) -> None:
        """Raise why this can serve nobody any more, if that is so."""
        if self._reason is not None:
            raise self._reason(f"the state of {scope}")

    async def open(
        self,
        scope: Scope,
        attempt: int | None,
        run: Run | None,  # noqa: ARG002 - Airflow deletes what it keeps of a run with the run
        max_delay: float,
    ) -> Pending:
        """Read a scope, key by key; the lease is Airflow's own, which lets one attempt of a task run.

        Raises:
            AlreadyOpenError: The running task has it open already.
            SettingsError: Airflow's store cannot be reached from here.
            StoreUnavailableError: It has not answered for `outage_timeout`.
        """
        self._check_alone(scope)
        self._opening = True
        try:
            snapshot = await self.call(self.read, scope)
        finally:
            self._opening = False
        when_timed_out(drain)
        lease = Lease(scope, 0, 1 if attempt is None else attempt, 0, 0)
        self._pending = AwaitedPending(self, lease, snapshot.entries, max_delay * FLUSH_AT)
        return self._pending

    def _check_alone(self, scope: Scope) -> None:
        """Refuse what a task opens twice at once; a state that an abandoned loop left open is no hindrance."""
        running = running_task()
        if running is None or running.scope != scope:
            return
        key = scope, anyio.lowlevel.current_token()
        earlier = _opened.get(key)
        if earlier is not None and earlier.is_in_use:
            raise AlreadyOpenError(
                f"this very task has the state of {scope} open already, and in Airflow's own store each of the two would"
                " overwrite what the other saves. Open it once, outside of gather() or a task group, and give that one"
                " state to all of its coroutines"
            )
        _opened[key] = self

    @property
    def is_in_use(self) -> bool:
        """Whether its state is being opened, or is open."""
        story = None if self._pending is None else self._pending.story
        return self._opening or (story is not None and story.goes_on)

    async def read(self, scope: Scope) -> Snapshot:
        """A scope as Airflow has it."""
        airflow = AirflowStore(scope, self._channel or channel_for(scope))
        async with self._turn:
            entries = await airflow.load()
            # Not before it knows every key: the index that it writes is what the next process reads.
            self._airflow = airflow
        held = None if self._pending is None else self._pending.lease
        return Snapshot(held or Lease(scope, 0, 0, 0, 0), entries)

    async def call(self, method: Callable[..., Any], *args: object) -> Any:
        """Await a method of this, again while Airflow does not answer."""
        give_up = time.monotonic() + self._settings.outage_timeout
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                return await method(*args)
            except StoreUnavailableError:
                if time.monotonic() + delay >= give_up:
                    raise
            await anyio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    async def look(self, key: str) -> str | None:
        """The text of a key, whether the index names it or not."""
        text: str | None = await self.call(self._airflow.look, key)
        return text

    async def look_beside(
        self, pending: Pending | None, values_now: Callable[[], dict[str, str]], key: str
    ) -> str | None:
        """The text of a key that Airflow may have without our knowing: one that somebody wrote by its own means.

        Args:
            pending: The state's changes; None where it is read-only.
            values_now: What the state knows at the moment.
            key: Which.
        """
        if pending and pending.changes(key):
            return None
        text = await self.look(key)
        values = values_now()
        # What was recorded while Airflow was asked is newer.
        if text is not None and not (pending and pending.changes(key)):
            values.setdefault(key, text)
            if pending is not None:
                with pending.lock:
                    pending.room.forget(pending)
        return values.get(key)

    def enqueue(self, pending: Pending) -> None:  # noqa: ARG002 - a thread's writer has a use for it
        """Note that there is something to save."""
        _unsaved.add(self)

    def hurry(self, *, again: bool = False) -> None:  # noqa: ARG002 - a thread's writer has a use for it
        """Make what is recorded due."""
        if self._pending is not None:
            self._pending.due = 0.0

    async def save_due(self, pending: Pending) -> None:
        """Save what is due, if anything is; trouble is for later calls to raise."""
        now = time.monotonic()
        if pending.unsettled and pending.due <= now and self._not_before <= now:
            async with self._turn:
                await self._save(pending)

    async def settled(self, waiter: Waiter) -> None:
        """Save until a waiter has its answer.

        Raises:
            StaleWriterError: Airflow does not know this attempt any more.
            StoreUnavailableError: It has not answered for `outage_timeout`.
        """
        while self._pending is not None and not waiter.answered:
            async with self._turn:
                if not waiter.answered:
                    await anyio.sleep(max(0.0, self._not_before - time.monotonic()))
                    await self._save(self._pending)
        await waiter.wait()

    def drain(self) -> None:
        """Save what an event loop left that was abandoned: at most `exit_timeout`; log what is not saved."""
        pending = self._pending
        if pending is None or not pending.unsettled:
            return
        left = pending.unsaved()

        async def save() -> None:
            with anyio.move_on_after(self._settings.exit_timeout):
                while pending.unsettled:
                    self._turn = anyio.Lock(fast_acquire=True)
                    await self.save_due(pending)
                    await anyio.sleep(BUSY_SECONDS)

        pending.due = self._not_before = 0.0
        anyio.run(save)
        if pending.unsettled or pending.error is not None:
            log.error("not saved when the task ended: %s (%s)", left, self._away_because)

    async def _save(self, pending: Pending) -> None:
        # Whoever is cancelled, the flush is everybody's.
        saved = await to_its_end(partial(self._commit, pending))
        if not saved.ended:
            self._put_off(pending, StoreUnavailableError("a request to Airflow was cancelled"))
        for raised in (saved.cancelled, saved.error):
            if raised is not None:
                raise raised

    async def _commit(self, pending: Pending) -> None:
        # No batch may be lost half way out or half way back; an alarm may have cut the last flush short.
        with alarm_held():
            pending.put_back()
            flight = pending.take()
        try:
            await self._airflow.commit(flight.batch)
        except StaleWriterError as error:
            self._away_because = str(error)
            self._settle(pending, fenced=True)
        except StoreUnavailableError as error:
            self._put_off(pending, error)
        else:
            self._settle(pending, fenced=False)

    def _put_off(self, pending: Pending, error: StoreUnavailableError) -> None:
        with alarm_held():
            pending.put_back()
            wake(self._away(pending, error))

    def _settle(self, pending: Pending, *, fenced: bool) -> None:
        with alarm_held():
            wake(pending.settle(fenced=fenced))
            self._retry_after = FIRST_RETRY_SECONDS
            self._not_before = 0.0
            self._away_since, self._failed = None, False
            if not pending.unsettled:
                _unsaved.discard(self)

    def _away(self, pending: Pending, error: StoreUnavailableError) -> list[Waiter]:
        now = time.monotonic()
        self._away_because = str(error)
        if self._away_since is None:
            log.warning("could not save, will try again: %s", error)
            self._away_since = now
        self._not_before = now + self._retry_after * random.uniform(0.5, 1)  # noqa: S311 - jitter
        self._retry_after = min(self._retry_after * 2, LAST_RETRY_SECONDS)
        if now - self._away_since < self._settings.outage_timeout:
            return []
        self._failed = True
        return pending.fail_waiters(self._outage)

    def _outage(self, pending: Pending) -> StoreUnavailableError:
        return StoreUnavailableError(
            "the store has been away for [async_task_state] outage_timeout ="
            f" {self._settings.outage_timeout:g} s ({self._away_because}); not saved, and tried again when the state"
            f" is left: {pending.unsaved()}"
        )
