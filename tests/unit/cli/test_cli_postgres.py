"""The commands on PostgreSQL, by a role that may use the tables and not make any."""

from __future__ import annotations

import json

import pytest

from async_task_state import StoreError, TaskScope, cli
from async_task_state.stores.postgres_dsn import PostgresDsn
from async_task_state.stores.postgres_schema import MIGRATIONS, grants, script

IDS = ("dag", "run", "task")
VERSION = len(MIGRATIONS)

pytestmark = pytest.mark.usefixtures("_airflow_imported")


@pytest.fixture
def admin(postgres):
    """A dsn of somebody who may do anything."""
    return postgres.dsn()


@pytest.fixture
def schema(admin):
    return PostgresDsn.parse(admin).schema


@pytest.fixture
def dsn(admin, role):
    return role.dsn(admin)


@pytest.fixture
def tables(run, admin, role):
    assert run("init-db", "--role", role.name, store=admin)[0] == 0


@pytest.fixture
def there(postgres, schema):
    """The version of the tables, if there are any."""

    def there():
        if postgres.query("SELECT to_regclass($1)::text", f"{schema}.version")[0][0] is None:
            return 0
        return postgres.query(f"SELECT version FROM {schema}.version")[0][0]

    return there


@pytest.fixture
def answers(run, _settings_read_anew):
    """What `check --json` found: the exit code and what was said of the server, the tables and the store."""

    def answers(**options):
        code, out, _ = run("check", "--json", **options)
        found = {answer["check"]: (answer["ok"], answer["detail"]) for answer in json.loads(out)["checks"]}
        return code, {name: found[name] for name in ("dsn", "server", "tables", "store") if name in found}

    return answers


@pytest.mark.usefixtures("tables")
def test_a_role_with_grants_can_use_every_command(run, fill, answers):
    fill(rows=1, done=3, failed=1)
    fill(TaskScope("other", "run", "task"))
    assert [info["dag_id"] for info in json.loads(run("list", "--json")[1])] == ["other", "dag"]
    assert len(json.loads(run("list", "--json", "--dag", "dag")[1])) == 1
    shown = json.loads(run("show", *IDS, "--json")[1])
    assert (shown["values"], shown["work"][0]["done"], shown["work"][0]["failed"]) == ({"rows": 1}, 3, 1)
    watched = json.loads(run("watch", *IDS, "--until", "3", "--json")[1])
    assert watched["work"][0]["done"] == 3
    code, found = answers()
    assert code == 0
    assert found["store"] == (True, "can be read and written, and holds 2 states")
    assert run("clear", *IDS, "--yes")[0] == 0
    assert json.loads(run("show", *IDS, "--json")[1])["values"] == {}
    assert json.loads(run("purge", "--json")[1]) == {"purged": 0}
    assert run("init-db")[0] == 0


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["list"], 0),
        (["purge"], 0),
        (["show", *IDS], 1),
        (["clear", *IDS, "--yes"], 1),
        (["watch", *IDS], 1),
        (["check"], 0),
    ],
)
@pytest.mark.parametrize("found", range(VERSION))
@pytest.mark.usefixtures("_settings_read_anew")
def test_looking_makes_and_changes_no_tables(run, admin, postgres, schema, there, command, expected, found):
    if found:
        postgres.query(script(schema, MIGRATIONS[:found]))
    code, out, err = run(*command, store=admin)
    what = (
        f"the tables in schema {schema} are of version {found}"
        if found
        else f"no tables yet in schema {schema}"
    )
    assert code == expected
    assert what in out + err
    assert "on first use, or by init-db" in out + err
    assert there() == found


def test_check_says_what_it_found(run, answers, admin, dsn, role, schema, fill, tables):
    code, found = answers()
    assert code == 0
    assert found["dsn"] == (True, PostgresDsn.parse(dsn).address)
    assert found["server"][1].endswith(f" answers, as role {role.name}")
    assert found["tables"] == (True, f"schema {schema}, version {VERSION}")
    out = run("check")[1]
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["check", "result"],
        *(
            [name, "ok"]
            for name in ("settings", "dsn", "executor", "server", "tables", "role", "connections", "store")
        ),
        ["all", "is"],
    ]


