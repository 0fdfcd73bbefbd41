"""Every example, run as its reader would run it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from jobserver import JobServer

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(airflow, tmp_path_factory):
    """Files for the examples to work on; and the examples, in the dags folder."""
    for example in EXAMPLES.glob("*.py"):
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


def test_process_files(airflow, folder):
    run = airflow.trigger("example_process_files", {"folder": f"{folder}/*.conf"})
    airflow.wait_for_run("example_process_files", run)
    deferred = airflow.result("example_process_files", run, "in_the_triggerer")
    assert (deferred["done"], deferred["totals"]) == (5, {"lines": 10})
    here = airflow.result("example_process_files", run, "on_the_worker")
    assert (here["done"], here["totals"]) == (5, {"bytes": 70})


def test_remote_job(airflow, folder):
    with JobServer() as server:
        run = airflow.trigger("example_remote_job", {"service": server.url})
        name = f"train {run}"
        airflow.wait(lambda: server.calls["poll", name], "the job is not polled", 60)
        server.end(name, "DONE")
        airflow.wait_for_run("example_remote_job", run)
        assert server.jobs(name) == ["DONE"]
    assert airflow.result("example_remote_job", run, "train")["output"].endswith("/output")
