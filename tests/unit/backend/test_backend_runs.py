"""A run that was made again under the same id neither sees nor keeps what the deleted one has left."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import partial

import anyio
import pytest

pytest.importorskip("airflow.state", reason="Airflow has state backends since 3.3")

from airflow import settings
from airflow.models.dagrun import DagRun
from airflow.sdk import state as sdk
from airflow.state import TaskScope
from airflow.utils.session import create_session, create_session_async
from sqlalchemy import Column, MetaData, Table, insert, update

from async_task_state import StaleAttemptError
from async_task_state import TaskScope as OurScope
from async_task_state import backend as module
from async_task_state.codec import MAX_TRIES
from async_task_state.runs import Run
from async_task_state.scopes import RunningTask
from async_task_state.testing.runs import run_made

T1 = datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc)
T2 = T1 + timedelta(minutes=5)
SCOPE = TaskScope("dag", "run", "task")
OURS = OurScope("dag", "run", "task")
FIRST = run_made(1, 1, T1)
COLUMNS = ("dag_id", "run_id", "start_date", "clear_number", "logical_date", "run_after")

pytestmark = pytest.mark.usefixtures("_settings_read_anew", "_airflow_imported")


@pytest.fixture(scope="module")
def dag_run():
    """Says of the run in Airflow's database when it was started, and how often it was cleared."""
    # Without what it refers to: dozens of tables.
    columns = [Column(name, DagRun.__table__.c[name].type) for name in COLUMNS]
    table = Table("dag_run", MetaData(), *columns)
    table.create(settings.engine)
    with create_session() as session:
        session.execute(insert(table).values(dag_id="dag", run_id="run", run_after=T1 - timedelta(days=1)))

    def dag_run(started, clears=0):
        with create_session() as session:
            session.execute(update(table).values(start_date=started, clear_number=clears))

    yield dag_run
    table.drop(settings.engine)
    settings.engine.dispose()


class WithSession:
    """A backend that is given sessions, as Airflow's API server does it."""

    def __init__(self, backend, kind):
        self._backend = backend
        self._kind = kind

    def __getattr__(self, name):
        return partial(self._asked if self._kind == "sync" else self._awaited, name)

    def _asked(self, name, *args, **options):
        with create_session() as session:
            return getattr(self._backend, name)(*args, **options, session=session)

    def _awaited(self, name, *args, **options):
        async def call():
            async with create_session_async() as session:
                answer = await getattr(self._backend, f"a{name}")(*args, **options, session=session)
            await settings.async_engine.dispose()
            return answer

        return anyio.run(call)


@pytest.fixture(params=["sync", "async"])
def server(request, backend, dag_run):
    return WithSession(backend, request.param)


@pytest.fixture
def left(of_store):
    """What the first run has left, under its lease and without it."""
    lease = of_store("acquire", OURS, 3, run_made(1, 3, T1)).lease
    of_store("write", OURS, {"job": ("1", None), MAX_TRIES: ("0", None)})
    return lease


def test_the_run_itself_sees_it_and_fences_nobody(server, dag_run, left, of_store):
    for started, clears in ((T1, 0), (T1, 1), (T2, 2)):
        dag_run(started, clears)
        assert server.get(SCOPE, "job") == "1"
    server.set(SCOPE, "page", "2")
    assert of_store("read", OURS).lease == left
    assert of_store("read", OURS).entries == {"job": "1", MAX_TRIES: "0", "page": "2"}


def test_one_that_was_made_again_does_not_see_it(server, dag_run, left, of_store):
    dag_run(T2)
    assert server.get(SCOPE, "job") is None
    server.delete(SCOPE, "job")
    server.clear(SCOPE)
    server.clear(SCOPE, all_map_indices=True)
    assert of_store("read", OURS).lease == left
    assert of_store("read", OURS).entries == {"job": "1", MAX_TRIES: "0"}


def test_what_it_writes_replaces_it_and_is_there_when_its_task_opens(server, dag_run, left, of_store):
    dag_run(T2)
    server.set(SCOPE, "page", "2")
    assert server.get(SCOPE, "page") == "2"
    assert server.get(SCOPE, "job") is None
    opened = of_store("acquire", OURS, 1, run_made(2, 1, T2))
    assert (opened.entries, opened.fresh) == ({"page": "2"}, False)
    assert opened.lease.epoch > left.epoch


def test_where_no_run_is_known_nothing_is_another_runs(server, dag_run, left, of_store):
    dag_run(None)
    assert server.get(SCOPE, "job") == "1"
    nowhere = TaskScope("dag", "no run", "task")
    server.set(nowhere, "job", "1")
    assert server.get(nowhere, "job") == "1"


# a worker's backend


@pytest.fixture
def running(monkeypatch):
    """Says which run the task of this process is in."""

    def running(run):
        monkeypatch.setattr(module, "running_task", lambda: RunningTask(OURS, 1, 1, run))

    return running


def test_a_workers_backend_knows_its_run(backend, running, left, of_store):
    save = backend.serialize_task_state_store_to_ref
    running(run_made(2, 1, T2))
    ref = save(value=7, key="page", scope=sdk.TaskScope("dag", "run", "task"))
    assert backend.deserialize_task_state_store_from_ref(ref) == 7
    assert of_store("read", OURS).entries == {"page": "7"}
    assert of_store("read", OURS).run == Run(started=T2).text
    running(FIRST)
    with pytest.raises(StaleAttemptError, match="nothing more is written to the state of dag/run/task"):
        save(value=8, key="page", scope=sdk.TaskScope("dag", "run", "task"))
    # It may say of another task whose state that is, and not in which run it writes.
    running(FIRST)
    save(value=8, key="page", scope=sdk.TaskScope("dag", "run", "other"))
    assert of_store("read", OurScope("dag", "run", "other")).run == ""