def test_g8_check_asks_for_all_that_trouble_leaves_to_ask(answers, postgres, admin, dsn, role, schema, there):
    code, found = answers()
    assert (code, list(found)) == (1, ["dsn", "server", "tables"])
    assert f"`async-task-state init-db --sql --role {role.name}`" in found["tables"][1]
    code, found = answers(store=admin)
    assert (code, found["tables"]) == (
        0,
        (True, f"none yet in schema {schema}, where this role may make them"),
    )
    postgres.query(script(schema, MIGRATIONS[:1]))
    for statement in grants(schema, role.name).splitlines():
        postgres.query(statement)
    code, found = answers()
    assert (code, list(found)) == (1, ["dsn", "server", "tables"])
    assert (
        "may not make or change the tables of async-task-state (it does not own them)" in found["tables"][1]
    )
    postgres.query(f"UPDATE {schema}.version SET version = {VERSION + 1}")
    code, found = answers()
    assert "upgrade async-task-state" in found["store"][1]
    code, found = answers(store=dsn.replace("hunter2", "hunter3"))
    assert (code, list(found)) == (1, ["dsn", "server"])
    assert "password authentication failed" in found["server"][1]
    code, found = answers(store=f"{admin}&options=-c%20synchronous_commit%3Doff")
    assert (code, list(found)) == (1, ["dsn", "server", "tables", "store"])
    assert [ok for ok, _ in found.values()] == [True, False, True, False]
    assert (
        "synchronous_commit is off, so a crash of the server would lose what was saved" in found["server"][1]
    )


@pytest.mark.usefixtures("_settings_read_anew")
def test_g8_check_goes_on_after_each_line_that_others_do_not_depend_on(run, admin, dsn, tables, monkeypatch):
    def asked(store):
        code, out, _ = run("check", "--json", store=store)
        return code, {answer["check"]: answer["ok"] for answer in json.loads(out)["checks"]}

    every = ["settings", "dsn", "executor", "server", "tables", "role", "connections", "store"]
    code, answers = asked(f"{dsn}&options=-c%20synchronous_commit%3Doff")
    assert (code, list(answers)) == (1, every)
    assert [name for name, ok in answers.items() if not ok] == ["server"]
    monkeypatch.setattr("async_task_state.cli_deployment.describe_role", fails)
    monkeypatch.setattr("async_task_state.cli_deployment.describe_connections", fails)
    code, answers = asked(dsn)
    assert (code, list(answers)) == (1, every)
    assert [name for name, ok in answers.items() if not ok] == ["role", "connections"]
    monkeypatch.setattr("async_task_state.cli_postgres.describe_tables", fails)
    code, answers = asked(dsn)
    assert (code, list(answers)) == (1, every[:-1])


async def fails(dsn):
    raise StoreError("no")


# init-db


def test_init_db_says_what_it_did(run, postgres, admin, role, schema, there):
    address = PostgresDsn.parse(admin).address
    postgres.query(script(schema, MIGRATIONS[:1]))
    where = f"the tables in schema {schema} of {address}"
    assert run("init-db", store=admin) == (0, f"brought {where} from version 1 to {VERSION}\n", "")
    assert run("init-db", store=admin) == (0, f"{where} are there and up to date\n", "")
    postgres.query(f"DROP SCHEMA {schema} CASCADE")
    assert (
        run("init-db", "--role", role.name, store=admin)[1]
        == f"made {where}; role {role.name} may use them\n"
    )
    assert there() == VERSION
    postgres.query(f"DROP SCHEMA {schema} CASCADE")
    for done in ("made", "there"):
        code, out, _ = run("init-db", "--json", store=admin)
        assert (code, json.loads(out)) == (0, {"dsn": address, "tables": done, "role": None})


