"""A real Airflow whose own task and asset state is kept in our store."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest
from journal import Journal

pytest.importorskip("airflow.state", reason="Airflow has state backends since 3.3")

import airflow.example_dags

from async_task_state import asset_state_sync
from async_task_state.codec import MAX_TRIES
from async_task_state.sandbox import Sandbox
from async_task_state.stores import open_store

HERE = Path(__file__).parent
BUNDLED = Path(airflow.example_dags.__file__).parent
EXAMPLES = ("example_task_state_store", "example_task_state_store_mapped", "example_asset_state_store")
PRODUCER, CONSUMER = "example_asset_state_store_producer", "example_asset_state_store_consumer"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def backed():
    """A running Airflow with our backend, which deletes a task's state when the task has succeeded."""
    dags = [
        HERE / "backend_dags.py",
        HERE / "dags" / "crash_helpers.py",
        *(BUNDLED / f"{name}.py" for name in EXAMPLES),
    ]
    config = {
        "state_store": {"backend": "async_task_state.backend.StateStoreBackend", "clear_on_success": True},
    }
    with Sandbox(*dags, config=config, report=print) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return Journal(tmp_path_factory.mktemp("backend") / "journal")


@pytest.fixture(scope="module")
def runs(backed, journal):
    """A run of each DAG, begun at once: most of the time goes into waiting for tasks to start."""
    conf = {"journal": str(journal.path), "done": str(journal.path.parent / "done")}
    runs = {"backend": backed.trigger("backend", conf)}
    return runs | {name: backed.trigger(name) for name in (*EXAMPLES[:2], PRODUCER)}


@pytest.fixture(scope="module")
def result(backed, runs):
    """What a task of our own DAG returned."""

    def result(task_id, map_index=-1):
        backed.wait_for_task("backend", runs["backend"], task_id, map_index, timeout=120)
        return backed.result("backend", runs["backend"], task_id, map_index)

    return result


def test_an_unchanged_resumable_operator_attaches_again_when_its_worker_was_killed(
    backed, runs, journal, result
):
    journal.wait_for("polled", 1, timeout=120)
    os.kill(backed.task_pid("backend", runs["backend"], "job"), signal.SIGKILL)
    journal.wait_for("polled", 2, timeout=120)
    (journal.path.parent / "done").touch()
    assert result("job") == {"job": "job-1"}
    assert [line["submitted"] for line in journal.having("submitted")] == [1]
    assert [line["attempt"] for line in journal.having("polled")] == [1, 2]


def test_the_accessor_and_task_state_read_and_write_the_same_keys(result):
    assert result("cursor") == {
        "cursor": {"page": 100_017},
        "a/b é": "kept",
        "deleted": None,
        "noted": "by the accessor",
    }


def test_each_index_of_a_mapped_task_has_what_its_accessor_wrote(result):
    assert [result("each", index) for index in (0, 1)] == [{"table": "orders"}, {"table": "customers"}]


def test_server_and_worker_may_both_have_the_backend(result):
    assert result("both") == {"same": True, "keys": ["large"]}


def test_an_asset_has_one_state_by_name_by_uri_and_for_asset_state(result):
    assert result("assets") == {"seen": {"by_name": 1, "by_uri": 2}, "by_name": 3, "by_uri": 3}


def test_g8_a_task_hears_at_once_why_it_was_refused(result):
    reserved, too_large = result("refused")
    assert "must not start with '__ats:', which is reserved" in reserved
    assert "[async_task_state] max_value_bytes allows 1,048,576" in too_large


@pytest.mark.parametrize("example", [*EXAMPLES[:2], PRODUCER, CONSUMER])
def test_airflows_own_examples_run_unchanged(backed, runs, example):
    if example == CONSUMER:
        # The asset that the producer changes begins its run.
        path = f"/dags/{CONSUMER}/dagRuns"
        [begun] = backed.wait(lambda: backed.rest("GET", path)["dag_runs"], "the consumer has no run")
        runs = {CONSUMER: begun["dag_run_id"]}
    backed.wait_for_run(example, runs[example], timeout=180)
    log = backed.task_log(example, runs[example])
    said = {
        EXAMPLES[0]: "Try 2: reattaching to existing job: job-",
        EXAMPLES[1]: "[map_index=2] Processed products",
        PRODUCER: "Watermark advanced to",
        CONSUMER: "Total runs so far: 1.",
    }
    assert said[example] in log


def test_nothing_is_left_of_tasks_that_have_succeeded_and_everything_of_assets(backed, runs):
    for name in ("backend", *EXAMPLES[:2]):
        backed.wait_for_run(name, runs[name], timeout=180)

    async def left():
        store = open_store(backed.dsn)
        try:
            scopes = [info.scope for info in await store.scopes()]
            return {str(scope): (await store.read(scope)).entries for scope in scopes}
        finally:
            await store.close()

    left = anyio.run(left)
    of_assets = {name: entries for name, entries in left.items() if name.startswith("asset ")}
    assert set(of_assets) == {"asset backend/orders", "asset orders/daily"}
    assert len(left) - len(of_assets) >= 8
    # By which a later attempt knows a user's clear.
    of_tasks = [entries for name, entries in left.items() if name not in of_assets]
    assert all(entries.keys() <= {MAX_TRIES} for entries in of_tasks)
    with asset_state_sync("orders/daily", store=backed.dsn, read_only=True) as state:
        assert set(state.get_all()) == {"watermark", "total_runs", "last_run_summary"}
