"""The DAG that `bench_airflow` runs in a real Airflow."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from airflow.sdk import dag, get_current_context, task
from airflow.sdk.execution_time.comms import DeadlockImminentError, SetTaskStateStore

from async_task_state import task_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

AT_ONCE = 64
TIMES = 50


async def request_rate(requests: int) -> float:
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS  # noqa: PLC0415 - is set when a task runs

    ti_id = get_current_context()["ti"].id
    started = time.perf_counter()
    for i in range(requests):
        await SUPERVISOR_COMMS.asend(SetTaskStateStore(ti_id=ti_id, key="n", value=i, expires_at=None))
    return requests / (time.perf_counter() - started)


async def aset_rate(requests: int) -> float:
    """Of Airflow's own accessor, which can await since 3.4."""
    accessor = get_current_context()["task_state_store"]
    started = time.perf_counter()
    for i in range(requests):
        await accessor.aset("n", i)
    return requests / (time.perf_counter() - started)


async def set_rate(requests: int) -> float:
    async with task_state() as state:
        started = time.perf_counter()
        for i in range(requests):
            await state.set("n", i)
        return requests / (time.perf_counter() - started)


async def kept(at_once: int) -> list[int]:
    """How many of the items that coroutines note at once are there: in a work set, in a list of Airflow's."""
    accessor = get_current_context()["task_state_store"]

    async def append(item: int) -> None:
        await accessor.aset("done", [*(await accessor.aget("done") or []), item])

    await accessor.aset("done", [])
    async with task_state() as state:
        await state.clear()
        files = state.work("files")
        await asyncio.gather(*map(files.done, range(at_once)), *map(append, range(at_once)))
        return [files.counts.done, len(await accessor.aget("done"))]


async def refused(save: Callable[[], Awaitable[None]], times: int) -> int:
    """How many sync calls of the SDK are refused that a task makes while something is being saved."""
    accessor = get_current_context()["task_state_store"]
    count = 0
    for _ in range(times):
        saving = asyncio.ensure_future(save())
        await asyncio.sleep(0)
        try:
            accessor.get("n")
        except DeadlockImminentError:
            count += 1
        await saving
    return count


async def checkpoint_rate(checkpoints: int) -> float:
    async with task_state() as state:
        started = time.perf_counter()
        for i in range(checkpoints):
            await state.checkpoint(n=i)
        return checkpoints / (time.perf_counter() - started)


@dag(schedule=None, params={"repeat": 1, "requests": 1, "checkpoints": 1})
def benchmark():
    @task
    async def measure(params=None):
        rates = {name: [] for name in ("ours", "theirs", "set", "aset", "kept", "refused")}
        accessor = get_current_context()["task_state_store"]
        for _ in range(params["repeat"]):
            rates["theirs"].append(await request_rate(params["requests"]))
            rates["ours"].append(await checkpoint_rate(params["checkpoints"]))
            rates["set"].append(await set_rate(params["requests"]))
            if hasattr(accessor, "aset"):
                rates["aset"].append(await aset_rate(params["requests"]))
                rates["kept"].append(await kept(AT_ONCE))
                async with task_state() as state:
                    ours = await refused(lambda: state.set("n", 1), TIMES)
                rates["refused"].append([ours, await refused(lambda: accessor.aset("n", 1), TIMES)])
        return rates

    measure()


benchmark()
