"""A store that fails when told to, and waiting for what happens on the writer's thread."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import anyio

from async_task_state.errors import StoreUnavailableError
from async_task_state.stores.memory import MemoryStore
from async_task_state.stores.progress import listener

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from async_task_state import TaskScope
    from async_task_state.runs import Run
    from async_task_state.stores import Batch

PATIENCE = 30


class FaultyStore:
    """Memory behind a line that can break.

    Attributes:
        hanging: Calls wait, before they take effect, until this is False.
        progressing: They say meanwhile that they make progress.
        down: Calls raise `error` and take no effect.
        read_only: Commits raise `error` and take no effect.
        lossy: Calls take effect and then raise `error`.
        commits: Every batch of every commit that was tried.
    """

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.hanging = self.down = self.read_only = self.lossy = False
        self.progressing = False
        self.error: Exception = StoreUnavailableError("the line is broken")
        self.commits: list[Sequence[Batch]] = []
        self.acquires = 0
        self.calls_waiting = 0

    async def acquire(self, scope: TaskScope, attempt: int | None, run: Run | None = None) -> Any:
        self.acquires += 1
        return await self._through(self.inner.acquire, scope, attempt, run)

    async def commit(self, batches: Sequence[Batch]) -> Any:
        self.commits.append(batches)
        if self.read_only:
            raise self._fault()
        return await self._through(self.inner.commit, batches)

    async def read(self, scope: TaskScope) -> Any:
        return await self._through(self.inner.read, scope)

    async def close(self) -> None:
        await self.inner.close()

    def saved(self, scope: TaskScope) -> dict[str, Any]:
        """What is durable, the keys of work sets included."""
        record = self.inner._records.get(scope)
        return {} if record is None else {key: json.loads(text) for key, text in record.live().items()}

    @property
    def sound(self) -> bool:
        return not (self.hanging or self.down or self.read_only or self.lossy)

    def mend(self) -> None:
        self.hanging = self.down = self.read_only = self.lossy = False

    def _fault(self) -> Exception:
        return type(self.error)(*self.error.args)

    async def _through(self, method: Callable[..., Any], *args: object) -> Any:
        self.calls_waiting += 1
        try:
            while self.hanging:
                await asyncio.sleep(0.001)
                told = listener()
                if self.progressing and told is not None:
                    told()
        finally:
            self.calls_waiting -= 1
        if self.down:
            raise self._fault()
        result = await method(*args)
        if self.lossy:
            raise self._fault()
        return result


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what another thread does."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - as above
            await anyio.sleep(0.001)
