"""Tasks that are deferred until their user has changed his mind; a run's conf says how many, and how slow the worker is."""

from __future__ import annotations

import time

from airflow.sdk import DAG, BaseOperator, task
from kill_helpers import WatchJob


class WatchJobOperator(BaseOperator):
    """Defers, after a pause where a user has cleared it."""

    def __init__(self, *, job: str, **options):
        super().__init__(**options)
        self.job = job

    def execute(self, context):
        given = context["dag_run"].conf
        if context["ti"].try_number > 1:
            time.sleep(given["pause"])
        self.defer(trigger=WatchJob(given["journal"], self.job), method_name="end")

    def end(self, context, event):
        return event


with DAG("killed", schedule=None):

    @task
    def jobs(**context):
        return [f"job {number}" for number in range(context["dag_run"].conf["jobs"])]

    WatchJobOperator.partial(task_id="job", retries=0).expand(job=jobs())
