"""What comes of a clear where Airflow asks the user whether the task keeps what it has left: since 3.4."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import anyio
import pytest

from async_task_state import SettingsError, StoreUnavailableError
from async_task_state.clear_choice import CHOICE, Choice
from async_task_state.scopes import RunningTask
from async_task_state.sync import SyncTaskState

pytestmark = pytest.mark.anyio

CHOICES = [False, True]


class Airflow:
    """What the running task reads of Airflow's own store."""

    def __init__(self):
        self.asked = 0
        self.note = None
        self.broken = None

    async def get(self, key):
        assert key == CHOICE
        self.asked += 1
        if self.broken is not None:
            raise self.broken
        return self.note

    def clears(self, attempt, *, kept):
        """What the API server notes."""
        self.note = Choice(attempt, kept, at_work=False).value


@pytest.fixture
def airflow(monkeypatch, scope):
    """An Airflow that asks its users, and runs the task."""
    airflow = Airflow()
    monkeypatch.setattr("async_task_state.clear_choice.asks_at_clear", lambda: True)
    monkeypatch.setattr("async_task_state.clear_choice.running_task", lambda: RunningTask(scope, 1, 1))
    monkeypatch.setattr("async_task_state.stores.airflow.channel_for", lambda *_: airflow)
    return airflow


async def leave(make_state, **values):
    async with make_state(attempt=1, max_tries=1) as state:
        await state.checkpoint(values)
        await state.work("files").done("a")


@pytest.mark.parametrize("on_clear", ["restart", "resume", lambda _: {"n": 0}])
async def test_g4_a_user_who_keeps_the_state_has_it_go_on(make_state, airflow, on_clear):
    await leave(make_state, n=1)
    airflow.clears(2, kept=True)
    async with make_state(attempt=2, max_tries=2, begun=2, on_clear=on_clear) as state:
        assert (state.cleared, state.resumed, await state.get_all()) == (True, True, {"n": 1})
        assert state.work("files").is_done("a")
        await state.set("n", 2)
    async with make_state(attempt=3, max_tries=2, begun=2) as state:
        assert (state.cleared, await state.get_all()) == (False, {"n": 2})


@pytest.mark.parametrize("is_noted", [False, True], ids=["asked-nobody", "discarded"])
@pytest.mark.parametrize(
    ("on_clear", "left"),
    [("restart", {}), ("resume", {"n": 1}), (lambda values: {"earlier": values["n"]}, {"earlier": 1})],
)
async def test_without_that_on_clear_decides(make_state, airflow, is_noted, on_clear, left):
    await leave(make_state, n=1)
    if is_noted:
        airflow.clears(2, kept=False)
    async with make_state(attempt=2, max_tries=2, begun=2, on_clear=on_clear) as state:
        assert (state.cleared, await state.get_all()) == (True, left)
    assert airflow.asked == 1


async def test_a_choice_counts_for_a_retry_where_the_first_attempt_never_opened_the_state(
    make_state, airflow
):
    await leave(make_state, n=1)
    airflow.clears(2, kept=True)
    async with make_state(attempt=3, max_tries=2, begun=2) as state:
        assert (state.cleared, await state.get_all()) == (True, {"n": 1})


async def test_a_choice_counts_though_the_retries_of_the_dag_have_changed_since(make_state, airflow):
    await leave(make_state, n=1)
    airflow.clears(2, kept=True)
    async with make_state(attempt=2, max_tries=2, begun=7) as state:
        assert (state.cleared, await state.get_all()) == (True, {"n": 1})


async def test_a_choice_at_an_earlier_clear_does_not_count(make_state, airflow):
    await leave(make_state, n=1)
    airflow.clears(2, kept=True)
    async with make_state(attempt=2, max_tries=2, begun=2) as state:
        assert await state.get_all() == {"n": 1}
    # A clear of the run deletes no note.
    async with make_state(attempt=3, max_tries=3, begun=3) as state:
        assert (state.cleared, await state.get_all()) == (True, {})


