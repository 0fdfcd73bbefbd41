"""DAGs whose tasks are cleared, and keep what they have left or not."""

from __future__ import annotations

from airflow.sdk import DAG, BaseOperator, get_current_context, task
from crash_helpers import StepsInStore, log_to

from async_task_state import task_state


class StepsInStoreOperator(BaseOperator):
    """Defers at once."""

    def execute(self, context):
        given = context["dag_run"].conf
        trigger = StepsInStore(
            given.get("store"),
            journal=given["journal"],
            steps=given["steps"],
            seconds=given.get("seconds", 0),
        )
        self.defer(trigger=trigger, method_name="end")

    def end(self, context, event):
        return event


with DAG("keep_deferred", schedule=None):
    StepsInStoreOperator(task_id="steps")

with DAG("keep_task", schedule=None):

    @task
    async def steps():
        context = get_current_context()
        given = context["dag_run"].conf
        async with task_state(store=given.get("store")) as state:
            # What Airflow's accessor shall see.
            await state.flush()
            log_to(
                given["journal"],
                begun=state.attempt,
                resumed=state.resumed,
                accessor=context["task_state_store"].get("sum"),
            )
            work = state.work("steps")
            for step in work.remaining(range(given["steps"])):
                log_to(given["journal"], step=step)
                await work.done(step, sum=await state.get("sum", 0) + step)

    steps()
