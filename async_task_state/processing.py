"""Running a function over what is left of a collection: bounded, each item recorded when it is done."""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterable, Sized
from contextlib import aclosing, nullcontext
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import anyio
import anyio.to_thread

from async_task_state.callables import generates, is_async
from async_task_state.digests import digest_of
from async_task_state.errors import (
    AsyncTaskStateError,
    InvalidArgumentError,
    StaleWriterError,
    StateNotOpenError,
    StateTooLargeError,
    StoreUnavailableError,
    UnstableItemError,
    WorkFailedError,
)
from async_task_state.items import shown_item
from async_task_state.logs import Log
from async_task_state.pauses import must_pause, pause, pause_if_due
from async_task_state.results import Failure, WorkSummary
from async_task_state.settings import check_count
from async_task_state.text import counted, told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from async_task_state.pending import Pending
    from async_task_state.work import WorkSet

__all__ = ["Run"]

log = Log(__name__)

Take: TypeAlias = "Callable[[], Awaitable[Any]]"
Call: TypeAlias = "Callable[[Any], Awaitable[Any]]"

_END: Final = object()
_GENERATORS: Final = (GeneratorType, AsyncGeneratorType)
_NOTHING: Final[Mapping[str, Any]] = {}
SHOWN_FAILURES: Final = 10
LOGGED_FAILURES: Final = 20
MAX_ITEM_CHARS: Final = 200
COUNTS_CANCELLATIONS: Final = sys.version_info >= (3, 11)
"""Whether a task knows that it is being cancelled. If not, who awaits what was cancelled ends the run, as cancelled."""
HAS_NOTES: Final = sys.version_info >= (3, 11)
_STATE_LOST: Final = (StaleWriterError, StateNotOpenError, StoreUnavailableError)
"""What an item's call may raise that says nothing about the item."""


