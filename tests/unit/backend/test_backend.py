"""Airflow's state backend on our stores: what Airflow's own tests demand of one, sync and async, and what we add."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from uuid import UUID

import anyio
import pytest

pytest.importorskip("airflow.state", reason="Airflow has state backends since 3.3")

from airflow.sdk import state as sdk
from airflow.state import AssetScope, TaskScope
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from async_task_state import (
    InvalidKeyError,
    InvalidValueError,
    StaleAttemptError,
    StateTooLargeError,
    StoreUnavailableError,
    TaskState,
    ValueTooLargeError,
)
from async_task_state import TaskScope as OurScope
from async_task_state import backend as module
from async_task_state.backend import StateStoreBackend
from async_task_state.codec import MAX_TRIES
from async_task_state.lifetime import writer_for
from async_task_state.settings import load_settings

SECTION = "AIRFLOW__ASYNC_TASK_STATE__"
SCOPE = TaskScope("dag", "run", "task")
NO_REGION = UUID(int=0)
RESERVED = "__ats:work:files:0000000000"
VALUES = [
    '"app_1234"',
    "app_1234",
    '{"a": 1,  "b":[1.0, 2e3, null]}',
    '"\\u00e9"',
    '"\N{ROCKET} é\\n"',
    "0.1000",
    json.dumps("x" * 100_000),
]

pytestmark = pytest.mark.usefixtures("_settings_read_anew", "_airflow_imported")


@dataclass(frozen=True)
class RegionScope(TaskScope):
    """A task's scope as Airflow 3.4 has it."""

    region_id: UUID = NO_REGION


@pytest.mark.parametrize(
    "scope",
    [SCOPE, sdk.TaskScope("dag", "run", "task"), AssetScope(name="a/b"), sdk.AssetScope(uri="s3://a/b")],
    ids=["server-task", "worker-task", "server-asset", "worker-asset"],
)
def test_a_value_comes_back_byte_for_byte_and_is_overwritten(door, scope):
    assert door.get(scope, "key") is None
    for value in VALUES:
        door.set(scope, "key", value)
        assert door.get(scope, "key") == value
    assert door.get(scope, "other") is None


def test_server_and_worker_mean_the_same_task(door):
    door.set(SCOPE, "key", '"value"')
    assert door.get(sdk.TaskScope("dag", "run", "task"), "key") == '"value"'


@pytest.mark.parametrize("scope", [SCOPE, AssetScope(name="asset")], ids=["task", "asset"])
def test_delete_removes_that_key_alone(door, scope):
    door.set(scope, "job_id", "1")
    door.set(scope, "checkpoint", "2")
    door.delete(scope, "job_id")
    door.delete(scope, "job_id")
    door.delete(scope, "nonexistent")
    assert door.get(scope, "job_id") is None
    assert door.get(scope, "checkpoint") == "2"


@pytest.mark.parametrize("all_map_indices", [False, True])
@pytest.mark.parametrize("scope", [SCOPE, AssetScope(name="asset")], ids=["task", "asset"])
def test_clear_removes_every_key(door, of_store, scope, all_map_indices):
    for key in ("job_id", "checkpoint", "watermark"):
        door.set(scope, key, "1")
    of_store("write", door._backend._known(scope), {RESERVED: ('"work"', None)})
    door.clear(scope, all_map_indices=all_map_indices)
    assert of_store("read", door._backend._known(scope)).entries == {}


def test_a_task_that_is_cleared_here_still_knows_a_users_clear(door, of_store):
    noted = {MAX_TRIES: ("1", None)}
    of_store("write", OurScope("dag", "run", "task"), {**noted, RESERVED: ('"work"', None)})
    door.clear(SCOPE)
    assert of_store("read", OurScope("dag", "run", "task")).entries == {MAX_TRIES: "1"}


