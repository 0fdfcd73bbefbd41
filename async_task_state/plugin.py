"""What Airflow loads of us in every process."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from async_task_state import listener

__all__ = ["AsyncTaskStatePlugin"]


class AsyncTaskStatePlugin(AirflowPlugin):
    """Registers the listener."""

    name = "async_task_state"
    listeners = [listener]  # noqa: RUF012 - Airflow's declaration
