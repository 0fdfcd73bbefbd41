"""What a user has chosen at a clear: Airflow 3.4 asks whether the task shall go on with what it has left.

Neither a task nor its retries are told. So the API server leaves a note of ours in Airflow's own store, see `clear_notes`,
and an opening that finds a clear reads it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from async_task_state.codec import RESERVED_PREFIX, decode
from async_task_state.compat import asks_at_clear
from async_task_state.errors import AsyncTaskStateError
from async_task_state.logs import Log
from async_task_state.scopes import running_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_task_state.scopes import RunningTask, TaskScope

__all__ = ["CHOICE", "Choice", "choice_at_clear"]

log = Log(__name__)

CHOICE: Final = f"{RESERVED_PREFIX}clear"
"""The key of the note in Airflow's own store."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user has chosen at a clear.

    Args:
        attempt: The attempt that the clear begins.
        kept: Whether it shall go on with what the task has left.
        at_work: Whether an earlier attempt was running at the clear, which Airflow lets write on for a while.
    """

    attempt: int
    kept: bool
    at_work: bool

    @property
    def value(self) -> dict[str, Any]:
        """The note."""
        return {"attempt": self.attempt, "kept": self.kept, "at_work": self.at_work}

    @classmethod
    def parse(cls, value: object) -> Choice | None:
        """Read a note; None where it is none."""
        if not isinstance(value, dict):
            return None
        attempt, kept, at_work = map(value.get, ("attempt", "kept", "at_work"))
        if type(attempt) is not int or type(kept) is not bool or type(at_work) is not bool:
            return None
        return cls(attempt, kept, at_work)

    def is_of(self, attempt: int, begun: int | None) -> bool:
        """Whether it was the last clear before an attempt.

        Args:
            attempt: The attempt that asks.
            begun: The attempt that the last clear has begun, as far as that is known.
        """
        return self.attempt == attempt or (begun is not None and begun <= self.attempt < attempt)


async def choice_at_clear(
    scope: TaskScope,
    attempt: int,
    begun: int | None,
    look: Callable[[str], Awaitable[str | None]] | None = None,
    running: RunningTask | None = None,
) -> Choice | None:
    """What the user has chosen who has cleared a task; None where nobody was asked, or Airflow does not say.

    Args:
        scope: The running task, or that of the state over all iterations of its loop.
        attempt: The attempt that runs.
        begun: The attempt that the last clear has begun, as far as that is known.
        look: Reads a key of Airflow's store, where the state is kept there.
        running: The task that asks, where it defers, and so runs no more; None is the one that runs here.
    """
    running = running_task() if running is None else running
    if not (_may_ask(scope, running) if look is None else asks_at_clear()):
        return None
    try:
        text = await (_look(running, CHOICE) if look is None else look(CHOICE))
    except AsyncTaskStateError as error:
        log.warning(
            "a user has cleared %s, and Airflow does not say whether its state is to be kept (%s): on_clear decides",
            scope,
            error,
        )
        return None
    choice = None if text is None else Choice.parse(decode(text))
    return choice if choice is not None and choice.is_of(attempt, begun) else None


async def _look(running: RunningTask | None, key: str) -> str | None:
    from async_task_state.stores.airflow import AirflowStore, channel_for  # noqa: PLC0415 - loads for 15 ms

    if running is None:
        return None
    return await AirflowStore(running.scope, channel_for(running.scope, running)).look(key)


def _may_ask(scope: TaskScope, running: RunningTask | None) -> bool:
    if running is None or not asks_at_clear():
        return False
    if scope != running.scope and (running.over is None or scope != running.over.scope):
        return False
    if threading.current_thread() is threading.main_thread():
        return True
    log.warning(
        "a user has cleared %s, and Airflow is not asked from a thread whether its state is to be kept, because that makes"
        " the task's own requests fail: on_clear decides",
        scope,
    )
    return False
