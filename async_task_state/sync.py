"""The sync door: the same state for `execute()` and `execute_complete()`, each call awaited on a loop of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar

from async_task_state.alarms import despite_alarms, run_forever
from async_task_state.errors import EventLoopRunningError, StateNotOpenError, WithNeededError
from async_task_state.state import AssetState, TaskState, asset_state, task_state

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping
    from datetime import timedelta
    from types import TracebackType

    from async_task_state.results import Failure, Stats, WorkCounts, WorkSummary
    from async_task_state.scopes import AssetScope, TaskScope
    from async_task_state.state import OnClear
    from async_task_state.stores import Store
    from async_task_state.work import WorkSet

__all__ = [
    "SyncAssetState",
    "SyncState",
    "SyncTaskState",
    "SyncWorkSet",
    "asset_state_sync",
    "task_state_sync",
]

H = TypeVar("H", TaskState, AssetState)
S = TypeVar("S", bound="SyncState[Any]")
T = TypeVar("T")


def task_state_sync(
    scope: TaskScope | None = None,
    *,
    attempt: int | None = None,
    store: str | Store | None = None,
    max_delay: float | None = None,
    read_only: bool = False,
    on_clear: OnClear | None = None,
    across_iterations: bool = False,
) -> SyncTaskState:
    """The durable state of a task for code that does not await, to be entered with `with`.

    The same state and the same promises as `task_state`, whose arguments these are: checkpoints are coalesced and
    saved by the same thread.

    Raises:
        NoScopeError: See `task_state`, for this and the other two.
        InvalidArgumentError: See there.
        SettingsError: See there.
    """
    return SyncTaskState(
        task_state(
            scope,
            attempt=attempt,
            store=store,
            max_delay=max_delay,
            read_only=read_only,
            on_clear=on_clear,
            across_iterations=across_iterations,
        )
    )


def asset_state_sync(
    asset: object,
    *,
    store: str | Store | None = None,
    max_delay: float | None = None,
    read_only: bool = False,
) -> SyncAssetState:
    """The durable state of an asset for code that does not await; arguments and errors are those of `asset_state`."""
    return SyncAssetState(asset_state(asset, store=store, max_delay=max_delay, read_only=read_only))


class SyncState(Generic[H]):
    """A state whose methods block until they are done; they are those of the state, and raise what those raise.

    It belongs to the thread that entered it.
    """

    def __init__(self, handle: H) -> None:
        self._entered: H = handle
        self._handle: H = handle
        self._loop: asyncio.AbstractEventLoop | None = None
        self._depth = 0
        self._process = 0
        self._cut_short: set[asyncio.Task[Any]] = set()
        self._alarm: BaseException | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._entered!r}>"

    def __enter__(self: S) -> S:  # noqa: PYI019 - typing.Self is of Python 3.11
        """Open the state.

        Raises:
            EventLoopRunningError: An event loop runs in this thread.
            AsyncTaskStateError: As when a state is entered with `async with`.
        """
        import asyncio  # noqa: PLC0415 - who never opens a state does not pay for it

        _refuse_running_loop()
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop.set_exception_handler(self._note_alarm)
            self._process = os.getpid()
        self._depth += 1
        try:
            self._handle = self._run(self._entered.__aenter__)
        except BaseException:
            self._close()
            raise
        # It noted so in a context of the loop's own.
        self._handle.note()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush and leave; a child that was forked meanwhile only leaves."""
        if self._loop is not None and self._process != os.getpid():
            # What the loop waits with is its parent's, too, which closing it would make deaf: it is never taken apart.
            import ctypes  # noqa: PLC0415 - hardly ever needed

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._loop))
            self._loop = None
            return
        try:
            self._run(self._entered.__aexit__, kind, error, traceback)
        finally:
            self._close()

    async def __aenter__(self) -> NoReturn:
        raise WithNeededError(
            f"this state of {self._entered._scope} does not await, and is entered with `with`; task_state() and"
            " asset_state() give one for `async with`"
        )

    async def __aexit__(self, *_: object) -> None: ...

    @property
    def resumed(self) -> bool:
        """Whether there was anything in the state when it was opened."""
        return self._handle.resumed

    @property
    def is_open(self) -> bool:
        """Whether it is entered and not yet left."""
        return self._loop is not None and self._handle.is_open

    @property
    def stats(self) -> Stats:
        """What this handle has recorded and committed so far."""
        return self._handle.stats

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, what was recorded last, saved or not."""
        return self._run(self._handle.get, key, default)

    def get_all(self) -> dict[str, Any]:
        """Every key and its value."""
        return self._run(self._handle.get_all)

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        """Save a value; it is durable when this returns, and so is everything recorded before it."""
        self._run(self._handle.set, key, value, retention=retention)

    def checkpoint(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        """Record values, together; durable within `max_delay`."""
        self._run(self._handle.checkpoint, values, **named)

    def flush(self) -> None:
        """Make everything recorded so far durable before returning."""
        self._run(self._handle.flush)

    def refresh(self) -> None:
        """Flush, and then see what others have written without a lease."""
        self._run(self._handle.refresh)

    def delete(self, key: str) -> None:
        """Remove a key, durably when this returns."""
        self._run(self._handle.delete, key)

    def clear(self) -> None:
        """Remove every key and everything that work sets keep, durably when this returns."""
        self._run(self._handle.clear)

    def is_current(self) -> bool:
        """Flush, and ask the store whether this handle still holds the lease."""
        return self._run(self._handle.is_current)

    def work(self, name: str) -> SyncWorkSet:
        """The set of items of that name that are done."""
        return SyncWorkSet(self, self._handle.work(name))

    def _run(self, method: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> T:
        import asyncio  # noqa: PLC0415 - who never opens a state does not pay for it

        if self._loop is None:
            raise StateNotOpenError(f"{self._entered!r} is not open here: enter it with `with`")
        if self._process != os.getpid():
            from async_task_state.lifetime import opened_before_fork  # noqa: PLC0415 - loads asyncio, 50 ms

            raise opened_before_fork(f"the state of {self._entered._scope}")
        _refuse_running_loop()

        async def call() -> T:
            return await method(*args, **kwargs)

        task: asyncio.Task[T] | None = None
        try:
            task = self._loop.create_task(call())
            return self._complete(self._loop, task)
        except BaseException:
            if task is None or not task.done():
                # An alarm, as of execution_timeout, leaves it half way, and the loop runs again when the state is left.
                self._cut_short = asyncio.all_tasks(self._loop)
                for each in self._cut_short:
                    each.cancel()
            raise

    def _close(self) -> None:
        import asyncio  # noqa: PLC0415 - who never opens a state does not pay for it

        self._depth -= 1
        if self._depth == 0 and self._loop is not None:
            loop, self._loop = self._loop, None
            cut_short, self._cut_short = self._cut_short, set()
            if cut_short:
                ended = asyncio.wait(cut_short, timeout=self._entered._settings.exit_timeout)
                self._complete(loop, loop.create_task(ended))
            self._complete(loop, loop.create_task(loop.shutdown_asyncgens()))
            loop.close()

    def _complete(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[T]) -> T:
        """Run the event loop until a task is done, or an alarm has been raised, be it in one of the loop's callbacks.

        Not `run_until_complete`: it never returns where an alarm is raised in the callback that ends it.
        """
        stop = despite_alarms(lambda _: loop.stop())
        task.add_done_callback(stop)
        try:
            while not task.done() and self._alarm is None:
                run_forever(loop)
        finally:
            task.remove_done_callback(stop)
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            raise alarm
        return task.result()

    def _note_alarm(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what the handler of an alarm has raised in a callback, which asyncio would log and forget."""
        error = context.get("exception")
        if error is None or isinstance(error, Exception):
            loop.default_exception_handler(context)
        else:
            self._alarm = error
            loop.stop()


