"""What Airflow loads of us in every process."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from async_task_state import listener
from async_task_state.compat import asks_at_clear

__all__ = ["AsyncTaskStatePlugin"]


def notes_of_clears(app: Any) -> Any:
    """The middleware that notes what users choose at a clear."""
    from async_task_state.clear_notes import NotesOfClears  # noqa: PLC0415 - every Airflow process loads this

    return NotesOfClears(app)


class AsyncTaskStatePlugin(AirflowPlugin):
    """Registers the listener and, where Airflow has something to choose at a clear, the middleware of the API server."""

    name = "async_task_state"
    listeners = [listener]  # noqa: RUF012 - Airflow's declaration
    fastapi_root_middlewares = (
        [{"name": "async_task_state", "middleware": notes_of_clears}] if asks_at_clear() else []
    )
