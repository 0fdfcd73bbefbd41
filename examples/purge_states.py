"""What has expired is deleted every night: keys past their retention, and states that nobody has touched for long."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.sdk import dag, task

from async_task_state import purge_sync


@dag(schedule="@daily", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc))
def example_purge_states() -> None:
    """Purge, as `async-task-state purge` does."""

    @task(retries=3, retry_delay=timedelta(minutes=10))
    def purge() -> int:
        return purge_sync()

    purge()


example_purge_states()
