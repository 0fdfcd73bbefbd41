"""What kind of function a callable is: a partial is what it calls, an object what its `__call__` is."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["generates", "is_async"]


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return any(map(inspect.iscoroutinefunction, _faces(function)))


def generates(function: Callable[..., Any]) -> str | None:
    """Why a function of which one call is awaited cannot be this one: it is a generator function; None if it is not."""
    for face in _faces(function):
        if inspect.isgeneratorfunction(face) or inspect.isasyncgenfunction(face):
            name = getattr(face, "__qualname__", repr(face))
            return f"is a generator function, {name}: it has a yield, so calling it runs nothing of it; return in place of it"
    return None


def _faces(function: Callable[..., Any]) -> tuple[Any, Any]:
    while isinstance(function, partial):
        function = function.func
    return function, type(function).__call__
