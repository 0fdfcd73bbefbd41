"""What the tests of a store are made of."""

from __future__ import annotations

import asyncio
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from async_task_state.errors import StateTooLargeError
from async_task_state.scopes import TaskScope
from async_task_state.stores import Batch, Lease, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from async_task_state.scopes import Scope

__all__ = [
    "AT_ONCE",
    "DAY",
    "FOREVER",
    "OTHER",
    "RETENTION",
    "SCOPE",
    "THIRD",
    "StoreTests",
    "entries",
    "hold",
    "on_its_own",
    "put",
    "raises_too_large",
    "until_gone",
]

SCOPE: Final = TaskScope("dag", "run", "task")
OTHER: Final = TaskScope("dag", "run", "other")
THIRD: Final = TaskScope("dag", "run", "third")
DAY: Final = 86400.0
RETENTION: Final = 30 * DAY
FOREVER: Final = math.inf
AT_ONCE: Final = 1e-9
"""A retention that is over before anybody can look."""


class StoreTests:
    """What a store's author says about it."""

    def make_store(self, default_retention: float | None) -> Store:
        """A new store that holds nothing.

        Args:
            default_retention: Seconds that it shall keep a scope nobody touches; None is for ever.
        """
        raise NotImplementedError

    def reopen(self, store: Store) -> Store | None:  # noqa: ARG002 - for those who override it
        """Another store on the same data, as another process would open it; None where that cannot be.

        Args:
            store: What `make_store` gave; it is still open.
        """
        return None


def on_its_own(test: Callable[[Any, Store], Coroutine[Any, Any, None]]) -> Callable[[Any], None]:
    """A test that needs no plugin: it makes its store and its event loop itself."""

    async def run(self: StoreTests) -> None:
        store = self.make_store(RETENTION)
        try:
            await test(self, store)
        finally:
            await store.close()

    def run_alone(self: StoreTests) -> None:
        asyncio.run(run(self))

    # Not functools.wraps: pytest would look through it and take `store` for a fixture.
    run_alone.__name__, run_alone.__qualname__ = test.__name__, test.__qualname__
    run_alone.__doc__, run_alone.__module__ = test.__doc__, test.__module__
    return run_alone


async def put(store: Store, lease: Lease, values: dict[str, str]) -> list[Lease]:
    """Commit values that live with their state; the leases that were fenced."""
    return list(await store.commit([Batch(lease, {key: (value, None) for key, value in values.items()})]))


async def hold(store: Store, values: dict[str, str], scope: Scope = SCOPE) -> Lease:
    """Take a scope's lease and write values under it."""
    lease = (await store.acquire(scope, None)).lease
    assert await put(store, lease, values) == []
    return lease


async def entries(store: Store, scope: Scope = SCOPE) -> dict[str, str]:
    """What anybody reads in a scope that is there."""
    snapshot = await store.read(scope)
    assert snapshot is not None
    return snapshot.entries


@contextmanager
def raises_too_large(message: str) -> Iterator[None]:
    """Expect a block to be refused because a scope would hold too much.

    Args:
        message: A part of what the error says.
    """
    try:
        yield
    except StateTooLargeError as error:
        assert message in str(error)  # noqa: PT017 - no plugin is needed here
    else:
        raise AssertionError("more than the limit was taken")


async def until_gone(store: Store, key: str, scope: Scope = SCOPE) -> None:
    """Wait for the store's clock to pass a key's expiry."""
    for _ in range(1000):
        if key not in await entries(store, scope):
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{key!r} is still read after its retention")
