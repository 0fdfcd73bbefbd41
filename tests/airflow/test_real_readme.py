"""The README's tasks and operator, in a real Airflow."""

from __future__ import annotations

import pytest
from readme import block

pytestmark = pytest.mark.timeout(240)

TASKS = """
from airflow.sdk import DAG, task

async def load(path):
    return len(path)

with DAG("readme_{name}", schedule=None):
{code}
    ingest(["a", "bb", "ccc"])
"""

OPERATOR = """
from airflow.sdk import DAG

with DAG("readme_operator", schedule=None):
{code}
"""

ASSET = """
from airflow.sdk import DAG

async def orders_after(since):
    return ["a", "b", "c"][since:]

with DAG("readme_asset", schedule=None):
{code}
    load_new_orders()
"""

SYNC = """
from airflow.sdk import DAG, get_current_context

def fetch(page):
    attempt = get_current_context()["ti"].try_number
    if attempt == 1 and page == 5:
        raise RuntimeError("half way")
    if attempt == 2 and page < 5:
        raise RuntimeError("was done before")

{code}

with DAG("readme_sync", schedule=None):
    LoadPages(task_id="load", retries=1, retry_delay=0)
"""


def indented(code):
    return "".join(f"    {line}\n" for line in code.splitlines())


@pytest.mark.parametrize(("name", "mark"), [("plain", "rows = 0"), ("resuming", "files.remaining")])
def test_the_tasks(airflow, name, mark):
    (airflow.dags / f"readme_{name}.py").write_text(TASKS.format(name=name, code=indented(block(mark))))
    run = airflow.trigger(f"readme_{name}")
    airflow.wait_for_run(f"readme_{name}", run)
    assert airflow.result(f"readme_{name}", run, "ingest") == 6


def test_the_operator(airflow, tmp_path):
    (tmp_path / "a.csv").write_text("one")
    (airflow.dags / "my_processors.py").write_text(
        "async def load(path, state):\n    return {'bytes': path.stat().st_size}\n"
    )
    (airflow.dags / "readme_operator.py").write_text(
        OPERATOR.format(code=indented(block("ProcessFilesOperator("))).replace("/data/orders", str(tmp_path))
    )
    run = airflow.trigger("readme_operator")
    airflow.wait_for_run("readme_operator", run)
    assert airflow.result("readme_operator", run, "load")["totals"] == {"bytes": 3}


def test_what_belongs_to_an_asset(airflow):
    (airflow.dags / "readme_asset.py").write_text(ASSET.format(code=indented(block("asset_state(orders)"))))
    for expected in (3, 0):
        run = airflow.trigger("readme_asset")
        airflow.wait_for_run("readme_asset", run)
        assert airflow.result("readme_asset", run, "load_new_orders") == expected


def test_the_operator_that_does_not_await(airflow):
    (airflow.dags / "readme_sync.py").write_text(SYNC.format(code=block("task_state_sync()")))
    run = airflow.trigger("readme_sync")
    airflow.wait_for_run("readme_sync", run)
    [task] = airflow.rest("GET", f"/dags/readme_sync/dagRuns/{run}/taskInstances")["task_instances"]
    # The first attempt dies half way, and the second goes on from there.
    assert task["try_number"] == 2
