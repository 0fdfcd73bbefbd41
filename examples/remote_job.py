"""A job on another system: submitted once, watched in the triggerer, cancelled when a user clears or fails the task."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from async_task_state.operators import RemoteJobOperator

with DAG(
    "example_remote_job",
    schedule=None,
    params={"service": "http://localhost:8000"},
    default_args={"retries": 3, "retry_delay": timedelta(seconds=5)},
):
    RemoteJobOperator(
        task_id="train",
        # The triggerer imports them, so they are paths: a module in the plugins folder, or one that is installed.
        submit="job_service.submit",
        poll="job_service.poll",
        cancel="job_service.cancel",
        result="job_service.result",
        arguments={"service": "{{ params.service }}", "name": "train {{ run_id }}"},
        statuses={"DONE": "succeeded"},
        poll_interval=1,
        deferrable=True,
    )