def test_nothing_is_made_by_looking_deleting_or_clearing(door, of_store):
    for scope in (SCOPE, AssetScope(name="asset")):
        assert door.get(scope, "key") is None
        door.delete(scope, "key")
        door.clear(scope)
        door.clear(scope, all_map_indices=True)
    assert of_store("scopes") == []


def test_map_indexes_and_runs_and_tasks_are_isolated(door):
    scopes = [
        TaskScope("dag", run, task, index)
        for run in ("run", "run2")
        for task in ("task", "task2")
        for index in (-1, 0, 1)
    ]
    for number, scope in enumerate(scopes):
        door.set(scope, "key", str(number))
    for number, scope in enumerate(scopes):
        assert door.get(scope, "key") == str(number)
    door.clear(scopes[1])
    assert [number for number, scope in enumerate(scopes) if door.get(scope, "key") is None] == [1]
    door.clear(scopes[1], all_map_indices=True)
    assert [number for number, scope in enumerate(scopes) if door.get(scope, "key") is None] == [0, 1, 2]


@pytest.mark.parametrize("operation", ["update", "delete", "clear_index", "clear_region"])
def test_regions_are_isolated(door, operation):
    regions = [NO_REGION, UUID(int=1), UUID(int=2)]
    expected = {
        (RegionScope("dag", "run", "task", index, region), key): f'"{region}:{index}:{key}"'
        for region in regions
        for index in (0, 1)
        for key in ("value", "other")
    }
    for (scope, key), value in expected.items():
        door.set(scope, key, value)
    target = RegionScope("dag", "run", "task", 0, regions[1])
    assert door.get(RegionScope("dag", "run", "task", 0, UUID(int=3)), "value") is None
    if operation == "update":
        door.set(target, "value", '"updated"')
        expected[target, "value"] = '"updated"'
    elif operation == "delete":
        door.delete(target, "value")
        expected[target, "value"] = None
    else:
        everywhere = operation == "clear_region"
        door.clear(target, all_map_indices=everywhere)
        for scope, key in expected:
            if scope.region_id == regions[1] and (everywhere or scope.map_index == 0):
                expected[scope, key] = None
    assert {where: door.get(*where) for where in expected} == expected


def test_no_region_is_the_region_of_all_zeros(door):
    door.set(RegionScope("dag", "run", "task"), "key", "1")
    assert door.get(SCOPE, "key") == "1"


def test_assets_are_isolated(door):
    scopes = [AssetScope(name="one"), AssetScope(name="two"), AssetScope(uri="one"), AssetScope(name="One")]
    for number, scope in enumerate(scopes):
        assert door.get(scope, "watermark") is None
        door.set(scope, "watermark", str(number))
    door.clear(scopes[0], all_map_indices=True)
    assert [door.get(scope, "watermark") for scope in scopes] == [None, "1", "2", "3"]


def test_keys_that_look_alike_do_not_collide(door):
    keys = ["a/b", "a_b", "a", "a/b/c", "A/B", "..", ".", "é/\N{ROCKET}", "a%2Fb", "a b", "k" * 512]
    for number, key in enumerate(keys):
        door.set(SCOPE, key, str(number))
    assert [door.get(SCOPE, key) for key in keys] == [str(number) for number in range(len(keys))]
    door.delete(SCOPE, "a/b")
    assert door.get(SCOPE, "a/b") is None
    assert door.get(SCOPE, "a_b") == "1"


def test_what_work_sets_keep_is_not_seen(door, of_store):
    of_store("write", OurScope("dag", "run", "task"), {RESERVED: ('"work"', None)})
    assert door.get(SCOPE, RESERVED) is None
    door.delete(SCOPE, RESERVED)
    with pytest.raises(InvalidKeyError, match="must not start with '__ats:', which is reserved"):
        door.set(SCOPE, RESERVED, "1")
    assert of_store("read", OurScope("dag", "run", "task")).entries == {RESERVED: '"work"'}


