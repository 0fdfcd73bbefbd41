"""The note of what a user has chosen at a clear is in Airflow's own table, past the backend."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("airflow.state", reason="Airflow has state backends since 3.3")

from airflow import settings
from airflow.models import dagrun  # noqa: F401 - to whose table the one below refers
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.state import TaskScope
from airflow.utils.session import create_session, create_session_async
from sqlalchemy import text

from async_task_state.clear_choice import CHOICE

NOTE = '{"attempt": 2, "kept": true, "at_work": false}'
SCOPE = TaskScope("dag", "run", "task")

pytestmark = pytest.mark.usefixtures("_settings_read_anew")


@pytest.fixture
def _noted():
    TaskStateStoreModel.__table__.create(settings.engine)
    with create_session() as session:
        # A run of which nothing but the number is asked.
        session.execute(text("CREATE TABLE dag_run (id INTEGER PRIMARY KEY)"))
        session.execute(text("INSERT INTO dag_run VALUES (1)"))
        # Since Airflow 3.4 a region has the index.
        place = {"region_index": -1} if hasattr(TaskStateStoreModel, "region_index") else {"map_index": -1}
        row = TaskStateStoreModel(
            dag_run_id=1, dag_id="dag", run_id="run", task_id="task", key=CHOICE, value=NOTE, **place
        )
        session.add(row)
    yield
    TaskStateStoreModel.__table__.drop(settings.engine)
    with create_session() as session:
        session.execute(text("DROP TABLE dag_run"))
    settings.engine.dispose()


async def asked(backend):
    async with create_session_async() as session:
        text = await backend.aget(SCOPE, CHOICE, session=session)
    await settings.async_engine.dispose()
    return text


@pytest.mark.usefixtures("_noted")
def test_both_ways_to_ask_find_the_note(backend):
    with create_session() as session:
        assert backend.get(SCOPE, CHOICE, session=session) == NOTE
    assert asyncio.run(asked(backend)) == NOTE


@pytest.mark.usefixtures("_noted")
def test_who_has_no_session_of_airflows_finds_none(backend):
    assert backend.get(SCOPE, CHOICE) is None
    assert asyncio.run(backend.aget(SCOPE, CHOICE)) is None
