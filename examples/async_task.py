"""An async task over many files that resumes: a retry goes on with the files that are left."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import anyio
from airflow.sdk import dag, task

from async_task_state import task_state


def files_in(folder: str) -> list[str]:
    """The files of a folder, in a stable order."""
    return sorted(str(path) for path in Path(folder).iterdir() if path.is_file())


async def load(path: str) -> int:
    """Stand-in for the real work: count a file's lines."""
    return (await anyio.Path(path).read_bytes()).count(b"\n")


@dag(schedule=None, params={"folder": "/etc"})
def example_async_task() -> None:
    """Count the lines of every file in a folder."""

    @task(retries=5, retry_delay=timedelta(seconds=5))
    async def ingest(params: dict[str, str] | None = None) -> int:
        paths = files_in((params or {})["folder"])
        async with task_state() as state:
            rows = await state.get("rows", 0)
            files = state.work("files")
            for path in files.remaining(paths):
                rows += await load(path)
                await files.done(path, rows=rows)
            return rows

    ingest()


example_async_task()
