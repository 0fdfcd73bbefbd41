"""DAGs whose tasks are retried, cleared and cleaned up after."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, BaseOperator, get_current_context, task
from crash_helpers import FailingSteps, log_to

from async_task_state import task_state, task_state_sync

SOON = timedelta(seconds=1)


def conf():
    return get_current_context()["dag_run"].conf


class FailingStepsOperator(BaseOperator):
    """Defers at once."""

    def execute(self, context):
        given = context["dag_run"].conf
        trigger = FailingSteps(given["journal"], given["steps"], 0)
        trigger.on_clear = given.get("on_clear")
        self.defer(trigger=trigger, method_name="end")

    def end(self, context, event):
        with task_state_sync() as state:
            log_to(context["dag_run"].conf["journal"], end=state.get("sum"), cleared=state.cleared)
        return event


with DAG("lifecycle_deferred", schedule=None):
    FailingStepsOperator(task_id="steps", retries=1, retry_delay=timedelta(0))

with DAG("lifecycle_async", schedule=None):

    @task(retries=1, retry_delay=timedelta(0))
    async def steps():
        given = conf()
        async with task_state(on_clear=given.get("on_clear")) as state:
            work = state.work("steps")
            log_to(given["journal"], begun=1, resumed=state.resumed, cleared=state.cleared)
            for step in work.remaining(range(given["steps"])):
                if state.attempt == 1 and step == given["steps"] // 2:
                    raise RuntimeError("the first attempt fails")
                log_to(given["journal"], step=step)
                await work.done(step, sum=await state.get("sum", 0) + step)
            return await state.get("sum")

    steps()

with DAG("lifecycle_success", schedule=None):

    @task
    async def succeeds():
        os.environ["AIRFLOW__ASYNC_TASK_STATE__CLEAR_ON_SUCCESS"] = "True"
        async with task_state() as state:
            await state.set("n", 1)
            await state.work("files").done("a")

    @task(retries=0)
    async def fails():
        os.environ["AIRFLOW__ASYNC_TASK_STATE__CLEAR_ON_SUCCESS"] = "True"
        async with task_state() as state:
            await state.set("n", 1)
        raise RuntimeError("its state stays")

    succeeds()
    fails()