class Run:
    """One call of `WorkSet.process`, whose arguments it takes."""

    def __init__(
        self,
        work: WorkSet,
        fn: Callable[[Any], Any],
        key: Callable[[Any], str],
        concurrency: int,
        max_attempts: int,
        on_error: str,
        record: Callable[[Any, Any], Mapping[str, Any]] | None,
    ) -> None:
        check_count("concurrency", concurrency)
        check_count("max_attempts", max_attempts)
        if on_error not in ("raise", "collect"):
            raise InvalidArgumentError(f"on_error must be 'raise' or 'collect', not {on_error!r}")
        if not callable(fn):
            raise InvalidArgumentError(f"fn must be a function, not {type(fn).__name__}")
        if (why := generates(fn)) is not None:
            raise InvalidArgumentError(f"fn {why}")
        self._work = work
        self._key = key
        self._concurrency = concurrency
        self._max_attempts = max_attempts
        self._on_error = on_error
        self._record = record
        self._fn = fn
        self._begun: set[bytes] = set()
        self._done = self._skipped = self._failed = 0
        self._failures: list[Failure] = []
        self._fatal: BaseException | None = None

    async def over(self, items: Iterable[Any] | AsyncIterable[Any]) -> WorkSummary:
        """Process the items; raise what ended the run early, if anything did."""
        started = time.monotonic()
        self._work._state._writable().check()
        take, call = taker(items), self._caller()
        # Whoever wrote process(list_files(), ...) has no name to close it by when the run ends early.
        closing = aclosing(items) if isinstance(items, AsyncGenerator) else nullcontext()
        async with closing, anyio.create_task_group() as group:
            for _ in range(self._concurrency):
                group.start_soon(self._worker, take, call, group.cancel_scope)
        summary = WorkSummary(
            self._done,
            self._skipped,
            self._failed,
            self._failures,
            time.monotonic() - started,
            len(self._work._done),
        )
        if self._failed > LOGGED_FAILURES:
            log.warning(
                "%s: %s of work set %r failed",
                self._work._state._scope,
                counted(self._failed - LOGGED_FAILURES, "more item"),
                self._work.name,
            )
        if isinstance(self._fatal, _ItemFailed):
            left = _left_of(items, summary.total)
            text = f"{self._fatal}. The run stopped there, because on_error is 'raise': {left}"
            raise WorkFailedError(text, summary) from self._fatal.__cause__
        if self._fatal is not None:
            raise self._fatal
        return summary

    async def _worker(self, take: Take, call: Call, scope: anyio.CancelScope) -> None:
        try:
            while (item := await take()) is not _END:
                await self._one(item, call)
        except GeneratorExit:
            # Of an event loop that was abandoned: nothing can be cancelled there.
            raise
        except BaseException as error:
            if is_cancelled(error):
                raise
            # Raised once all workers have ended, alone and not in a group: Airflow looks for its timeout.
            if self._fatal is None:
                self._fatal = error
            scope.cancel()

    async def _one(self, item: Any, call: Call) -> None:
        work = self._work
        digest, unnamed = self._identify(item)
        if digest in work._done or digest in self._begun:
            self._skipped += 1
            pending = work._state._writable()
            await pause_if_due(pending)
            return
        self._begun.add(digest)
        if unnamed is not None:
            call = partial(_raise, unnamed)
        error: BaseException | None = None
        while digest not in work._failures or not work._given_up(digest, self._max_attempts):
            try:
                result = await call(item)
            except BaseException as raised:
                if self._is_lost(raised) or self._is_full(raised) or not is_of_item(raised):
                    raise
                error = raised
            else:
                recorded = self._record_done(item, digest, result)
                # Counted as soon as it is recorded: what comes after may be cancelled.
                if not isinstance(recorded, Exception):
                    self._begun.discard(digest)
                    self._done += 1
                    if must_pause(recorded):
                        await pause(recorded)
                    return
                error = recorded
            await pause_if_due(self._record_failed(digest, self._name_of(item, unnamed), error))
        failure = work._failures[digest]
        if error is None:
            # By an earlier process of this attempt.
            self._count_failure(failure, None)
        self._end_at(failure, error)

    def _identify(self, item: Any) -> tuple[bytes, Exception | None]:
        """The digest of an item's key; where it has none, of what is known of the item, and why it has none."""
        try:
            return digest_of(item, self._key), None
        except UnstableItemError:
            raise
        except Exception as error:
            if self._on_error == "raise":
                raise
            return digest_of(self._name_of(item, error)), error

    def _is_lost(self, error: BaseException) -> bool:
        """Whether an error says that the state of this set can save nothing, and not another that `fn` uses."""
        if isinstance(error, _STATE_LOST):
            try:
                self._work._state._writable().check()
            except _STATE_LOST:
                return True
        return False

    def _is_full(self, error: BaseException) -> bool:
        """Whether an error says that the state of this set holds as much as it may: so no item after this one fits either."""
        return isinstance(error, StateTooLargeError) and error.scope == self._work._state._scope

    def _name_of(self, item: Any, unnamed: Exception | None) -> str:
        """What a failure calls an item: by its key, if it has one."""
        return str(self._key(item)) if unnamed is None else f"an item without a key: {told(item, repr)}"

    def _record_done(self, item: Any, digest: bytes, result: Any) -> Pending | Exception:
        """Record an item as done: where; or, where failures are collected, what kept it from being recorded."""
        if isinstance(result, _GENERATORS):
            raise not_run(result)
        try:
            values = _NOTHING if self._record is None else self._record(item, result)
            return self._work._record_done(digest, values)
        except _STATE_LOST:
            raise
        except Exception as error:
            if self._on_error == "raise" or digest in self._work._done or self._is_full(error):
                name_item(error, shown_item(self._work.name, self._name_of(item, None)))
                raise
            return error

    def _record_failed(self, digest: bytes, name: str, error: BaseException) -> Pending:
        try:
            pending = self._work._record_failed(digest, name, error)
        except StateTooLargeError as full:
            raise full from error
        if self._work._given_up(digest, self._max_attempts):
            self._count_failure(self._work._failures[digest], error)
        return pending

    def _end_at(self, failure: Failure, error: BaseException | None) -> None:
        if self._on_error == "raise":
            raise _ItemFailed(f"{self._shown(failure)!r} failed: {failure.error}") from error

    def _count_failure(self, failure: Failure, error: BaseException | None) -> None:
        self._failed += 1
        if len(self._failures) < SHOWN_FAILURES:
            self._failures.append(failure)
        if self._failed <= LOGGED_FAILURES:
            log.warning(
                "%s: %r of work set %r failed: %s",
                self._work._state._scope,
                self._shown(failure),
                self._work.name,
                failure.error,
                exc_info=error,
            )

    def _shown(self, failure: Failure) -> str:
        return shown_item(self._work.name, failure.item)

    def _caller(self) -> Call:
        """`fn` as an async function: a plain one runs in a worker thread, and what it returns may be awaitable."""
        fn = self._fn
        if is_async(fn):
            return fn
        limiter = anyio.CapacityLimiter(self._concurrency)

        async def call(item: Any) -> Any:
            # In a tuple, for trio lets no thread return a coroutine.
            (result,) = await anyio.to_thread.run_sync(lambda: (fn(item),), limiter=limiter)
            return await result if inspect.isawaitable(result) else result

        return call


