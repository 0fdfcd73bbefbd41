"""The demo's DAG: an operator that defers over every file of a folder."""

from __future__ import annotations

from airflow.sdk import DAG

from async_task_state.operators import ProcessFilesOperator

with DAG("async_task_state_demo", schedule=None):
    ProcessFilesOperator(
        task_id="measure",
        source="{{ dag_run.conf['folder'] }}",
        processor="async_task_state.demo_work.measure",
        concurrency=16,
        deferrable=True,
    )
