"""The same backend as `[workers] state_store_backend`: values saved by the task's process, references by the server."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone

import pytest

pytest.importorskip("airflow.state", reason="Airflow has state backends since 3.3")

from airflow.sdk.execution_time.context import _unwrap_external_ref, _wrap_external_ref
from airflow.sdk.state import AssetScope, TaskScope
from airflow.state import TaskScope as ServerScope

from async_task_state import InvalidKeyError, InvalidValueError, StoreError, ValueTooLargeError
from async_task_state import TaskScope as OurScope
from async_task_state.lifetime import writer_for
from async_task_state.settings import load_settings

SECTION = "AIRFLOW__ASYNC_TASK_STATE__"
TASK = TaskScope("dag", "run/é", "task", 3)
SERVER = ServerScope("dag", "run/é", "task", 3)
ASSET = AssetScope(name="asset")
VALUES = [
    "app_1234",
    17,
    1.5,
    True,
    ["a", None],
    {"rows": {"a/b": 7}},
    {"__airflow_state_ref__": "mine"},
    "\0\ud800",
]

pytestmark = pytest.mark.usefixtures("_settings_read_anew", "_airflow_imported")


class Worker:
    """What Airflow's accessors do with a worker's backend, for the task or for the asset."""

    def __init__(self, backend, scope):
        self.scope = scope
        kind = "task" if isinstance(scope, TaskScope) else "asset"
        self._to_ref = getattr(backend, f"serialize_{kind}_state_store_to_ref")
        self._from_ref = getattr(backend, f"deserialize_{kind}_state_store_from_ref")

    def stored(self, key, value):
        """What is sent to the API server for a value."""
        return json.dumps(_wrap_external_ref(self._to_ref(value=value, key=key, scope=self.scope)))

    def loaded(self, stored):
        """The value for what the API server has."""
        return self._from_ref(_unwrap_external_ref(json.loads(stored)))


@pytest.fixture(params=[TASK, ASSET], ids=["task", "asset"])
def worker(request, backend):
    return Worker(backend, request.param)


def until_gone(backend, scope, key):
    deadline = time.monotonic() + 30
    while backend.get(scope, key) is not None:
        assert time.monotonic() < deadline, f"{key} does not expire"
        time.sleep(0.02)


def test_a_value_comes_back_by_its_reference(worker):
    for value in VALUES:
        assert worker.loaded(worker.stored("key", value)) == value


def test_a_reference_is_the_same_for_a_key_and_another_for_another(worker):
    keys = ["a/b", "a_b", "a", "é"]
    references = [worker.stored(key, number) for number, key in enumerate(keys)]
    assert len(set(references)) == len(keys)
    assert [worker.stored(key, -number) for number, key in enumerate(keys)] == references
    assert [worker.loaded(reference) for reference in references] == [0, -1, -2, -3]


def test_a_reference_says_its_version_and_nothing_of_the_store(backend, dsn):
    reference = backend.serialize_task_state_store_to_ref(value=1, key="job", scope=TASK)
    assert reference == 'async_task_state:1:["dag","run/\\u00e9","task",3,"","job"]'


def test_the_value_is_under_the_very_scope_and_key(worker, backend):
    worker.stored("key", {"page": 17})
    assert json.loads(backend.get(worker.scope, "key")) == {"page": 17}


@pytest.mark.anyio
async def test_a_holder_sees_what_a_worker_saved(backend, make_state):
    async with make_state(OurScope("dag", "run/é", "task", 3)) as state:
        stored = Worker(backend, TASK).stored("key", 17)
        await state.refresh()
        assert await state.get("key") == 17
        await state.set("key", 18)
    assert Worker(backend, TASK).loaded(stored) == 18


def test_a_server_with_this_backend_keeps_the_value_and_not_the_reference(worker, backend):
    for value in VALUES:
        backend.set(worker.scope, "key", worker.stored("key", value))
        assert json.loads(backend.get(worker.scope, "key")) == value


def test_a_reference_that_comes_late_does_not_bring_an_older_value_back(worker, backend, dsn, monkeypatch):
    stored = worker.stored("key", 1)
    backend.set(worker.scope, "key", "2")
    # Nor is the value read and written again, for it could change between the two.
    monkeypatch.setattr(writer_for(dsn, load_settings()).store, "write", None)
    backend.set(worker.scope, "key", stored)
    assert backend.get(worker.scope, "key") == "2"


def test_a_server_with_this_backend_sets_the_expiry(backend):
    worker = Worker(backend, TASK)
    now = datetime.now(timezone.utc)
    backend.set(SERVER, "key", worker.stored("key", 1), expires_at=now + timedelta(seconds=60))
    backend.set(
        SERVER,
        "soon",
        worker.stored("soon", 1),
        expires_at=datetime.now(timezone.utc) + timedelta(seconds=0.3),
    )
    until_gone(backend, SERVER, "soon")
    assert backend.get(SERVER, "key") == "1"


def test_a_reference_by_uri_becomes_a_value_of_the_asset_that_the_server_found(backend):
    stored = Worker(backend, AssetScope(uri="s3://orders")).stored("key", 17)
    backend.set(ASSET, "key", stored)
    assert backend.get(ASSET, "key") == "17"


def test_another_backends_reference_and_a_value_like_it_are_kept_as_they_are(backend):
    for value in (
        '{"__airflow_state_ref__": "s3://bucket/key"}',
        '{"__airflow_state_ref__": 7}',
        '"__airflow_state_ref__"',
        '["__airflow_state_ref__"]',
    ):
        backend.set(SERVER, "key", value)
        assert backend.get(SERVER, "key") == value


def test_a_task_may_not_name_anothers_state(backend):
    stolen = Worker(backend, TASK).stored("secret", 17)
    other = TaskScope("dag", "run/é", "other")
    backend.set(other, "key", stolen)
    assert backend.get(other, "key") == stolen
    backend.set(TASK, "key", stolen)
    assert backend.get(TASK, "key") == stolen
    backend.set(ASSET, "key", stolen)
    assert backend.get(ASSET, "key") == stolen


def test_g8_a_value_that_is_gone_is_named(worker, backend):
    stored = worker.stored("key", 1)
    backend.delete(worker.scope, "key")
    soon = datetime.now(timezone.utc) + timedelta(seconds=60)
    for call in (
        lambda: worker.loaded(stored),
        lambda: backend.set(worker.scope, "key", stored, expires_at=soon),
    ):
        with pytest.raises(
            StoreError, match=r"the value of 'key' of .* is gone: .* \[async_task_state\] dsn names another"
        ):
            call()


def test_g8_the_reference_of_another_backend_is_refused(backend):
    with pytest.raises(StoreError, match=r"no reference of StateStoreBackend .*: 's3://bucket/key'"):
        backend.deserialize_task_state_store_from_ref("s3://bucket/key")


def test_g8_what_cannot_be_saved_is_refused(worker, backend, monkeypatch):
    monkeypatch.setenv(f"{SECTION}MAX_VALUE_BYTES", "1000")
    for key, value, error in [
        ("__ats:work", 1, InvalidKeyError),
        ("key", None, InvalidValueError),
        ("key", {"at": float("nan")}, InvalidValueError),
        ("key", "x" * 999, ValueTooLargeError),
    ]:
        with pytest.raises(error):
            worker.stored(key, value)
    assert backend.get(worker.scope, "key") is None
