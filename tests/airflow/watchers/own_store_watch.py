"""A watcher that keeps its state in Airflow's own store, in a module that the triggerer can import."""

from __future__ import annotations

from async_task_state.triggers import NewFilesTrigger


class OwnStoreTrigger(NewFilesTrigger):
    """Whatever the dsn is."""

    store = "airflow:"
