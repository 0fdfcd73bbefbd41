"""The README's tasks and operator, in a real Airflow."""

from __future__ import annotations

import pytest
from readme import block

pytestmark = pytest.mark.timeout(240)

TASKS = """
from airflow.sdk import DAG, task
from async_task_state import task_state

async def load(path):
    return len(path)

with DAG("readme_{name}", schedule=None):
{code}
    ingest(["a", "bb", "ccc"])
"""

OPERATOR = """
from airflow.sdk import DAG
from async_task_state.operators import ProcessFilesOperator

with DAG("readme_operator", schedule=None, params={{"folder": ""}}):
    {code}
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
    (tmp_path / "a.txt").write_text("one")
    (airflow.dags / "my_processors.py").write_text(
        "async def load(path, state):\n    return {'bytes': path.stat().st_size}\n"
    )
    (airflow.dags / "readme_operator.py").write_text(
        OPERATOR.format(code=block("ProcessFilesOperator(").strip())
    )
    run = airflow.trigger("readme_operator", {"folder": str(tmp_path)})
    airflow.wait_for_run("readme_operator", run)
    assert airflow.result("readme_operator", run, "load")["totals"] == {"bytes": 3}
