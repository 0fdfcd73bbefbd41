"""Which states are open where a piece of code runs, so that opening one again joins it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_task_state.handle import State

__all__ = ["forget_closed", "note_open", "states_open_here"]

_opened: ContextVar[tuple[State, ...]] = ContextVar("async_task_state_opened", default=())


def states_open_here() -> tuple[State, ...]:
    """The states that are open in this context; one may have been left in another."""
    return tuple(handle for handle in _opened.get() if handle.is_open)


def note_open(state: State) -> None:
    """Let this context know that a state is open, as the one opened last."""
    _opened.set((*(handle for handle in states_open_here() if handle is not state), state))


def forget_closed() -> None:
    """Let this context hold no state that has been left."""
    # Not reset(token): a generator may be closed in another context than it was begun in.
    _opened.set(states_open_here())
