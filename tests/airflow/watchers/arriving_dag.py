"""A watched asset; its DAG, without which Airflow would not watch it, never runs: what is looked at are the events."""

from __future__ import annotations

import os

from airflow.sdk import DAG, Asset, AssetWatcher, task

from async_task_state.compat import names_watched_assets
from async_task_state.triggers import NewFilesTrigger

trigger = NewFilesTrigger(
    f"{os.environ['AIRFLOW_HOME']}/arriving",
    asset=None if names_watched_assets() else "arriving",
    poll_interval=0.2,
    settle=0.2,
    sample=100,
)
arriving = Asset("arriving", watchers=[AssetWatcher(name="new_files", trigger=trigger)])

with DAG("arriving", schedule=arriving & Asset("never")):

    @task
    def nothing():
        """There must be a task."""

    nothing()
