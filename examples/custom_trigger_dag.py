"""A DAG with the operator of `custom_trigger.py`."""

from __future__ import annotations

from airflow.sdk import DAG
from custom_trigger import CountPagesOperator

with DAG("example_custom_trigger", schedule=None, params={"pages": 200}):
    CountPagesOperator(task_id="count", pages="{{ params.pages }}")
