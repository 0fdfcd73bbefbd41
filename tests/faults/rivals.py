"""Holders of one scope of a PostgreSQL store, their connections, and everything that can go wrong with those."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import direct
from oracle import Opening, Oracle, Save
from proxy import ANSWERS, REQUESTS, Proxy

from async_task_state import StaleAttemptError, StoreUnavailableError, TaskScope
from async_task_state.stores import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Connection
    from oracle import Call
    from postgres import Postgres

    from async_task_state.stores import Lease
    from async_task_state.stores.postgres import PostgresStore

RIVALS = 3
CHOICES = 18
ROWS = 'FROM "{schema}".scope WHERE run_id = $1'
LOCKS = (
    f"SELECT {ROWS} FOR UPDATE SKIP LOCKED",
    f"SELECT {ROWS} FOR KEY SHARE SKIP LOCKED",
    f'SELECT FROM "{{schema}}".entry WHERE scope_id = (SELECT id {ROWS}) FOR UPDATE SKIP LOCKED',
)
CONTENTS = f'SELECT key, value FROM "{{schema}}".entry WHERE scope_id = (SELECT id {ROWS})'
WAITS = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"


class Rival:
    """A process with a store, and at most one call under way; it saves as the writer does.

    Attributes:
        private: Of a scope that nobody else opens, saved in the same commit now and then.
        hurt: Its connection has been tampered with, so its call may fail.
    """

    def __init__(self, store: PostgresStore, proxy: Proxy) -> None:
        self.store, self.proxy = store, proxy
        self.hurt = False
        self.private: Lease | None = None
        self.reset()

    def reset(self) -> None:
        self.lease: Lease | None = None
        self.view: dict[str, str] = {}
        self.unsaved: dict[str, str | None] = {}
        self.clearing = False
        self.number = 0
        self.call: Call | None = None
        self.task: asyncio.Task | None = None

    @property
    def pid(self) -> int | None:
        db = self.store._connection.db
        return None if db is None or db.is_closed() else db.get_server_pid()

    def begin(self, call: Call, method, *arguments) -> None:
        self.call = call
        self.task = asyncio.create_task(method(*arguments))

    def holds(self, lease: Lease, entries: dict[str, str]) -> None:
        self.lease, self.view = lease, dict(entries)
        self.unsaved, self.clearing = {}, False

    def record(self, kind: int) -> Batch:
        """A batch in which what an earlier one may not have saved is merged under what is new."""
        self.number += 1
        value = f"[{self.lease.epoch}, {self.number}]"
        if kind == 2:
            self.view, self.unsaved, self.clearing = {}, {}, True
        changes = {"a": None if kind == 1 else value, "b": value}
        self.unsaved.update(changes)
        self.view = {key: text for key, text in {**self.view, **changes}.items() if text is not None}
        return Batch(self.lease, {key: (text, None) for key, text in self.unsaved.items()}, self.clearing)


class Arena:
    """Where interleavings are played, one after the other, each on a scope of its own.

    Attributes:
        counts: How often what has happened.
    """

    def __init__(self, rivals: list[Rival], db: Connection, locker: Connection, schema: str) -> None:
        # One more, who clears from outside.
        *self.rivals, self.operator = rivals
        self.everybody = rivals
        # Two, for in a transaction the activity of others is shown as it was.
        self.db, self.locker = db, locker
        self.schema = schema
        self.lock = None
        self.counts: Counter[str] = Counter()

    @classmethod
    @asynccontextmanager
    async def entered(cls, postgres: Postgres, dsn: str) -> AsyncIterator[Arena]:
        async with AsyncExitStack() as stack:
            rivals = []
            for _ in range(RIVALS + 1):
                proxy = await stack.enter_async_context(Proxy(dsn))
                rivals.append(Rival(await stack.enter_async_context(direct.opened(proxy.dsn)), proxy))
                rivals[-1].private = (
                    await rivals[-1].store.acquire(TaskScope("dag", uuid4().hex, "own"), 1)
                ).lease
            db, locker = [await stack.enter_async_context(direct.control(postgres)) for _ in range(2)]
            yield cls(rivals, db, locker, dsn.partition("schema=")[2])

    async def play(self, moves: list[tuple[str, int, int]]) -> None:
        """Take the steps of moves, each as far as it goes before the next one; everybody must come to an end, and rightly so."""
        self.counts["interleavings"] += 1
        self.oracle, self.scope = Oracle(), TaskScope("dag", uuid4().hex, "task")
        try:
            for steps, slot, choice in [("open", 0, 1), *moves]:
                for step in steps.split():
                    await getattr(self, step)(self.rivals[slot], choice)
                    await self.settle()
                await self.look()
            await self.end()
            await self.look()
        except AssertionError as error:
            raise AssertionError(f"{error}: {moves}") from error
        finally:
            await self.clean_up()

    async def open(self, rival: Rival, choice: int) -> None:
        if rival.task is None:
            attempt = choice % 3 or None
            rival.begin(self.oracle.opens(attempt), rival.store.acquire, self.scope, attempt)

    async def other_opens(self, rival: Rival, choice: int) -> None:
        await self.open(self.rivals[self.rivals.index(rival) - 1], choice)

    async def save(self, rival: Rival, choice: int) -> None:
        if rival.task is None and rival.lease is not None:
            batches = [rival.record(choice % 3)]
            if choice >= CHOICES // 2:
                batches.append(direct.put(rival.private, n=str(rival.number)))
            rival.begin(self.oracle.saves(rival.lease, rival.view), rival.store.commit, batches)

    async def clear(self, rival: Rival, choice: int) -> None:
        if self.operator.task is None:
            self.operator.begin(self.oracle.clears(), self.operator.store.clear, self.scope)

    async def lock_rows(self, rival: Rival, choice: int) -> None:
        """Somebody else has locked rows, so that calls stop on the server."""
        if self.lock is None:
            self.lock = self.locker.transaction()
            await self.lock.start()
            await self.locker.execute(LOCKS[choice // 3 % 3].format(schema=self.schema), self.scope.run_id)

    async def unlock(self, rival: Rival, choice: int) -> None:
        if self.lock is not None:
            lock, self.lock = self.lock, None
            await lock.rollback()

    async def hold(self, rival: Rival, choice: int) -> None:
        """The network keeps what comes next on the connection that there is, or what comes after that."""
        if rival.pid is not None:
            rival.hurt = True
            rival.proxy.line.hold(ANSWERS if choice % 2 else REQUESTS, after=choice // 3 % 3)

    async def hold_clear(self, rival: Rival, choice: int) -> None:
        await self.hold(self.operator, choice)
        await self.clear(rival, choice)

    async def release(self, rival: Rival, choice: int) -> None:
        for line in rival.proxy.lines:
            line.release()

    async def cancel_clear(self, rival: Rival, choice: int) -> None:
        await self.cancel(self.operator, choice)

    async def cut(self, rival: Rival, choice: int) -> None:
        rival.hurt = True
        rival.proxy.cut()
        if rival.task is not None:
            self.counts["cut in a call"] += 1

    async def cancel(self, rival: Rival, choice: int) -> None:
        if rival.task is not None:
            rival.hurt = True
            rival.task.cancel()
            self.counts["cancelled"] += 1

    async def kill(self, rival: Rival, choice: int) -> None:
        """The server ends a connection."""
        if rival.pid is not None:
            rival.hurt = True
            if rival.task is not None:
                self.counts["killed in a call"] += 1
            await self.db.execute("SELECT pg_terminate_backend($1)", rival.pid)

    async def settle(self) -> None:
        """Let every call come to its end, or to where it is stuck."""
        while waiting := [rival for rival in self.everybody if rival.task is not None]:
            await asyncio.wait([rival.task for rival in waiting], timeout=0.004)
            done = [rival for rival in waiting if rival.task.done()]
            for rival in done:
                self.ended(rival)
            if not done and all([await self.stuck(rival) for rival in waiting]):
                break

    async def look(self) -> None:
        rows = await self.db.fetch(CONTENTS.format(schema=self.schema), self.scope.run_id)
        self.oracle.sees(dict(rows))

    async def stuck(self, rival: Rival) -> bool:
        if any(line.stuck and not line.client.ended for line in rival.proxy.lines):
            return True
        return rival.pid is not None and bool(await self.db.fetchval(WAITS, rival.pid))

    def ended(self, rival: Rival) -> None:
        call, task = rival.call, rival.task
        rival.call = rival.task = None
        try:
            result = task.result()
        except (StoreUnavailableError, asyncio.CancelledError):
            assert rival.hurt, "a call failed on a sound connection"
            self.counts["unknown outcomes"] += 1
            self.oracle.lost(call)
            return
        except StaleAttemptError:
            self.oracle.turned_away(call)
            return
        rival.hurt = any(line.tampered for line in rival.proxy.lines)
        if isinstance(call, Opening):
            self.oracle.opened(call, result.lease, result.entries)
            rival.holds(result.lease, result.entries)
        elif isinstance(call, Save):
            assert rival.private not in result, "a live writer was refused"
            certain = self.oracle.certain and call.lease is self.oracle.newest
            self.oracle.saved(call, refused=bool(result))
            self.counts["refused" if result else "accepted for certain" if certain else "accepted"] += 1
            rival.unsaved, rival.clearing = {}, False
        else:
            self.oracle.cleared(call)

    async def end(self) -> None:
        """Nothing is held any more; who holds the lease for sure saves once more."""
        await self.unlock(self.operator, 0)
        for rival in self.everybody:
            self.counts["late requests"] += sum(
                bool(line.client.ended and line.client.bytes) for line in rival.proxy.lines
            )
            await self.release(rival, 0)
        while any(rival.task for rival in self.everybody):
            await self.settle()
        for rival in self.everybody:
            for line in rival.proxy.lines:
                if line.client.ended:
                    await asyncio.wait_for(line.over.wait(), direct.PATIENCE)
        await self.look()
        for rival in self.rivals:
            while rival.lease is not None and rival.lease is self.oracle.newest:
                await self.save(rival, 0)
                await self.settle()
                if not rival.unsaved:
                    break

    async def clean_up(self) -> None:
        await self.unlock(self.operator, 0)
        for rival in self.everybody:
            await self.release(rival, 0)
            if rival.task is not None:
                rival.task.cancel()
                with suppress(Exception, asyncio.CancelledError):
                    await rival.task
            rival.proxy.lines = [line for line in rival.proxy.lines if not line.over.is_set()]
            rival.reset()