@pytest.mark.parametrize("key", ["", "k" * 513, "a\0b", "\ud800", 7])
def test_g8_what_cannot_be_a_key_is_refused(door, of_store, key):
    for call in (
        lambda: door.get(SCOPE, key),
        lambda: door.set(SCOPE, key, "1"),
        lambda: door.delete(SCOPE, key),
    ):
        with pytest.raises(InvalidKeyError):
            call()
    assert of_store("scopes") == []


def test_g8_a_value_that_is_too_long_names_the_setting(door, monkeypatch):
    monkeypatch.setenv(f"{SECTION}MAX_VALUE_BYTES", "1000")
    door.set(SCOPE, "key", "x" * 1000)
    for value in ("y" * 1001, "é" * 501):
        with pytest.raises(
            ValueTooLargeError,
            match=r"'key' is 1,00. bytes of JSON; \[async_task_state\] max_value_bytes allows 1,000",
        ):
            door.set(SCOPE, "key", value)
    assert door.get(SCOPE, "key") == "x" * 1000


@pytest.fixture
def answer():
    """What the API server answers to a request that has the backend do something."""

    def answer(work):
        app = FastAPI()
        app.add_api_route("/", work)

        async def ask():
            transport = ASGITransport(app, raise_app_exceptions=False)
            async with AsyncClient(transport=transport, base_url="http://airflow") as client:
                return await client.get("/")

        return asyncio.run(ask())

    return answer


def test_g8_a_worker_hears_why_it_was_refused(backend, answer):
    refusal = answer(lambda: backend.set(SCOPE, RESERVED, "1"))
    assert refusal.status_code == 400
    assert "must not start with '__ats:'" in refusal.json()["detail"]


def test_g8_a_worker_hears_why_the_store_is_away(monkeypatch, answer):
    """It is told to try again, before the API server is out of connections that wait with it."""
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.2)
    monkeypatch.setenv(f"{SECTION}OUTAGE_TIMEOUT", "86400")
    monkeypatch.setenv(f"{SECTION}DSN", "postgresql://127.0.0.1:1/nowhere")
    backend = StateStoreBackend()
    session = SimpleNamespace(execute=lambda _query: SimpleNamespace(first=lambda: None))
    refusal = answer(lambda: backend.get(SCOPE, "key", session=session))
    assert refusal.status_code == 503
    assert "PostgreSQL cannot be reached" in refusal.json()["detail"]
    with pytest.raises(StoreUnavailableError):
        backend.get(SCOPE, "key", session=session)


@pytest.mark.parametrize("call", ["get", "set", "delete", "clear"])
def test_async_methods_leave_the_loop_alone(backend, monkeypatch, dsn, call):
    store = writer_for(dsn, load_settings()).store
    threads = []

    def noting(method):
        async def noted(*args, **options):
            threads.append(threading.get_ident())
            return await method(*args, **options)

        return noted

    backend.set(SCOPE, "key", "1")
    for name in ("read", "write", "scopes"):
        monkeypatch.setattr(store, name, noting(getattr(store, name)))
    arguments = {"get": ("key",), "set": ("key", "2"), "delete": ("key",), "clear": ()}[call]
    anyio.run(partial(getattr(backend, f"a{call}"), SCOPE, *arguments))
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.anyio
async def test_a_holder_sees_what_was_written_here_and_keeps_its_lease(backend, make_state):
    ours = OurScope("dag", "run", "task")
    async with make_state(ours, attempt=3) as state:
        await state.set("kept", 1)
        await state.work("files").done("a.csv", rows=1)
        await state.flush()
        await backend.aset(SCOPE, "job_id", '"abc"')
        await backend.aset(SCOPE, "rows", "7")
        await backend.adelete(SCOPE, "kept")
        await state.refresh()
        assert await state.get_all() == {"job_id": "abc", "rows": 7}
        assert state.work("files").is_done("a.csv")
        await state.work("files").done("b.csv", rows=8)
        assert await state.is_current()
        assert await backend.aget(SCOPE, "rows") == "8"
        await backend.aclear(SCOPE)
        await state.refresh()
        assert await state.get_all() == {}
        await state.set("after", 1)
    assert await backend.aget(SCOPE, "after") == "1"
    with pytest.raises(StaleAttemptError):
        await make_state(ours, attempt=2).__aenter__()


