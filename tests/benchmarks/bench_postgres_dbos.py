"""How many steps a second a workflow of DBOS makes: `python bench_postgres_dbos.py DSN STEPS`."""

from __future__ import annotations

import asyncio
import sys
import time

from bench_postgres import check_settings
from dbos import DBOS
from sqlalchemy import text


@DBOS.step()
def step(number: int) -> int:
    return number


@DBOS.workflow()
def work(steps: int) -> float:
    started = time.perf_counter()
    for number in range(steps):
        step(number)
    elapsed = time.perf_counter() - started
    check(DBOS.workflow_id, steps)
    return elapsed


def check(workflow: str, steps: int) -> None:
    """What another connection sees before the workflow ends is committed."""
    with application._sys_db.engine.connect() as db:

        async def ask(statement: str, **arguments: str) -> object:
            return db.execute(text(statement), arguments).scalar_one()

        asyncio.run(check_settings(ask))
        saved = "SELECT count(*) FROM dbos.operation_outputs WHERE workflow_uuid = :workflow"
        seen = asyncio.run(ask(saved, workflow=workflow))
    if seen != steps:
        raise AssertionError(seen)


if __name__ == "__main__":
    application = DBOS(config={"name": "benchmark", "system_database_url": sys.argv[1], "log_level": "ERROR"})
    DBOS.launch()
    wanted = int(sys.argv[2])
    rate = wanted / work(wanted)
    DBOS.destroy()
    sys.stdout.write(str(rate))
