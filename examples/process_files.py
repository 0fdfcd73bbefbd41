"""The files that a user chooses from a folder, each processed once: in the triggerer, and on the worker."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow.sdk import DAG

from async_task_state.operators import ProcessFilesOperator

if TYPE_CHECKING:
    from pathlib import Path


def size(path: Path) -> dict[str, int]:
    """A plain function runs in a worker thread; the numbers it returns are added up in `totals`."""
    return {"bytes": len(path.read_bytes())}


with DAG(
    "example_process_files",
    schedule=None,
    params={"files": "*.conf"},
    default_args={"retries": 5, "retry_delay": timedelta(seconds=5)},
):
    in_the_triggerer = ProcessFilesOperator(
        task_id="in_the_triggerer",
        source="{{ params.files }}",
        # Whatever the user says, no other file is read.
        base="/etc",
        # The triggerer imports it, so it is a path: a module in the plugins folder, or one that is installed.
        processor="file_processors.count_lines",
        concurrency=32,
        deferrable=True,
    )
    on_the_worker = ProcessFilesOperator(
        task_id="on_the_worker",
        source="{{ params.files }}",
        base="/etc",
        processor=size,
        max_attempts=3,
        on_error="collect",
        deferrable=False,
    )
    in_the_triggerer >> on_the_worker
