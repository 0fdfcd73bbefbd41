"""Alarms in an event loop: in its callbacks, where it reports what is raised and goes on, and in its own code."""

from __future__ import annotations

import functools
import signal
import threading
from typing import TYPE_CHECKING, Any, Final, ParamSpec

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType

__all__ = ["despite_alarms", "run_forever"]

P = ParamSpec("P")

AGAIN_SECONDS: Final = 0.01
TRIES: Final = 10
"""What is raised as often as that is no alarm."""
OF_LOOP: Final = ("asyncio.", "selectors")
"""How the names of the modules begin that an event loop is made of."""


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


def run_forever(loop: asyncio.AbstractEventLoop) -> None:
    """Run an event loop until it is stopped, and let no alarm be raised in the loop's own code, which it would leave running.

    An alarm that goes off there stops the loop and goes off again then. Code that the loop calls is interrupted as ever.
    """
    # To look at the timer first costs a tenth of what it takes to set a handler.
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0 or not _may_be_an_alarm():
        loop.run_forever()
        return
    handler: Any = signal.getsignal(signal.SIGALRM)
    held: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_globals.get("__name__", "").startswith(OF_LOOP):
            held.append(number)
            loop.call_soon_threadsafe(loop.stop)
        else:
            handler(number, frame)

    signal.signal(signal.SIGALRM, handle)
    try:
        loop.run_forever()
    finally:
        signal.signal(signal.SIGALRM, handler)
        if held:
            signal.raise_signal(signal.SIGALRM)


def _may_be_an_alarm() -> bool:
    return threading.current_thread() is threading.main_thread() and callable(
        signal.getsignal(signal.SIGALRM)
    )
