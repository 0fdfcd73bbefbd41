"""Serving together what was asked for while the last serving was under way."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from async_task_state.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["Gathering"]

Q = TypeVar("Q")
A = TypeVar("A")

AT_ONCE: Final = 32
"""More would keep commits waiting that come meanwhile."""


class Gathering(Generic[Q, A]):
    """Answers questions of one event loop in groups: the first at once, those that come meanwhile with one call.

    Args:
        serve: Answers questions, each with an answer or with the exception that its asker is to raise. What `serve`
            itself raises is raised by all of them.
    """

    def __init__(self, serve: Callable[[Sequence[Q]], Awaitable[Sequence[A | Exception]]]) -> None:
        self._serve = serve
        self._lock = asyncio.Lock()
        self._asked: dict[asyncio.Future[A | Exception], Q] = {}

    async def ask(self, question: Q) -> A:
        """Return the answer, or raise what `serve` has found; one who is cancelled before is not served later."""
        reply: asyncio.Future[A | Exception] = asyncio.get_running_loop().create_future()
        self._asked[reply] = question
        try:
            async with self._lock:
                if not reply.done():
                    # The lock is first come, first served: this one is the oldest of those asked.
                    await self._answer(dict(islice(self._asked.items(), AT_ONCE)))
        finally:
            self._asked.pop(reply, None)
        answer = reply.result()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _answer(self, group: dict[asyncio.Future[A | Exception], Q]) -> None:
        for reply in group:
            del self._asked[reply]
        answers: Sequence[A | Exception]
        try:
            answers = await self._serve(list(group.values()))
        except Exception as error:  # noqa: BLE001 - it is for each of them to raise
            answers = [error] * len(group)
        except BaseException:
            answers = [StoreUnavailableError("the call that this one shared was cancelled")] * len(group)
            raise
        finally:
            for reply, answer in zip(group, answers, strict=True):
                reply.set_result(answer)
