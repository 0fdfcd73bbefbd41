"""Remote jobs on the server of the tests; a run's conf says where that is and what the job is called."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from async_task_state.operators import RemoteJobOperator

for dag_id, deferrable in (("job_here", False), ("job_deferred", True)):
    with DAG(dag_id, schedule=None):
        RemoteJobOperator(
            task_id="job",
            submit="job_calls.submit",
            poll="job_calls.poll",
            cancel="job_calls.cancel",
            result="job_calls.result",
            arguments={"service": "{{ dag_run.conf['service'] }}", "name": "{{ dag_run.conf['name'] }}"},
            poll_interval=0.1,
            max_poll_interval=0.2,
            max_poll_failures=3,
            deferrable=deferrable,
            retries=1,
            retry_delay=timedelta(seconds=1),
        )
