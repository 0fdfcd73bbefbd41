"""Going on to the end though this task is cancelled: what must not be cut short when a state is left."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import current_token

from async_task_state.errors import StaleWriterError, StoreUnavailableError
from async_task_state.logs import Log

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from async_task_state.pending import Pending

__all__ = ["keeping_portal", "last_flush", "may_await", "to_its_end"]

log = Log(__name__)


@dataclass(slots=True)
class Outcome:
    """What became of a call.

    Attributes:
        ended: Whether it ended in time, and not because somebody else has cancelled it.
        error: What it raised.
        cancelled: The last cancellation of this task that asyncio has delivered meanwhile, which is to be raised.
    """

    ended: bool = True
    error: Exception | None = None
    cancelled: BaseException | None = None


async def to_its_end(
    call: Callable[[], Coroutine[Any, Any, object]], seconds: float = math.inf, *, again: bool = False
) -> Outcome:
    """Await a call for some seconds, however often this task is cancelled meanwhile.

    A scope of anyio or trio is shielded off: its cancellation is delivered by the first `await` after this one. One of
    asyncio comes once only, so that it is kept and returned; `Task.cancelling()` goes on counting it.

    Args:
        call: What is awaited.
        seconds: After which it is left alone.
        again: Call it again where somebody has cancelled it, as `asyncio.run` does with every task that is left.
    """
    if hasattr(current_token().native_token, "call_soon_threadsafe"):
        return await _on_asyncio(keeping_portal(call), seconds, again=again)
    outcome = Outcome()
    with anyio.move_on_after(seconds, shield=True) as scope:
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - the caller's to raise
            outcome.error = error
    outcome.ended = not scope.cancelled_caught
    return outcome


async def _on_asyncio(
    call: Callable[[], Coroutine[Any, Any, object]], seconds: float, *, again: bool
) -> Outcome:
    import asyncio  # noqa: PLC0415 - loaded by now

    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    outcome = Outcome()
    # A task of its own, because a cancellation of this one ends whatever this one awaits.
    task = loop.create_task(call())
    with anyio.CancelScope(shield=True):
        while not task.done() and (left := ends - loop.time()) > 0:
            try:
                await asyncio.wait([task], timeout=None if left == math.inf else left)
            except asyncio.CancelledError as error:
                outcome.cancelled = error
            if again and task.done() and (cut_short := _what_cut_short(task)) is not None:
                if not task.cancelled():
                    outcome.cancelled = cut_short
                task = loop.create_task(call())
    outcome.ended = task.done() and not task.cancelled()
    if not outcome.ended:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        task.cancel()
    elif (raised := task.exception()) is not None:
        if not isinstance(raised, Exception):
            # An alarm, as of an execution_timeout.
            raise raised
        outcome.error = raised
    return outcome


def _what_cut_short(task: asyncio.Task[Any]) -> BaseException | None:
    """The cancellation of a task that is done, or the alarm that was raised in it, as of an execution_timeout."""
    try:
        raised = task.exception()
    except BaseException as cancellation:  # noqa: BLE001 - returned
        return cancellation
    return None if isinstance(raised, Exception) else raised


def keeping_portal(call: Callable[[], Awaitable[Any]]) -> Callable[[], Coroutine[Any, Any, Any]]:
    """The call for a task of its own, with what lets Airflow's blocking calls work in this one in a triggerer."""
    greenback = sys.modules.get("greenback")
    has_portal = greenback is not None and greenback.has_portal()

    async def run() -> Any:
        if greenback is not None and has_portal:
            await greenback.ensure_portal()
        return await call()

    return run


def may_await(error: BaseException | None, traceback: TracebackType | None) -> bool:
    """Whether code that handles an error may still await.

    A coroutine that is thrown away with its event loop may not: no loop runs here, or another one's. An async
    generator that is closed may.
    """
    if not isinstance(error, GeneratorExit):
        return True
    try:
        current_token()
    except RuntimeError:
        return False
    return traceback is None or bool(traceback.tb_frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR)


async def last_flush(pending: Pending, error: BaseException | None, seconds: float) -> None:
    """Save what is left when a state is left, whatever cancels this task meanwhile.

    Args:
        pending: What is left.
        error: What the body has raised: then what goes wrong here is logged and not raised.
        seconds: `[async_task_state] exit_timeout`.

    Raises:
        AsyncTaskStateError: It was not saved.
    """
    # In a forked child there may be no event loop to wait in, and nothing to wait for.
    if pending.unsettled and not pending.orphaned:
        left = await to_its_end(pending.flush, seconds, again=True)
    else:
        left = Outcome(error=pending.refusal())
    failure = left.error
    if not left.ended:
        failure = StoreUnavailableError(
            f"not saved within [async_task_state] exit_timeout = {seconds:g} s, and still being"
            f" tried: {pending.unsaved()}"
        )
    if failure is not None:
        if error is None and left.cancelled is None:
            raise failure
        (log.info if isinstance(failure, StaleWriterError) else log.error)("on leaving: %s", failure)
    if left.cancelled is not None:
        raise left.cancelled
