"""DAGs whose state is in Airflow's own store."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta

import anyio
import anyio.lowlevel
from airflow.sdk import DAG, Variable, get_current_context, task
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetVariable
from crash_helpers import StepsInAirflow, log_to

from async_task_state import task_state, task_state_sync

SOON = timedelta(seconds=1)
STORE = "airflow:"


def conf():
    return get_current_context()["dag_run"].conf


def count_requests():
    """From here on, how many requests of each kind this task sends."""
    sent = Counter()
    kind = type(task_runner.SUPERVISOR_COMMS)
    send, asend = kind.send, kind.asend

    def counted(self, msg):
        sent[type(msg).__name__] += 1
        return send(self, msg)

    def counted_too(self, msg):
        sent[type(msg).__name__] += 1
        return asend(self, msg)

    kind.send, kind.asend = counted, counted_too
    return sent


with DAG("airflow_store", schedule=None):

    @task(retries=2, retry_delay=SOON)
    async def checkpoints():
        given = conf()
        sent = count_requests()
        began = time.monotonic()
        async with task_state(store=STORE) as state:
            first = await state.get("n", 0)
            log_to(given["journal"], first=first, attempt=state.attempt)
            await state.checkpoint(text="\u00e9")
            for n in range(first, given["steps"]):
                await anyio.sleep(0.001)
                await state.checkpoint(n=n + 1)
                if n % 100 == 0:
                    log_to(given["journal"], step=n, attempt=state.attempt)
        log_to(given["journal"], sent=sum(sent.values()), seconds=time.monotonic() - began)

    checkpoints()

with DAG("airflow_store_ten_seconds", schedule=None):

    @task
    async def checkpoints():
        sent = count_requests()
        n = 0
        async with task_state(store=STORE) as state:
            with anyio.move_on_after(10):
                while True:
                    for _ in range(4):
                        n += 1
                        await state.checkpoint(n=n)
                    await anyio.sleep(0.001)
        log_to(conf()["journal"], sent=sum(sent.values()), steps=n)

    checkpoints()

with DAG("airflow_store_shared", schedule=None):

    async def work_beside(others, store):
        """Do work while others ask Airflow for something; what the state says then."""
        done = anyio.Event()

        async def go_on(ask):
            # Not cancelled: Airflow may be left with a lock that nobody releases.
            while not done.is_set():
                await ask()

        async with task_state(store=store, max_delay=0.3) as state:
            work = state.work("files")
            async with anyio.create_task_group() as group:
                for other in others:
                    group.start_soon(go_on, other)
                for file in range(100):
                    await anyio.sleep(0.005)
                    await work.done(file, last=file)
                await state.set("job", "j-1")
                done.set()
        async with task_state(store=store) as state:
            return [state.work("files").counts.done, await state.get("last"), await state.get("job")]

    @task
    async def beside_blocking_calls():
        async def ask():
            Variable.get("nothing", default=None)
            await anyio.lowlevel.checkpoint()

        return await work_beside([ask, ask], STORE)

    @task
    async def beside_awaited_calls():
        async def ask():
            await task_runner.SUPERVISOR_COMMS.asend(GetVariable(key="nothing"))

        return await work_beside([ask, ask], STORE)

    beside_blocking_calls()
    beside_awaited_calls()

with DAG("airflow_store_accessor", schedule=None):

    @task(retries=1, retry_delay=timedelta(0))
    def accessor(task_state_store=None, ti=None):
        if ti.try_number == 1:
            task_state_store.set("cursor", {"page": 7})
            with task_state_sync(store=STORE) as state:
                state.set("mine", [1, 2])
                state.work("files").done("a", last="a")
            raise RuntimeError("the next attempt reads it")
        with task_state_sync(store=STORE) as state:
            found = state.get("cursor"), state.get("mine"), state.work("files").is_done("a"), state.resumed
            state.delete("cursor")
        return [*found, task_state_store.get("mine"), task_state_store.get("cursor")]

    accessor()

with DAG("airflow_store_times_out", schedule=None):
    # Half a second after a flush.
    @task(retries=1, retry_delay=SOON, execution_timeout=timedelta(seconds=2.5))
    async def timing_out():
        given = conf()
        async with task_state(store=STORE) as state:
            if state.attempt > 1:
                return await state.get("n")
            n = 0
            while True:
                n += 1
                await state.checkpoint(n=n)
                log_to(given["journal"], step=n)
                await anyio.sleep(0.01)

    timing_out()

with DAG("airflow_store_cleared", schedule=None):

    @task
    async def files():
        given = conf()
        journal = given["journal"]
        async with task_state(store=STORE, on_clear=given.get("on_clear")) as state:
            rows = await state.get("rows")
            log_to(journal, begun=state.attempt, resumed=state.resumed, cleared=state.cleared, rows=rows)
            done = state.work("files")
            # The first attempt goes on until the clear ends it.
            for file in done.remaining(range(100_000 if state.attempt == 1 else 30)):
                await done.done(file, rows=await state.get("rows", 0) + 1)
                await state.flush()
                log_to(journal, file=file, attempt=state.attempt)
                await anyio.sleep(0.05)
            return await state.get("rows")

    files()

with DAG("airflow_store_deferred", schedule=None):

    @task
    def deferring():
        given = conf()
        get_current_context()["task"].defer(trigger=StepsInAirflow(given["journal"], 10), method_name="never")

    deferring()