def test_g8_init_db_says_what_it_may_not_do(run, admin, dsn, role):
    code, out, err = run("init-db")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: the role '{role.name}' may not make or change the tables")
    code, out, err = run("init-db", "--role", "no such role", store=admin)
    assert (code, out) == (1, "")
    assert 'role "no such role" does not exist' in err


def test_init_db_prints_sql_without_a_server(capsys, schema):
    dsn = f"postgresql://user:hunter2@127.0.0.1:1/db?schema={schema}"
    assert cli.main(["init-db", "--sql", "--dsn", dsn]) == 0
    assert capsys.readouterr() == (script(schema), "")
    assert cli.main(["init-db", "--sql", "--role", 'a "role"', "--dsn", dsn]) == 0
    assert capsys.readouterr() == (script(schema) + grants(schema, 'a "role"'), "")
    assert cli.main(["init-db", "--sql", "--json", "--dsn", dsn]) == 0
    assert json.loads(capsys.readouterr().out) == {"sql": script(schema)}


def test_init_db_makes_an_sqlite_file(run, tmp_path):
    path = tmp_path / "state.db"
    assert run("init-db", store=f"sqlite:///{path}") == (0, f"made {path}\n", "")
    assert path.exists()
    assert run("init-db", store=f"sqlite:///{path}") == (0, f"{path} is there and up to date\n", "")


@pytest.mark.parametrize(
    ("store", "options", "said"),
    [
        ("sqlite:////nowhere/state.db", ["--sql"], "--sql is for a postgresql dsn"),
        ("memory:", ["--sql"], "--sql is for a postgresql dsn"),
        ("sqlite:////nowhere/state.db", ["--role", "app"], "--role is for a postgresql dsn"),
        ("memory:", [], "memory: has no tables"),
        ("sqlite:////nowhere/state.db", [], "the directory /nowhere for the database does not exist"),
        ("oracle://me:hunter2@host/db", ["--sql"], "[async_task_state] dsn takes"),
        ("postgresql://me:hunter2@host/db?schema=1", ["--sql"], "schema in [async_task_state] dsn must be"),
        ("postgresql://me:hunter2@127.0.0.1:1/db", [], "PostgreSQL cannot be reached"),
    ],
)
def test_g8_init_db_says_what_it_cannot_do(run, store, options, said):
    code, out, err = run("init-db", *options, store=store)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert said in err
    assert "hunter2" not in err


def test_g8_commands_say_that_no_host_is_what_the_dsn_asks_for(run, tables, dsn):
    code, out, err = run("list", store=f"{dsn}&target_session_attrs=standby")
    assert (code, out) == (1, "")
    assert err.startswith("error: no host of [async_task_state] dsn is what it asks for")


@pytest.mark.usefixtures("_settings_read_anew")
def test_commands_take_an_airflow_connection(run, fill, tables, dsn, monkeypatch, answers):
    monkeypatch.setenv("AIRFLOW_CONN_STATE_DB", dsn.replace("postgresql:", "postgres:"))
    fill(rows=1)
    assert json.loads(run("list", "--json", store="conn_id:state_db")[1])[0]["keys"] == 1
    code, found = answers(store="conn_id:state_db")
    assert code == 0
    assert found["dsn"][1].endswith(" of the connection state_db")
    assert run("list", store="conn_id:nowhere")[0] == 1


def test_a_mapped_task_is_watched(run, admin, tables, fill):
    for index in range(3):
        fill(TaskScope(*IDS, index), done=index)
    code, out, _ = run("watch", *IDS, "--until", "3", "--total", "2")
    assert code == 0
    assert [line.split("  ")[1] for line in out.splitlines()] == ["0", "1", "2", "all 3 map indexes"]
    assert out.endswith("files: 3 of 4 (75%) done, 0 failed\n")
    assert run("show", *IDS, "--map-index", "2")[0] == 0