@pytest.mark.anyio
async def test_a_task_finds_what_was_written_before_anybody_held_it(backend, make_state):
    await backend.aset(SCOPE, "cursor", '{"page": 17}')
    async with make_state(OurScope("dag", "run", "task"), attempt=1) as state:
        assert state.resumed
        assert await state.get("cursor") == {"page": 17}
        await state.checkpoint(cursor={"page": 18})
    assert json.loads(await backend.aget(SCOPE, "cursor")) == {"page": 18}
    assert isinstance(state, TaskState)


@pytest.mark.parametrize("depth", [201, 900, 100_000])
def test_a_value_nested_too_deep_is_refused(door, depth):
    door.set(SCOPE, "k", "1")
    with pytest.raises(InvalidValueError, match=r"'k' is nested too deeply.*200"):
        door.set(SCOPE, "k", "[" * depth + "]" * depth)
    assert door.get(SCOPE, "k") == "1"


@pytest.mark.parametrize("scope", [SCOPE, AssetScope(name="a")], ids=["task", "asset"])
def test_g8_a_value_that_makes_the_state_too_large_is_refused(door, monkeypatch, scope):
    monkeypatch.setenv(f"{SECTION}MAX_STATE_BYTES", "100")
    with pytest.raises(StateTooLargeError, match="would hold 101 with key 'a'"):
        door.set(scope, "a", "x" * 100)
    door.set(scope, "a", "x" * 50)
    door.set(scope, "b", "é" * 20)
    for key, text in {"b": "é" * 25, "c": "x" * 8}.items():
        with pytest.raises(
            StateTooLargeError,
            match=rf" holds 92 bytes, .* with key '{key}'; \[async_task_state\] max_state_bytes allows 100: delete",
        ):
            door.set(scope, key, text)
    assert [door.get(scope, key) for key in "abc"] == ["x" * 50, "é" * 20, None]
    monkeypatch.setenv(f"{SECTION}MAX_STATE_BYTES", "60")
    load_settings.cache_clear()
    door.set(scope, "a", "y" * 49)
    door.delete(scope, "a")
    door.set(scope, "c", "x" * 8)
    with pytest.raises(StateTooLargeError):
        door.set(scope, "c", "x" * 20)
    door.clear(scope)
    door.set(scope, "c", "x" * 59)


def test_g8_the_server_says_that_a_state_is_too_large(answer, backend, monkeypatch):
    monkeypatch.setenv(f"{SECTION}MAX_STATE_BYTES", "100")
    response = answer(lambda: backend.set(SCOPE, "a", "x" * 100))
    assert (response.status_code, "max_state_bytes allows 100" in response.text) == (400, True)


@pytest.mark.parametrize("scope", [SCOPE, AssetScope(name="a")], ids=["task", "asset"])
def test_g8_values_saved_at_once_hold_no_more_than_the_limit(door, monkeypatch, of_store, scope):
    monkeypatch.setenv(f"{SECTION}MAX_STATE_BYTES", "105")
    start = threading.Barrier(20)

    def save(number):
        start.wait()
        try:
            door.set(scope, f"{number:02}", "x" * 8)
        except StateTooLargeError:
            return False
        return True

    with ThreadPoolExecutor(20) as threads:
        assert sum(threads.map(save, range(20))) == 10
    assert len(of_store("read", door._backend._known(scope)).entries) == 10


def test_a_value_is_saved_without_reading_the_others(door, monkeypatch, of_store, dsn):
    door.set(SCOPE, "a", "1")
    monkeypatch.setattr(writer_for(dsn, load_settings()).store, "read", None)
    door.set(SCOPE, "b", "2")
    monkeypatch.undo()
    assert of_store("read", OurScope("dag", "run", "task")).entries == {"a": "1", "b": "2"}
