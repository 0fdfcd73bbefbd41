"""A database server that dies again and again, and states that neither notice nor lose anything."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import asyncpg
import psutil
import pytest

from async_task_state import Settings, StoreUnavailableError, TaskScope, TaskState
from async_task_state.sandbox_postgres import PostgresServer
from async_task_state.stores import Batch, open_store, postgres_connection
from async_task_state.stores.postgres import PostgresStore
from async_task_state.stores.postgres_dsn import PostgresDsn

LANES = 50
DURABLE_SHARE = 0.06
MAX_DELAY = 0.1
COMMITS_A_SECOND = 5
SECONDS_A_DEATH = 6
"""At most, of which a server that starts on a busy machine needs some."""


class CountingStore(PostgresStore):
    """Counts how its commits end."""

    commits = failures = 0

    async def commit(self, batches):
        try:
            fenced = await super().commit(batches)
        except BaseException:
            self.failures += 1
            raise
        self.commits += 1
        return fenced


@dataclass
class Lane:
    """A state, the last call that was begun on it, the last one told durable, and those that left a key of their own."""

    number: int
    chance: random.Random
    begun: int = 0
    durable: int = 0
    keys: set[int] = field(default_factory=set)
    longest: float = 0.0

    @property
    def scope(self) -> TaskScope:
        return TaskScope("chaos", "run", "lane", self.number)

    async def call(self, state: TaskState) -> None:
        self.begun = number = self.begun + 1
        if number % 2:
            await state.checkpoint(a=number, b=number)
        else:
            await state.work("items").done(number, a=number, b=number)
        if self.chance.random() < DURABLE_SHARE:
            began = time.monotonic()
            if self.chance.random() < 0.5:
                self.keys.add(number)
                await state.set(f"key-{number}", number)
            else:
                await state.flush()
            self.durable = number
            self.longest = max(self.longest, time.monotonic() - began)

    async def check(self, state: TaskState, durable: int) -> int:
        """The call after which the state is what it is, which must be one; `durable` or a later one."""
        left = await state.get_all()
        number = left.pop("a", 0)
        assert left.pop("b", 0) == number, f"G3, {self}: values of different calls"
        assert durable <= number <= self.begun, f"G1, {self}: {durable} was durable, and there is {number}"
        assert state.work("items").counts.done == number // 2, (
            f"G3, {self}: items of another call than {number}"
        )
        due = {key for key in self.keys if key < number or key == number <= durable}
        assert left.keys() - {f"key-{number}"} == {f"key-{key}" for key in due - {number}}, f"G1, {self}"
        assert f"key-{number}" in left or number not in due, f"G1, {self}"
        return number


async def record(lane, store, settings, stop):
    """Open, record and leave, again and again; each holder finds what the one before has left."""
    while not stop.is_set():
        async with TaskState(lane.scope, store=store, settings=settings) as state:
            await lane.check(state, lane.begun)
            for _ in range(lane.chance.randrange(500)):
                if stop.is_set():
                    break
                await lane.call(state)
                await asyncio.sleep(lane.chance.uniform(0, 0.02))
        lane.durable = lane.begun


async def check_all(lanes, settings):
    """Compare what other processes see with what was durable before; what it is."""

    async def check(lane):
        durable = lane.durable
        async with TaskState(lane.scope, store=settings.dsn, settings=settings, read_only=True) as state:
            return await lane.check(state, durable)

    return await asyncio.gather(*map(check, lanes))


def die(server):
    server.kill()
    server.start()


def restart(server):
    server.shut_down()
    server.start()


def crash(server):
    """Kill the process of one connection, at which the server ends all others and recovers."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(server.pid).children():
            if "127.0.0.1(" in " ".join(process.cmdline()):
                process.kill()
                break


@pytest.fixture
def server():
    with PostgresServer() as server:
        yield server


@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_g1_g3_g5_g6_hold_while_the_server_dies_again_and_again(server, base_seed, pytestconfig):
    seconds = pytestconfig.getoption("chaos_seconds")
    print(f"reproduce with --seed {base_seed} --chaos-seconds {seconds:g}")  # noqa: T201 - shown when it fails
    chance = random.Random(base_seed)
    settings = Settings(dsn=server.dsn(), max_delay=MAX_DELAY, exit_timeout=30)
    store = CountingStore(PostgresDsn.parse(settings.dsn))
    lanes = [Lane(number, random.Random(f"{base_seed} {number}")) for number in range(LANES)]
    stop = asyncio.Event()
    deaths = 0
    async with anyio.create_task_group() as group:
        for lane in lanes:
            group.start_soon(record, lane, store, settings, stop)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(chance.uniform(0.5, 4))
            [way] = chance.choices((die, restart, crash), (6, 2, 2))
            await asyncio.to_thread(way, server)
            deaths += 1
            await check_all(lanes, settings)
        stop.set()
    await asyncio.to_thread(die, server)
    assert await check_all(lanes, settings) == [lane.begun for lane in lanes]
    calls = sum(lane.begun for lane in lanes)
    longest = max(lane.longest for lane in lanes)
    print(  # noqa: T201 - the figures
        f"{deaths} deaths, {calls} calls, {store.commits} commits, {store.failures} failed, {store._retry} of them"
        f" under way; the longest wait {longest:.1f} s"
    )
    assert deaths >= seconds / SECONDS_A_DEATH
    assert store.commits >= seconds * COMMITS_A_SECOND
    assert store.failures >= deaths / 2
    assert store._retry >= 1, "no commit was under way when the server died"


async def backend_of(server):
    """The server's process for the one connection that a store has."""
    db = await asyncpg.connect(server.dsn())
    try:
        return psutil.Process(
            await db.fetchval("SELECT pid FROM pg_stat_activity WHERE application_name = 'async-task-state'")
        )
    finally:
        await db.close()


@pytest.mark.asyncio
async def test_g1_what_a_frozen_connection_does_when_it_goes_on_undoes_nothing(server, scope, monkeypatch):
    monkeypatch.setattr(postgres_connection, "COMMAND_SECONDS", 0.3)
    settings = Settings(dsn=server.dsn())
    async with TaskState(scope, store=settings.dsn, settings=settings) as state:
        await state.set("a", 0)
        frozen = await backend_of(server)
        frozen.suspend()
        try:
            # Sent to the frozen one first, and then, when it does not answer, on a new connection.
            await state.set("a", 1)
            await state.set("a", 2)
        finally:
            frozen.resume()
        await asyncio.to_thread(frozen.wait, 60)
        async with TaskState(scope, store=settings.dsn, settings=settings, read_only=True) as seen:
            assert await seen.get("a") == 2
        assert await state.is_current()


@pytest.mark.asyncio
async def test_g5_what_a_server_says_before_it_hangs_up_is_an_outage_that_the_next_call_ends(server, scope):
    said = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
    store = open_store(server.dsn())
    try:
        batch = Batch((await store.acquire(scope, 1)).lease, {"a": ("1", None)})
        # Between two calls, and the end of the connection is not there yet.
        store._connection.db._protocol.data_received(b"E" + (len(said) + 4).to_bytes(4, "big") + said)
        with pytest.raises(StoreUnavailableError):
            await store.commit([batch])
        assert not await store.commit([batch])
    finally:
        await store.close()
