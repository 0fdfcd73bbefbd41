"""The DAG that `bench_airflow` runs in a real Airflow."""

from __future__ import annotations

import time

from airflow.sdk import dag, get_current_context, task
from airflow.sdk.execution_time.comms import SetTaskStateStore

from async_task_state import task_state


async def request_rate(requests: int) -> float:
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS  # noqa: PLC0415 - is set when a task runs

    ti_id = get_current_context()["ti"].id
    started = time.perf_counter()
    for i in range(requests):
        await SUPERVISOR_COMMS.asend(SetTaskStateStore(ti_id=ti_id, key="n", value=i, expires_at=None))
    return requests / (time.perf_counter() - started)


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
        rates = {"ours": [], "theirs": []}
        for _ in range(params["repeat"]):
            rates["theirs"].append(await request_rate(params["requests"]))
            rates["ours"].append(await checkpoint_rate(params["checkpoints"]))
        return rates

    measure()


benchmark()
