"""Options and fixtures of the whole suite."""

from __future__ import annotations

import importlib
import os
import signal
import tempfile
from functools import partial
from types import SimpleNamespace

import hypothesis
import pytest
from postgres import Postgres
from roles import Role

from async_task_state import Settings, TaskScope, TaskState
from async_task_state.lifetime import shutdown, writer_for
from async_task_state.settings import allowed_protocols, check_executor, load_settings

REAL = {"airflow", "compat"}
# Airflow reads and writes the home of whoever imports it, which the conftest.py of a folder may do before any hook runs.
HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")
os.environ["AIRFLOW_HOME"] = HOME.name


def pytest_addoption(parser):
    parser.addoption(
        "--kills", type=int, default=200, help="how often tests/faults kills a process, each store"
    )
    parser.addoption(
        "--failovers",
        type=int,
        default=1,
        help="how often tests/faults promotes a standby that lags, and puts a backup back",
    )
    parser.addoption(
        "--busy-runs",
        type=int,
        default=1,
        help="how often tests/faults runs each kind of busy loop, each store",
    )
    parser.addoption("--crowd", type=int, default=20, help="how many processes share too few connections")
    parser.addoption("--crowd-connections", type=int, default=10, help="how many connections they have")
    parser.addoption("--chaos-seconds", type=float, default=60, help="how long tests/faults kills a server")
    parser.addoption(
        "--deaths",
        type=int,
        default=2,
        help="how many triggerers die in tests/airflow, 20 s each, while files arrive",
    )
    parser.addoption(
        "--clears",
        type=int,
        default=2,
        help="how many deferred tasks tests/airflow clears or marks, each way",
    )
    parser.addoption(
        "--other-airflows",
        action="store_true",
        help="install older Airflows and the next one in environments of their own and run a part of the tests there, 3 to 6 minutes each",
    )
    parser.addoption("--seed", type=int, help="the seed of the first kill; random when not given")


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        # A worker ignores it, and so would what tests start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.add_cleanup(HOME.cleanup)
    # Tests share their machine: how long an example takes says nothing.
    hypothesis.settings.register_profile("shared", deadline=None)
    hypothesis.settings.load_profile("shared")


def pytest_collection_modifyitems(items):
    # What asyncio's debug mode finds is the caller's side, which is the same with every store.
    items[:] = [item for item in items if not is_debug_again(item)]
    # The real Airflow last: while it is up it takes over signals, and most of the machine.
    items.sort(key=lambda item: item.path.parent.name in REAL)


def is_debug_again(item):
    parameters = getattr(item, "callspec", None)
    ids = parameters.id.split("-") if parameters else []
    return "debug" in ids and ("sqlite" in ids or "postgres" in ids)


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {}), id="asyncio"),
        pytest.param(("asyncio", {"debug": True}), id="asyncio-debug"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def _no_writer_left():
    """A test's writers end with it."""
    yield
    shutdown()


@pytest.fixture
def _settings_read_anew():
    """What was read from Airflow's config is forgotten before a test and after it."""
    caches = (allowed_protocols, load_settings, check_executor)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def scope():
    return TaskScope("dag", "run", "task")


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server: the one that ASYNC_TASK_STATE_TEST_POSTGRES names, or else one of our own."""
    with Postgres.of_environment() as server:
        yield server


@pytest.fixture
def role(postgres):
    """A role of that server that may connect, and do nothing else."""
    with Role.of(postgres) as role:
        yield role


@pytest.fixture(scope="session")
def _airflow_imported():
    """It logs for ever to what is stderr when it is imported, which must not be one test's."""
    importlib.import_module("async_task_state.compat")


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def dsn(request, tmp_path):
    """A store that holds nothing yet."""
    if request.param == "memory":
        return f"memory:{tmp_path}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    return request.getfixturevalue("postgres").dsn()


@pytest.fixture
def settings(dsn):
    return Settings(dsn=dsn)


@pytest.fixture
def make_state(scope, settings):
    """Makes the handle that `task_state()` would, without Airflow's config."""

    def make_state(of=scope, *, store=settings.dsn, settings=settings, **options):
        return TaskState(of, store=store, settings=settings, **options)

    return make_state


@pytest.fixture
def in_task():
    """Runs a block as Airflow runs a task."""
    from airflow.sdk.definitions.context import Context  # noqa: PLC0415 - takes a second
    from airflow.sdk.execution_time.context import set_current_context  # noqa: PLC0415 - the same

    def in_task(scope, attempt=1):
        names = ("dag_id", "run_id", "task_id", "map_index")
        row = dict(zip(names, scope.row, strict=False))
        return set_current_context(
            Context(ti=SimpleNamespace(**row, try_number=attempt), task=SimpleNamespace(on_kill=None))
        )

    return in_task


@pytest.fixture
def saved(make_state):
    """What the store has, as another process would see it."""

    async def saved():
        async with make_state(read_only=True) as state:
            return await state.get_all()

    return saved


@pytest.fixture
def on_store(settings):
    """Calls a method of the store itself."""

    async def on_store(method, *args, **options):
        writer = writer_for(settings.dsn, settings)
        return await writer.call(partial(getattr(writer.store, method), **options), *args)

    return on_store