async def test_only_an_opening_that_finds_a_clear_asks(make_state, airflow):
    await leave(make_state, n=1)
    async with make_state(attempt=2, max_tries=1, begun=1):
        pass
    async with make_state(attempt=2):
        pass
    async with make_state(read_only=True, max_tries=2):
        pass
    assert airflow.asked == 0
    async with make_state(attempt=3, max_tries=3, begun=3) as state, make_state(attempt=3) as joined:
        assert joined is state
    async with make_state(attempt=3, max_tries=3, begun=3):
        pass
    assert airflow.asked == 1


@pytest.mark.parametrize(
    "broken", [StoreUnavailableError("no answer"), SettingsError("no way"), RuntimeError("500")]
)
@pytest.mark.parametrize(("on_clear", "left"), [("restart", {}), ("resume", {"n": 1})])
async def test_where_airflow_does_not_say_the_log_does_and_on_clear_decides(
    make_state, airflow, caplog, broken, on_clear, left
):
    await leave(make_state, n=1)
    airflow.broken = broken
    async with make_state(attempt=2, max_tries=2, begun=2, on_clear=on_clear) as state:
        assert (state.cleared, await state.get_all()) == (True, left)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(broken) in record.getMessage()
    assert "on_clear decides" in record.getMessage()


async def test_nothing_is_asked_before_3_4_nor_of_a_task_that_is_another(make_state, airflow, monkeypatch):
    await leave(make_state, n=1)
    airflow.clears(2, kept=True)
    monkeypatch.setattr("async_task_state.clear_choice.asks_at_clear", lambda: False)
    async with make_state(attempt=2, max_tries=2, begun=2) as state:
        assert await state.get_all() == {}
        await state.set("n", 2)
    monkeypatch.setattr("async_task_state.clear_choice.asks_at_clear", lambda: True)
    monkeypatch.setattr("async_task_state.clear_choice.running_task", lambda: None)
    async with make_state(attempt=3, max_tries=3, begun=3) as state:
        assert await state.get_all() == {}
    assert airflow.asked == 0


async def test_a_thread_asks_nothing_and_says_so(make_state, airflow, caplog):
    await leave(make_state, n=1)
    airflow.clears(2, kept=True)

    def open_in_thread():
        with SyncTaskState(make_state(attempt=2, max_tries=2, begun=2)) as state:
            return state.get_all()

    assert await anyio.to_thread.run_sync(open_in_thread) == {}
    assert airflow.asked == 0
    assert "not asked from a thread" in caplog.text


def test_the_sync_door_asks_too(make_state, airflow):
    asyncio.run(leave(make_state, n=1))
    airflow.clears(2, kept=True)
    with SyncTaskState(make_state(attempt=2, max_tries=2, begun=2)) as state:
        assert (state.cleared, state.get_all()) == (True, {"n": 1})


async def test_a_kept_clear_owes_no_call_of_on_user_kill(make_state, airflow, caplog):
    async with make_state(attempt=1, max_tries=1, trigger="a.Trigger") as state:
        await state.set("n", 1)
    airflow.clears(2, kept=True)
    async with make_state(attempt=2, max_tries=2, begun=2, trigger="a.Trigger") as state:
        assert not [key for key in state._values() if "kill:after" in key]
        assert await state.get_all() == {"n": 1}
    assert "owed" not in caplog.text


async def test_the_log_says_whose_choice_it_was(make_state, airflow, caplog):
    await leave(make_state, n=1)
    airflow.clears(2, kept=True)
    with caplog.at_level(logging.INFO):
        async with make_state(attempt=2, max_tries=2, begun=2):
            pass
    assert "resumes: the user who has cleared it keeps its state" in caplog.text


def test_a_note_survives_the_way_through_json():
    choice = Choice(3, kept=True, at_work=False)
    assert Choice.parse(choice.value) == choice
    for value in (None, [], {}, {**choice.value, "attempt": "3"}, {**choice.value, "kept": 1}):
        assert Choice.parse(value) is None


@pytest.mark.parametrize(
    ("version", "asks"),
    [("3.3.2", False), ("3.4.0b2", True), ("3.4.0", True), ("3.10.0.dev0", True), ("4.0.0", True)],
)
def test_airflow_asks_since_3_4(monkeypatch, version, asks):
    from async_task_state.compat import asks_at_clear  # noqa: PLC0415 - the real one

    monkeypatch.setitem(__import__("sys").modules, "airflow", SimpleNamespace(__version__=version))
    assert asks_at_clear() == asks
