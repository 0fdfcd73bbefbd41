"""A password is nowhere to be seen: in no repr, error, log, traceback or list of processes."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from uuid import uuid4

import asyncpg
import psutil
import pytest
from roles import Role

import async_task_state
from async_task_state import (
    AsyncTaskStateError,
    InvalidArgumentError,
    Settings,
    SettingsError,
    StoreUnavailableError,
    TaskScope,
    TaskState,
    cli,
)
from async_task_state.lifetime import writer_for
from async_task_state.settings import check_count, load_settings
from async_task_state.stores import open_store
from async_task_state.stores.postgres_dsn import PostgresDsn

OURS = str(Path(async_task_state.__file__).parent)
SCOPE = TaskScope("dag", "run", "task")


@pytest.fixture(scope="module", autouse=True)
def _airflow():
    """It logs for ever to what is stderr when it is imported, which must not be one test's."""
    load_settings()


@pytest.fixture(scope="module")
def role(postgres):
    with Role.of(postgres) as role:
        postgres.query(
            f"GRANT CREATE ON DATABASE {postgres.query('SELECT current_database()')[0][0]} TO {role.name}"
        )
        yield role


@pytest.fixture
def dsn(postgres, role):
    return role.dsn(postgres.dsn())


@pytest.fixture
def hidden(role):
    """Whether a text shows no part of the password that could not be there by chance."""
    return lambda text: role.password.partition("@")[2] not in text


def told(error):
    """All that a tool tells of an error that shows the variables of frames: ours, and the driver's."""
    ours = traceback.TracebackException.from_exception(error, capture_locals=True)
    lines = []
    while ours is not None:
        lines += ours.format_exception_only()
        for frame in ours.stack:
            if frame.filename.startswith(OURS) or "asyncpg" in frame.filename:
                lines += [f"{name} = {value}" for name, value in (frame.locals or {}).items()]
        ours = ours.__cause__ or (None if ours.__suppress_context__ else ours.__context__)
    return "\n".join(lines)


async def by_store(dsn):
    store = open_store(dsn)
    try:
        await store.acquire(SCOPE, 1)
    finally:
        await store.close()


async def by_state(dsn):
    settings = Settings(dsn=dsn, outage_timeout=0.1, exit_timeout=0.1)
    async with TaskState(SCOPE, store=settings.dsn, settings=settings) as state:
        await state.set("a", 1)


def test_told_finds_what_is_there(dsn, hidden):
    with pytest.raises(InvalidArgumentError) as caught:
        check_count("files", dsn)
    assert not hidden(told(caught.value))


TROUBLE = {
    "wrong password": lambda dsn: dsn.replace("hunter2", "hunter3"),
    "no server": lambda dsn: re.sub(r":\d+/", ":1/", dsn),
    "no database": lambda dsn: re.sub(r"(?<=\d)/\w+", "/nowhere", dsn),
    "no file": lambda dsn: f"{dsn}&sslrootcert=/nowhere",
    "no such mode": lambda dsn: f"{dsn}&sslmode=nonsense",
    "old TLS": lambda dsn: f"{dsn}&sslmode=require&ssl_max_protocol_version=SSLv3",
    "no session": lambda dsn: f"{dsn}&target_session_attrs=nonsense",
    "no hosts": lambda dsn: re.sub(r"@[^/@]+/", "@/", f"{dsn}&host=a,b,c&port=1,2"),
    "no socket": lambda dsn: re.sub(r"@[^/@]+/", "@/", f"{dsn}&host=/nowhere"),
}


@pytest.mark.parametrize("use", [by_store, by_state])
@pytest.mark.parametrize("trouble", TROUBLE)
def test_g8_no_error_log_or_traceback_shows_a_password(dsn, hidden, caplog, trouble, use):
    caplog.set_level(logging.DEBUG)
    dsn = TROUBLE[trouble](dsn)
    assert not hidden(dsn)
    with pytest.raises(AsyncTaskStateError) as caught:
        asyncio.run(use(dsn))
    assert hidden(told(caught.value))
    assert hidden(caplog.text)


@pytest.mark.parametrize("read", [PostgresDsn.parse, open_store])
@pytest.mark.parametrize("dsn_of", [lambda dsn: dsn.replace("%40", "@"), lambda dsn: f"{dsn}&nonsense=1"])
def test_g8_no_variable_of_ours_shows_a_password(dsn, hidden, dsn_of, read):
    with pytest.raises(SettingsError) as caught:
        read(dsn_of(dsn))
    assert hidden(told(caught.value))


ENDED = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'"


@pytest.mark.asyncio
async def test_g8_a_connection_that_is_lost_shows_no_password(postgres, dsn, hidden, caplog):
    caplog.set_level(logging.DEBUG)
    name = f"test-{uuid4().hex}"
    store = open_store(f"{dsn}&application_name={name}")
    administrator = await asyncpg.connect(postgres.address)
    try:
        await store.acquire(SCOPE, 1)
        async with administrator.transaction():
            await administrator.execute(f"LOCK TABLE {PostgresDsn.parse(dsn).schema}.entry")
            reading = asyncio.create_task(store.read(SCOPE))
            while not await asyncio.to_thread(postgres.query, ENDED, name):
                pass
            with pytest.raises(StoreUnavailableError) as caught:
                await reading
    finally:
        await administrator.close()
        await store.close()
    assert hidden(told(caught.value))
    assert hidden(caplog.text)


@pytest.mark.asyncio
async def test_no_repr_shows_a_password(dsn, hidden):
    settings = Settings(dsn=dsn)
    state = TaskState(SCOPE, store=settings.dsn, settings=settings)
    async with state:
        writer = writer_for(settings.dsn, settings)
        parsed = PostgresDsn.parse(dsn)
        for shown in (settings, settings.dsn, state, state.work("files"), writer, writer.store, parsed):
            assert hidden(repr(shown))
        assert hidden(repr(parsed.arguments()))
        assert hidden(repr(vars(writer)) + repr(vars(writer.store)))


@pytest.mark.usefixtures("_settings_read_anew")
def test_no_command_shows_a_password(dsn, hidden, capsys, monkeypatch):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", dsn)
    for command in (
        "check",
        "list",
        "init-db",
        "check",
        "list",
        "purge",
        "init-db --sql",
        "show a b c",
        "check --json",
    ):
        cli.main(command.split())
        out, err = capsys.readouterr()
        assert out + err
        assert hidden(out + err)


def test_the_list_of_processes_shows_no_password(dsn, hidden):
    program = """
        import asyncio, sys
        from async_task_state import TaskScope, task_state
        from async_task_state.settings import load_settings

        async def main():
            async with task_state(TaskScope("dag", "run", "task"), store=load_settings().dsn) as state:
                await state.set("a", 1)
                print("open", flush=True)
                sys.stdin.read()

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**os.environ, "AIRFLOW__ASYNC_TASK_STATE__DSN": dsn}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        try:
            while (line := process.stdout.readline()) != "open\n":
                assert line, process.stderr.read()
            first = psutil.Process(process.pid)
            for one in (first, *first.children(recursive=True)):
                assert hidden(" ".join(one.cmdline()) + one.name())
            _, said = process.communicate("", timeout=60)
            assert process.returncode == 0
            assert hidden(said)
        finally:
            process.kill()
