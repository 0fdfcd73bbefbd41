"""Alarms in callbacks of an event loop, which reports what is raised there and goes on."""

from __future__ import annotations

import functools
import signal
import threading
from typing import TYPE_CHECKING, Final, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["despite_alarms"]

P = ParamSpec("P")

AGAIN_SECONDS: Final = 0.01
TRIES: Final = 10
"""What is raised as often as that is no alarm."""


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


def _may_be_an_alarm() -> bool:
    return threading.current_thread() is threading.main_thread() and callable(
        signal.getsignal(signal.SIGALRM)
    )
