"""DAGs whose tasks use Airflow's own accessors and our states of the same scopes; Airflow 3.3 has the accessors."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Asset, BaseOperator, ResumableJobMixin, get_current_context, task
from airflow.sdk.exceptions import AirflowRuntimeError
from crash_helpers import log_to

from async_task_state import TaskScope, asset_state, task_state

AT_ONCE = timedelta(seconds=0.1)
CHECKPOINTS = 100_000
BACKEND = "async_task_state.backend.StateStoreBackend"
ORDERS = Asset(name="backend/orders", uri="s3://backend/orders")


class JobOperator(ResumableJobMixin, BaseOperator):
    """Submits a job that runs until its file says that it is done; Airflow's mixin does the rest."""

    def execute(self, context):
        return self.execute_resumable(context)

    def submit_job(self, context):
        log_to(context["dag_run"].conf["journal"], submitted=context["ti"].try_number)
        return {"job": f"job-{context['ti'].try_number}"}

    def get_job_status(self, external_id, context):
        return "RUNNING"

    def is_job_active(self, status):
        return status == "RUNNING"

    def is_job_succeeded(self, status):
        return status == "SUCCEEDED"

    def poll_until_complete(self, external_id, context):
        given = context["dag_run"].conf
        log_to(given["journal"], polled=external_id, attempt=context["ti"].try_number)
        while not Path(given["done"]).exists():
            time.sleep(0.05)
        return external_id

    def get_job_result(self, external_id, context):
        return external_id


with DAG("backend", schedule=None):

    @task(retries=2, retry_delay=AT_ONCE)
    async def cursor():
        """Its attempts: Airflow's accessor, our state, Airflow's accessor."""
        context = get_current_context()
        attempt, accessor = context["ti"].try_number, context["task_state_store"]
        if attempt == 1:
            accessor.set("cursor", {"page": 17})
            accessor.set("a/b é", "kept")
            accessor.set("deleted", 1)
            accessor.delete("deleted")
            raise RuntimeError("the next attempt goes on")
        if attempt == 2:
            async with task_state() as state:
                pages = (await state.get("cursor"))["page"]
                for number in range(CHECKPOINTS):
                    await state.checkpoint(cursor={"page": pages + number + 1})
                await state.work("files").done("a.csv")
                await state.flush()
                accessor.set("note", "by the accessor")
                await state.refresh()
                await state.checkpoint(noted=await state.get("note"))
            raise RuntimeError("the next attempt goes on")
        keys = ("cursor", "a/b é", "deleted", "noted")
        return {key: accessor.get(key) for key in keys}

    @task(retries=1, retry_delay=AT_ONCE)
    async def each(table):
        context = get_current_context()
        if context["ti"].try_number == 1:
            context["task_state_store"].set("table", table)
            raise RuntimeError("the next attempt goes on")
        async with task_state() as state:
            return await state.get_all()

    @task
    async def both():
        """The task's process saves the value itself, as `[workers] state_store_backend` has it do."""
        os.environ["AIRFLOW__WORKERS__STATE_STORE_BACKEND"] = BACKEND
        context = get_current_context()
        accessor = context["task_state_store"]
        accessor.set("large", {"rows": ["x" * 1000] * 100})
        accessor.set("deleted", 1)
        accessor.delete("deleted")
        async with task_state(TaskScope.from_airflow(context["ti"]), read_only=True) as state:
            return {
                "same": accessor.get("large") == await state.get("large") == {"rows": ["x" * 1000] * 100},
                "keys": sorted(await state.get_all()),
            }

    @task(inlets=[ORDERS, Asset.ref(uri=ORDERS.uri)], outlets=[ORDERS])
    async def assets():
        accessors = get_current_context()["asset_state_store"]
        by_name, by_uri = accessors[ORDERS], accessors[Asset.ref(uri=ORDERS.uri)]
        by_name.set("by_name", 1)
        await by_uri.aset("by_uri", 2)
        async with asset_state(ORDERS) as state:
            seen = await state.get_all()
            await state.set("by_state", 3)
        return {"seen": seen, "by_name": by_name.get("by_state"), "by_uri": await by_uri.aget("by_state")}

    @task
    def refused():
        accessor = get_current_context()["task_state_store"]
        errors = []
        for key, value in (("__ats:work", 1), ("large", "x" * 2**20)):
            try:
                accessor.set(key, value)
            except AirflowRuntimeError as error:
                errors.append(str(error))
        return errors

    cursor()
    each.expand(table=["orders", "customers"])
    both()
    assets()
    refused()
    JobOperator(task_id="job", retries=1, retry_delay=AT_ONCE)
