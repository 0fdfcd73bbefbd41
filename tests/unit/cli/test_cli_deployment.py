"""What `check` says of the role that the dsn names, and of the connections that the deployment may need."""

from __future__ import annotations

import json
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

pytestmark = pytest.mark.usefixtures("_airflow_imported", "_settings_read_anew")


@pytest.fixture
def dsn(postgres, role):
    """Of a role that owns its schema, and nothing else."""
    dsn = postgres.dsn()
    postgres.query(f'CREATE SCHEMA "{postgres.schemas[-1]}" AUTHORIZATION {role.name}')
    return role.dsn(dsn)


@pytest.fixture
def found(run):
    """What `check --json` says of one thing: whether it warns, and the detail; nothing fails."""

    def found(name, **options):
        code, out, err = run("check", "--json", **options)
        answers = {answer["check"]: answer for answer in json.loads(out)["checks"]}
        assert (code, err) == (0, "")
        assert answers[name]["ok"]
        return answers[name]["warning"], answers[name]["detail"]

    return found


def test_a_role_of_its_own_is_right(found, role):
    assert found("role") == (False, f"{role.name} may not read Airflow's tables")


def test_a_superuser_is_warned_of(found, postgres):
    warned, said = found("role", store=postgres.dsn())
    assert warned
    assert "is a superuser: each DAG author" in said


@pytest.mark.parametrize("driver", ["postgresql+psycopg2", "postgresql", "postgresql+asyncpg"])
def test_airflows_own_role_is_warned_of(found, monkeypatch, dsn, role, driver):
    address = dsn.partition("?")[0].replace("postgresql", driver, 1)
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", address)
    warned, said = found("role")
    assert warned
    assert said.startswith(f"{role.name} is Airflow's own role ([database] sql_alchemy_conn)")
    assert "CREATE ROLE async_task_state LOGIN PASSWORD '...' CONNECTION LIMIT" in said


def test_another_role_in_airflows_database_is_none_of_airflows(found, monkeypatch, postgres):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", postgres.address)
    assert not found("role")[0]


def test_a_role_that_can_read_airflows_tables_is_warned_of(found, postgres, role):
    schema = f"test_{uuid4().hex}"
    postgres.schemas.append(schema)
    postgres.query(f"CREATE SCHEMA {schema}")
    try:
        for table in ("dag_run", "connection"):
            postgres.query(f"CREATE TABLE {schema}.{table} ()")
        assert not found("role")[0]
        postgres.query(f"GRANT USAGE ON SCHEMA {schema} TO {role.name}")
        postgres.query(f"GRANT SELECT ON {schema}.connection TO {role.name}")
        warned, said = found("role")
        assert warned
        assert f"may read Airflow's tables ({schema}.connection)" in said
    finally:
        postgres.query(f"DROP SCHEMA {schema} CASCADE")


@pytest.mark.parametrize(("limit", "warned"), [(43, True), (44, False)])
def test_connections_are_compared_with_what_the_deployment_may_start(
    found, run, monkeypatch, postgres, role, limit, warned
):
    monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "38")
    postgres.query(f"ALTER ROLE {role.name} CONNECTION LIMIT {limit}")
    warns, said = found("connections")
    assert warns is warned
    assert said.startswith(
        "up to 40 processes have one each with one scheduler and one triggerer (38 tasks by"
    )
    assert f"the role {role.name} may have {limit}, and 1 are in use" in said
    assert ("ALTER ROLE ... CONNECTION LIMIT 44" in said) is warned
    assert ("max_connections" in said) is False
    last = run("check")[1].splitlines()[-1]
    assert last == ("states are kept, 1 warning" if warned else "all is well")


def test_connections_of_api_servers_and_celery_are_named(found, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__CELERY__WORKER_CONCURRENCY", "5")
    monkeypatch.setenv("AIRFLOW__STATE_STORE__BACKEND", "async_task_state.backend.StateStoreBackend")
    monkeypatch.setenv("AIRFLOW__API__WORKERS", "4")
    said = found("connections")[1]
    assert said.startswith("up to 38 processes")
    assert "or 5 for each Celery worker where these are fewer" in said
    assert "4 for each API server by [api] workers" in said


def test_a_server_that_is_too_small_is_warned_of(found, monkeypatch, dsn):
    monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "512")
    warned, said = found("connections")
    assert warned
    assert "the server may have" in said
    assert "max_connections 571 and what others need" in said
    assert not found("connections", store=f"{dsn}&pgbouncer=true")[0]
    assert urlsplit(dsn).password not in said
