"""Alarms in an event loop: in its callbacks, where it reports what is raised and goes on, and in its own code."""

from __future__ import annotations

import functools
import signal
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["alarm_held", "despite_alarms", "run_forever"]

P = ParamSpec("P")

AGAIN_SECONDS: Final = 0.01
TRIES: Final = 10
"""What is raised as often as that is no alarm."""
OF_LOOP: Final = ("asyncio.", "selectors", "contextlib", "signal", "enum", __name__)
"""How the names of the modules begin that an event loop is made of, and what holds an alarm back meanwhile."""


def despite_alarms(call: Callable[P, None]) -> Callable[P, None]:
    """Make a callback that may be called twice do all of its work, though the handler of an alarm raises in it.

    As the handler of an `execution_timeout` does. The alarm goes off again in a moment, so that it reaches the task.
    """

    @functools.wraps(call)
    def call_whole(*args: P.args, **kwargs: P.kwargs) -> None:
        for tries in range(1, TRIES + 1):
            try:
                call(*args, **kwargs)
                break
            except (KeyboardInterrupt, SystemExit):
                # These the loop raises itself.
                raise
            except BaseException:
                if tries == TRIES or not _may_be_an_alarm():
                    raise
        if tries > 1:
            _, interval = signal.getitimer(signal.ITIMER_REAL)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, interval)

    return call_whole


@contextmanager
def alarm_held(within: tuple[str, ...] = ("",), then: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold an `execution_timeout` back from what it must not cut short, until the block has ended.

    Args:
        within: How the names of the modules begin whose code is not to be interrupted; other code is, as ever.
        then: Called when an alarm is held.
    """
    if not _may_be_an_alarm():
        yield
        return
    handler: Any = signal.getsignal(signal.SIGALRM)
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if frame is not None and not frame.f_globals.get("__name__", "").startswith(within):
            handler(number, frame)
            return
        held.append(number)
        if then is not None:
            then()

    signal.signal(signal.SIGALRM, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        if held:
            signal.raise_signal(signal.SIGALRM)


def run_forever(loop: asyncio.AbstractEventLoop) -> None:
    """Run an event loop until it is stopped, and let no alarm be raised in the loop's own code, which it would leave running.

    An alarm that goes off there stops the loop and goes off again then. Code that the loop calls is interrupted as ever.
    """
    # To look at the timer first costs a tenth of what it takes to set a handler.
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        loop.run_forever()
        return
    with alarm_held(OF_LOOP, partial(loop.call_soon_threadsafe, loop.stop)):
        loop.run_forever()


def _may_be_an_alarm() -> bool:
    return threading.current_thread() is threading.main_thread() and callable(
        signal.getsignal(signal.SIGALRM)
    )
