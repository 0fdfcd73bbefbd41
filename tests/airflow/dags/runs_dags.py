"""DAGs whose runs, and which themselves, are deleted and made again."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, get_current_context, task
from crash_helpers import log_to

from async_task_state import task_state
from async_task_state.operators import ProcessFilesOperator


def conf():
    return get_current_context()["dag_run"].conf


with DAG("runs_async", schedule=None):

    @task(retries=1, retry_delay=timedelta(0))
    async def steps():
        given = conf()
        async with task_state(on_clear=given.get("on_clear")) as state:
            log_to(given["journal"], begun=state.attempt, resumed=state.resumed, cleared=state.cleared)
            work = state.work("steps")
            for step in work.remaining(range(given["steps"])):
                if state.attempt == 1 and step == given["steps"] // 2:
                    raise RuntimeError("the first attempt fails")
                log_to(given["journal"], step=step)
                await work.done(step)

    @task
    def holds():
        """Keeps the run running."""
        while not Path(conf()["go"]).exists():
            time.sleep(0.1)

    # One after the other: Airflow's API server stands still for 30 s at times where two tasks of a run begin at once on SQLite.
    steps() >> holds()

with DAG("runs_deferred", schedule=None):
    ProcessFilesOperator(
        task_id="steps",
        source="{{ dag_run.conf['source'] }}",
        processor="crash_helpers.plain_lines",
        deferrable=True,
        retries=1,
        retry_delay=timedelta(0),
    )
