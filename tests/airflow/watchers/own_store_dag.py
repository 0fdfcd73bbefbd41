"""An asset that is watched with state in Airflow's own store; its DAG never runs."""

from __future__ import annotations

import os

from airflow.sdk import DAG, Asset, AssetWatcher, task
from own_store_watch import OwnStoreTrigger

trigger = OwnStoreTrigger(f"{os.environ['AIRFLOW_HOME']}/own_store", poll_interval=0.2, settle=0.2)
watched = Asset("own_store", watchers=[AssetWatcher(name="new_files", trigger=trigger)])

with DAG("own_store", schedule=watched & Asset("never")):

    @task
    def nothing():
        """There must be a task."""

    nothing()
