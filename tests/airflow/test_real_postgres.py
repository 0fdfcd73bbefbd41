"""State in PostgreSQL, found by the id of a connection that Airflow keeps; two triggerers and a worker die."""

from __future__ import annotations

import os
import signal
import time
from urllib.parse import urlsplit

import pytest
from journal import Journal, wait_for

from async_task_state.sandbox import Sandbox
from async_task_state.sandbox_postgres import PostgresServer

STEPS = 250
CONFIG = {"async_task_state": {"dsn": "", "conn_id": "state_db"}}


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def airflow(server, dags):
    with Sandbox(*dags, config=CONFIG, report=print) as sandbox:
        parts = urlsplit(server.dsn())
        connection = {
            "connection_id": "state_db",
            "conn_type": "postgres",
            "host": parts.hostname,
            "port": parts.port,
        }
        login = {"login": parts.username, "password": parts.password, "schema": parts.path[1:]}
        sandbox.rest("POST", "/connections", connection | login)
        sandbox.start_triggerer()
        yield sandbox


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def begin(airflow, dag_id, journal):
    return airflow.trigger(dag_id, {"journal": str(journal.path), "steps": STEPS})


def check_no_password(airflow, server):
    logs = [path for path in airflow.home.rglob("*.log*") if path.is_file()]
    assert logs
    assert [path for path in logs if server.password in path.read_text(errors="replace")] == []


def test_g2_the_other_triggerer_goes_on_where_a_killed_one_stood(airflow, journal, server):
    run = begin(airflow, "deferred", journal)
    lines = journal.wait_for("step", STEPS // 2)
    [at_work] = [triggerer for triggerer in airflow.triggerers if lines[0]["pid"] in triggerer.pids]
    at_work.kill()
    killed_at = time.time()
    airflow.wait_for_run("deferred", run)
    assert airflow.result("deferred", run, "steps") == {"sum": sum(range(STEPS)), "done": STEPS, "leg": 1}
    journal.check_rework("step", set(range(STEPS)), killed_at)
    check_no_password(airflow, server)


def test_g2_a_killed_task_resumes_in_its_retry(airflow, journal, server):
    run = begin(airflow, "async_task", journal)
    journal.wait_for("step", STEPS // 2)
    os.kill(airflow.task_pid("async_task", run, "steps"), signal.SIGKILL)
    killed_at = time.time()
    airflow.wait_for_run("async_task", run)
    assert airflow.result("async_task", run, "steps") == sum(range(STEPS))
    journal.check_rework("step", set(range(STEPS)), killed_at)
    check_no_password(airflow, server)


def test_g5_a_server_that_is_killed_and_started_again_costs_nothing(airflow, journal, server):
    run = begin(airflow, "deferred", journal)
    for part in (1, 2, 3):
        seen = STEPS * part // 4
        wait_for(lambda seen=seen: len(journal.having("step")) >= seen)
        server.kill()
        server.start()
    airflow.wait_for_run("deferred", run)
    assert [line["step"] for line in journal.having("step")] == list(range(STEPS))
    assert airflow.result("deferred", run, "steps") == {"sum": sum(range(STEPS)), "done": STEPS, "leg": 1}
