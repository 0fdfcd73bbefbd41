"""The DAGs that the tests of this folder run; every run is told by its conf where to keep its journal."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import anyio
from airflow.sdk import DAG, BaseOperator, get_current_context, task
from crash_helpers import Steps, log_to

from async_task_state import task_state, task_state_sync
from async_task_state.operators import ProcessFilesOperator

SOON = timedelta(seconds=1)


def conf() -> dict[str, Any]:
    return get_current_context()["dag_run"].conf


class StepsOperator(BaseOperator):
    """Defers to `Steps` as often as it has legs; the state is one."""

    def __init__(self, *, legs: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.legs = legs

    def execute(self, context):
        self.defer_leg(context, 1)

    def defer_leg(self, context, leg):
        given = context["dag_run"].conf
        trigger = Steps(given["journal"], given["steps"] * leg, given.get("seconds", 0.02), leg)
        self.defer(trigger=trigger, method_name="next_leg")

    def next_leg(self, context, event):
        if event["leg"] < self.legs:
            self.defer_leg(context, event["leg"] + 1)
        return event


async def take_steps(
    state, steps: int, journal: str, *, seconds: float = 0.01, stop_at: int | None = None
) -> int:
    work = state.work("steps")
    total = await state.get("sum", 0)
    for step in work.remaining(range(steps)):
        if step == stop_at:
            raise RuntimeError("the step that fails")
        await anyio.sleep(seconds)
        log_to(journal, step=step, attempt=state.attempt, index=state.scope.map_index)
        total += step
        await work.done(step, sum=total)
    return total


with DAG("deferred", schedule=None):
    StepsOperator(task_id="steps", retries=0)

with DAG("deferred_twice", schedule=None) as deferred_twice:
    StepsOperator(task_id="steps", legs=2, retries=0)

with DAG("async_task", schedule=None):

    @task(retries=2, retry_delay=SOON)
    async def steps():
        given = conf()
        async with task_state() as state:
            return await take_steps(state, given["steps"], given["journal"])

    steps()

with DAG("plain_task", schedule=None):

    @task(task_id="steps", retries=2, retry_delay=SOON)
    def plain_steps():
        given = conf()
        with task_state_sync() as state:
            work = state.work("steps")
            for step in work.remaining(range(given["steps"])):
                time.sleep(0.01)
                log_to(given["journal"], step=step, attempt=state.attempt)
                work.done(step, sum=state.get("sum", 0) + step)
            return state.get("sum")

    plain_steps()

with DAG("raises", schedule=None):

    @task(retries=1, retry_delay=SOON)
    async def raising():
        given = conf()
        async with task_state() as state:
            fail_at = given["steps"] // 2 if state.attempt == 1 else None
            return await take_steps(state, given["steps"], given["journal"], seconds=0, stop_at=fail_at)

    raising()

with DAG("times_out", schedule=None):

    @task(retries=1, retry_delay=SOON, execution_timeout=timedelta(seconds=4))
    async def timing_out():
        given = conf()
        async with task_state() as state:
            total = await take_steps(state, given["steps"], given["journal"], seconds=0)
            if state.attempt == 1:
                log_to(given["journal"], blocked=state.attempt)
                # Blocks the loop, so that only the alarm ends it and nothing unwinds.
                time.sleep(60)  # noqa: ASYNC251 - the point of it
            return total

    timing_out()

with DAG("mapped", schedule=None):

    @task(retries=1, retry_delay=SOON)
    async def each(steps):
        given = conf()
        async with task_state() as state:
            fail_at = steps // 2 if state.attempt == 1 else None
            return await take_steps(state, steps, given["journal"], seconds=0, stop_at=fail_at)

    each.expand(steps=[10, 20, 30])

with DAG("files_here", schedule=None, render_template_as_native_obj=True):
    ProcessFilesOperator(
        task_id="files",
        source="{{ dag_run.conf['source'] }}",
        processor="crash_helpers.slow_lines",
        deferrable=False,
        retries=2,
        retry_delay=SOON,
    )

with DAG("files_deferred", schedule=None):
    ProcessFilesOperator(
        task_id="files",
        source="{{ dag_run.conf['source'] }}",
        processor="crash_helpers.plain_lines",
        deferrable=True,
        retries=0,
    )

with DAG("files_of_mapped_tasks", schedule=None):

    @task
    def place(name):
        return f"{conf()['folder']}/{name}"

    places = place.expand(name=["0001.txt", "0002.txt", "0003.txt"])
    for where in ("here", "deferred"):
        ProcessFilesOperator(
            task_id=where,
            source=places,
            processor="crash_helpers.plain_lines",
            deferrable=where == "deferred",
        )
