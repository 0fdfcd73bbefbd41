"""The log of a task whose worker is killed, and which resumes, reads like a story."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def watching(airflow, *ids):
    """The command that shows how far a task is, as somebody runs it on a machine of this Airflow."""
    script = Path(sys.executable).with_name("async-task-state")
    line = [script, "watch", *ids, "--total", "401", "--interval", "0.5"]
    with subprocess.Popen(line, env=airflow.environment, stdout=subprocess.PIPE, text=True) as watch:
        try:
            yield watch
        finally:
            watch.kill()


def test_a_killed_tasks_log_reads_like_a_story(airflow, tmp_path):
    (airflow.dags / "story.py").write_text(DAG_FILE)
    journal = Journal(tmp_path / "journal")
    run = airflow.trigger("story", {"journal": str(journal.path)})
    journal.wait_for("file", 30)
    with watching(airflow, "story", run, "load") as watch:
        os.kill(airflow.task_pid("story", run, "load"), signal.SIGKILL)
        airflow.wait_for_run("story", run, timeout=200)
        *_, last, end = watch.communicate(timeout=60)[0].splitlines()
    assert last.endswith("files: 400 of 401 (99%) done, 1 failed, none left")
    assert (watch.returncode, end) == (0, f"story/{run}/load has ended: success")
    log = airflow.task_log("story", run, "load")
    told = 0
    for chapter in CHAPTERS:
        found = re.compile(chapter).search(log, told)
        assert found, f"no {chapter!r} after {log[:told][-200:]!r}"
        told = found.end()
