"""The log of a task whose worker is killed, and which resumes, reads like a story."""

from __future__ import annotations

import os
import re
import signal

import pytest
from journal import Journal

pytestmark = pytest.mark.timeout(300)

DAG_FILE = """
from datetime import timedelta
import anyio
from airflow.sdk import DAG, get_current_context, task
from crash_helpers import log_to
from async_task_state import task_state

with DAG("story", schedule=None):

    @task(retries=1, retry_delay=timedelta(seconds=1))
    async def load():
        journal = get_current_context()["dag_run"].conf["journal"]

        async def load_file(name):
            await anyio.sleep(0.1)
            if name == "bad":
                raise ValueError("no header")
            log_to(journal, file=name)
            return {"rows": 1}

        async with task_state() as state:
            files = ["bad", *map(str, range(400))]
            return await state.work("files").process(files, load_file, concurrency=1, on_error="collect")

    load()
"""

CHAPTERS = (
    r"story/\S+/load: attempt 1 begins with an empty state",
    r"story/\S+/load: 'bad' of work set 'files' failed: ValueError: no header",
    r"story/\S+/load: attempt 2 resumes: 'files' \d+ done, 1 failed; \d keys, saved \d+ s ago",
    r"story/\S+/load: after 30 s: 'files' \d+ done",
    r"story/\S+/load: closed after \d+\.\d s: 'files' 400 done, 1 failed",
)


def test_a_killed_tasks_log_reads_like_a_story(airflow, tmp_path):
    (airflow.dags / "story.py").write_text(DAG_FILE)
    journal = Journal(tmp_path / "journal")
    run = airflow.trigger("story", {"journal": str(journal.path)})
    journal.wait_for("file", 30)
    os.kill(airflow.task_pid("story", run, "load"), signal.SIGKILL)
    airflow.wait_for_run("story", run, timeout=200)
    log = airflow.task_log("story", run, "load")
    told = 0
    for chapter in CHAPTERS:
        found = re.compile(chapter).search(log, told)
        assert found, f"no {chapter!r} after {log[:told][-200:]!r}"
        told = found.end()
