"""Where code runs: only a task, a trigger or a watcher of Airflow's may take the lease of a state by default.

A DAG file is run every half minute to be parsed, and a state that is opened there would be taken from its holder each time.
"""

from __future__ import annotations

import inspect
import sys
import threading
from typing import TYPE_CHECKING, Final

from async_task_state.compat import DAG_PARSERS
from async_task_state.errors import OutsideTaskError
from async_task_state.opened import states_open_here
from async_task_state.scopes import running_task
from async_task_state.stores import is_same_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from async_task_state.scopes import Scope

__all__ = ["check_may_hold"]

TASK_RUNNER: Final = "airflow.sdk.execution_time.task_runner"
RUNNERS: Final = frozenset(
    {
        TASK_RUNNER,
        "airflow.sdk.execution_time.supervisor",
        "airflow.dag_processing.processor",
    }
)
"""The modules that call what a task or its callbacks do; the last two also lead to a parser."""

BETWEEN: Final = frozenset({"anyio", "async_task_state", "asyncio", "contextlib", "outcome", "trio"})
"""The packages whose functions are between an author's code and the opening of a state."""


def check_may_hold(scope: Scope, store: object) -> None:
    """Refuse to take a lease where no task, trigger or watcher runs.

    Args:
        scope: Whose lease.
        store: Where; a state of it that is open for writing shows that this is meant.

    Raises:
        OutsideTaskError: A DAG file is being parsed, or the process is none of Airflow's.
    """
    here = list(_frames(inspect.currentframe()))
    callers = set(map(_module, here))
    parsing = bool(callers & DAG_PARSERS)
    if not parsing and (
        running_task() is not None
        or _holds_here(store)
        or callers & RUNNERS
        or _is_triggerer()
        or _is_threads_of_task()
    ):
        return
    where = "while a DAG file is parsed" if parsing else "where no task or trigger of Airflow's runs"
    raise OutsideTaskError(
        f"the state of {scope} is not opened for writing {where} ({_author_line(here)}), because that would take it from the"
        " task or trigger that holds it. Open it in a task or a trigger; or read it, with read_only=True; or say that it is"
        " meant, by naming its store: store='postgresql://...'. A thread sees the states that are open where it is begun if"
        " it is run by contextvars.copy_context().run"
    )


def _holds_here(store: object) -> bool:
    return any(not state._read_only and is_same_store(state._store, store) for state in states_open_here())


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those of the functions that have led to it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name


def _author_line(frames: list[FrameType]) -> str:
    """The line that opens the state: Airflow shows two lines of a traceback, and those are ours."""
    authors = (each for each in frames if _module(each).partition(".")[0] not in BETWEEN)
    frame = next(authors, frames[-1])
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_threads_of_task() -> bool:
    """Whether this is a thread that a task's callback has begun: what has led to that is known of the main thread."""
    main = threading.main_thread().ident
    callers = set(map(_module, _frames(sys._current_frames().get(main or 0))))
    return TASK_RUNNER in callers and not callers & DAG_PARSERS


def _is_triggerer() -> bool:
    """Whether this process runs triggers, for which Airflow answers requests in a way of its own."""
    runner = sys.modules.get(TASK_RUNNER)
    return type(getattr(runner, "SUPERVISOR_COMMS", None)).__name__ == "TriggerCommsDecoder"