def _left_of(items: object, settled: int) -> str:
    """How many items a run has not come to, or has not finished."""
    if not isinstance(items, Sized):
        return "the items after it are left"
    left = max(0, len(items) - settled)
    return f"{left:,} of {counted(len(items), 'item')} {'is' if left == 1 else 'are'} left"


async def _raise(error: Exception, _item: Any) -> None:
    raise error


def not_run(generator: GeneratorType[Any, Any, Any] | AsyncGeneratorType[Any, Any]) -> InvalidArgumentError:
    """What is wrong with a function that has returned what has done nothing yet."""
    return InvalidArgumentError(
        f"fn returned a generator, {generator.__qualname__}, of which nothing has run: return what it is to give, or None"
    )


def name_item(error: Exception, item: str) -> None:
    """Have an error say which item it has kept from being recorded."""
    note = f"{item[:MAX_ITEM_CHARS]!r} is not recorded as done"
    if isinstance(error, AsyncTaskStateError):
        error.args = (f"{note}: {error}",)
    elif HAS_NOTES:
        error.add_note(note)


def is_cancelled(error: BaseException) -> bool:
    """Whether an error says that this task is cancelled, and not only something that it awaited.

    A task group takes the latter for its own end, too, and swallows it.
    """
    if not isinstance(error, anyio.get_cancelled_exc_class()):
        return False
    if anyio.current_effective_deadline() == -math.inf:
        return True
    task: Any = asyncio.current_task()
    return COUNTS_CANCELLATIONS and task.cancelling() > 0


def is_of_item(error: BaseException) -> bool:
    """Whether an error says something of the item whose call raised it: no alarm does, nor a cancellation of this task."""
    if isinstance(error, Exception):
        return True
    return COUNTS_CANCELLATIONS and isinstance(error, asyncio.CancelledError) and not is_cancelled(error)


class _ItemFailed(Exception):  # noqa: N818 - never seen outside
    """An item failed for good; carries the message until the summary is complete."""


def taker(items: Iterable[Any] | AsyncIterable[Any]) -> Take:
    """An async function that gives the next item, or `_END`; many workers may call it at once."""
    if isinstance(items, (str, bytes)):
        raise InvalidArgumentError(f"items must be an iterable of items, not one {type(items).__name__}")
    if isinstance(items, AsyncIterable):
        source = aiter(items)
        one_at_a_time = anyio.Lock()

        async def take_awaited() -> Any:
            async with one_at_a_time:
                return await anext(source, _END)

        return take_awaited
    try:
        iterator = iter(items)
    except TypeError:
        raise InvalidArgumentError(f"items must be an iterable, not {type(items).__name__}") from None

    async def take() -> Any:
        return next(iterator, _END)

    return take