class SyncTaskState(SyncState[TaskState]):
    """The state of a task for code that does not await; `task_state_sync()` makes it."""

    @property
    def scope(self) -> TaskScope:
        """Whose state this is."""
        return self._entered.scope

    @property
    def attempt(self) -> int:
        """The attempt that holds the state."""
        return self._handle.attempt

    @property
    def cleared(self) -> bool:
        """Whether a user has cleared the task since the state was last held, as found when it was opened."""
        return self._handle.cleared


class SyncAssetState(SyncState[AssetState]):
    """The state of an asset for code that does not await; `asset_state_sync()` makes it."""

    @property
    def scope(self) -> AssetScope:
        """Whose state this is."""
        return self._entered.scope


class SyncWorkSet:
    """A work set whose methods block until they are done; they are those of `WorkSet`, and raise what those raise."""

    def __init__(self, state: SyncState[Any], work: WorkSet) -> None:
        self._state = state
        self._work = work

    @property
    def name(self) -> str:
        """The name it was asked for with."""
        return self._work.name

    @property
    def failures(self) -> list[Failure]:
        """The items recorded as failed and not done since."""
        return self._work.failures

    @property
    def counts(self) -> WorkCounts:
        """How many items are done, and how many are recorded as failed."""
        return self._work.counts

    def is_done(self, item: Any) -> bool:
        """Whether the item was recorded as done."""
        return self._work.is_done(item)

    def remaining(self, items: Iterable[T], *, key: Callable[[T], str] = str) -> Iterator[T]:
        """The items that are not done, in order."""
        return self._work.remaining(items, key=key)

    def done(self, item: Any, **values: Any) -> None:
        """Record that an item is done and values with it, in one atomic step."""
        self._state._run(self._work.done, item, **values)

    def failed(self, item: Any, error: BaseException | str) -> None:
        """Record that an item failed."""
        self._state._run(self._work.failed, item, error)

    def process(
        self,
        items: Iterable[T] | AsyncIterable[T],
        fn: Callable[[T], Any],
        *,
        key: Callable[[T], str] = str,
        concurrency: int = 16,
        max_attempts: int = 1,
        on_error: Literal["raise", "collect"] = "raise",
        record: Callable[[T, Any], Mapping[str, Any]] | None = None,
    ) -> WorkSummary:
        """Call `fn` with each item that is left to do, plain functions in worker threads, and record each when done."""
        return self._state._run(
            self._work.process,
            items,
            fn,
            key=key,
            concurrency=concurrency,
            max_attempts=max_attempts,
            on_error=on_error,
            record=record,
        )


def _refuse_running_loop() -> None:
    import asyncio  # noqa: PLC0415 - who never opens a state does not pay for it

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise EventLoopRunningError(
        "an event loop runs in this thread, which a sync state would block: use `async with task_state()`"
    )
