"""Every example, run as its reader would run it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import airflow.sdk
import pytest
from jobserver import JobServer

from async_task_state import TaskScope
from async_task_state.stores import open_store, sqlite_path

EXAMPLES = Path(__file__).parents[2] / "examples"
HAS_LOOPS = hasattr(airflow.sdk, "LoopDecision")

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(airflow, tmp_path_factory):
    """Files for the examples to work on; and the examples, in the dags folder."""
    for example in EXAMPLES.glob("*.py"):
        if HAS_LOOPS or "loop" not in example.name:
            shutil.copy(example, airflow.dags)
    folder = tmp_path_factory.mktemp("conf")
    for number in range(5):
        (folder / f"{number}.conf").write_text("a line\n" * number)
    return folder


def test_async_task(airflow, folder):
    run = airflow.trigger("example_async_task", {"folder": str(folder)})
    airflow.wait_for_run("example_async_task", run)
    assert airflow.result("example_async_task", run, "ingest") == 10


def test_custom_trigger(airflow, folder):
    run = airflow.trigger("example_custom_trigger", {"pages": 20})
    airflow.wait_for_run("example_custom_trigger", run)
    assert airflow.result("example_custom_trigger", run, "count") == 90


@pytest.mark.skipif(not HAS_LOOPS, reason="Airflow has loops since 3.4")
def test_refine_loop(airflow, folder):
    run = airflow.trigger("example_refine_loop")
    airflow.wait_for_run("example_refine_loop", run)
    memory = airflow.result("example_refine_loop", run, "report")
    assert memory["best"] == pytest.approx(2**0.5)
    errors = [memory["errors"][str(index)] for index in range(len(memory["errors"]))]
    assert errors == sorted(errors, reverse=True)
    assert [error < 1e-6 for error in errors] == [*[False] * (len(errors) - 1), True]


def test_process_files(airflow, folder):
    files = [path.read_bytes() for path in Path("/etc").glob("*.conf") if not path.is_symlink()]
    run = airflow.trigger("example_process_files")
    airflow.wait_for_run("example_process_files", run)
    deferred = airflow.result("example_process_files", run, "in_the_triggerer")
    lines = sum(data.count(b"\n") for data in files)
    assert (deferred["done"], deferred["totals"]) == (len(files), {"lines": lines})
    here = airflow.result("example_process_files", run, "on_the_worker")
    assert (here["done"], here["totals"]) == (len(files), {"bytes": sum(map(len, files))})


def test_remote_job(airflow, folder):
    with JobServer() as server:
        run = airflow.trigger("example_remote_job", {"service": server.url})
        name = f"train {run}"
        airflow.wait(lambda: server.calls["poll", name], "the job is not polled", 60)
        server.end(name, "DONE")
        airflow.wait_for_run("example_remote_job", run)
        assert server.jobs(name) == ["DONE"]
    assert airflow.result("example_remote_job", run, "train")["output"].endswith("/output")


def test_purge_states(airflow, folder):
    scope = TaskScope("dag", "run", "forgotten")

    async def with_store(work):
        store = open_store(airflow.dsn)
        try:
            return await work(store)
        finally:
            await store.close()

    async def leave(store):
        await store.write(scope, {"expired": ("1", 1e-9), "kept": ("2", None)})

    asyncio.run(with_store(leave))
    run = airflow.trigger("example_purge_states")
    airflow.wait_for_run("example_purge_states", run)
    assert airflow.result("example_purge_states", run, "purge") >= 1
    with closing(sqlite3.connect(sqlite_path(airflow.dsn))) as db:
        assert db.execute("SELECT count(*) FROM entry WHERE key = 'expired'").fetchone() == (0,)
    assert asyncio.run(with_store(lambda store: store.read(scope))).entries == {"kept": "2"}
