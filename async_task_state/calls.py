"""Calls that record at once and give a coroutine to await: a holder is told of those that were never awaited."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, TypeVar

from async_task_state.errors import NotAwaitedError
from async_task_state.logs import Log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from async_task_state.scopes import Scope

__all__ = ["CallKind", "Calls"]

T = TypeVar("T")

log = Log(__name__)

RECORDED_AT_ONCE: Final = "%s: never awaited: %s. What they recorded is saved, but nothing has waited for it: write `await` before the call"


class CallKind:
    """The calls of one method of one object, each of which records at once.

    Args:
        name: What an author writes, without the arguments.
    """

    __slots__ = ("name", "recorded", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting = 0
        """How many were made and are not awaited yet."""

        async def recorded() -> None:
            self.waiting -= 1

        # Python names it, and the line, where one is dropped that was not awaited.
        recorded.__qualname__ = name
        self.recorded = recorded
        """The rest of a call that has done all it does; whoever makes one counts it first."""

    def then(self, rest: Callable[..., Awaitable[T]], *args: Any) -> Coroutine[Any, Any, T]:
        """The rest of a call, not begun before it is awaited."""
        self.waiting += 1
        rest_of_call: Coroutine[Any, Any, T] = named(self.name, self._rest(rest, args))
        return rest_of_call

    async def _rest(self, rest: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
        self.waiting -= 1
        return await rest(*args)


class Calls:
    """All calls on one state that are to be awaited."""

    __slots__ = ("_kinds", "_lazy")

    def __init__(self) -> None:
        self._kinds: dict[str, CallKind] = {}
        self._lazy: list[Any] = []

    def kind(self, name: str) -> CallKind:
        """The calls of a method, the same object at each call."""
        return self._kinds.get(name) or self._kinds.setdefault(name, CallKind(name))

    def lazy(self, name: str, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """A call that does nothing before it is awaited."""
        self._lazy = [*filter(is_unbegun, self._lazy), named(name, coroutine)]
        return coroutine

    def settle(self, scope: Scope) -> NotAwaitedError | None:
        """Log which calls were never awaited since the last time; an error if one of them has so done nothing."""
        recorded = []
        for kind in list(self._kinds.values()):
            # Below 0 is what was made before the last time and awaited after it.
            if kind.waiting > 0:
                recorded.append(f"{kind.waiting} of {kind.name}()")
            kind.waiting = 0
        if recorded:
            log.warning(RECORDED_AT_ONCE, scope, ", ".join(recorded))
        undone, self._lazy = list(filter(is_unbegun, self._lazy)), []
        if not undone:
            return None
        for coroutine in undone:
            coroutine.close()
        names = ", ".join(f"{coroutine.__qualname__}()" for coroutine in undone)
        return NotAwaitedError(
            f"{scope}: never awaited, and so never done: {names}. Write `await` before the call"
        )


def named(name: str, coroutine: Any) -> Any:
    """A coroutine, with the name by which Python's warning calls it."""
    coroutine.__qualname__ = name
    return coroutine


def is_unbegun(coroutine: Any) -> bool:
    """Whether a coroutine was neither awaited nor closed; a task that was cancelled before it began has closed it."""
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
