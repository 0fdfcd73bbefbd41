"""Whose state it is."""

from __future__ import annotations

import sys
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from uuid import UUID

import pytest

from async_task_state import InvalidArgumentError, TaskScope
from async_task_state.scopes import AssetScope, RunningTask, running_task, scope_of

REGION = UUID(int=7)


def test_scopes_are_equal_by_their_ids():
    assert TaskScope("d", "r", "t") == TaskScope("d", "r", "t", -1, None)
    assert len({TaskScope("d", "r", "t"), TaskScope("d", "r", "t"), TaskScope("d", "r", "t", 0)}) == 2


def test_a_scope_does_not_change():
    with pytest.raises(FrozenInstanceError):
        TaskScope("d", "r", "t").dag_id = "other"


@pytest.mark.parametrize(
    ("scope", "shown"),
    [
        (TaskScope("d", "r", "t"), "d/r/t"),
        (TaskScope("d", "r", "t", 0), "d/r/t[0]"),
        (TaskScope("d", "r", "t", 3, REGION), f"d/r/t[3]@{REGION}"),
    ],
)
def test_a_scope_shows_all_its_ids(scope, shown):
    assert str(scope) == shown


@pytest.mark.parametrize("value", ["", "x" * 251, None, 1, b"x", "nul\0", "\ud800"], ids=repr)
@pytest.mark.parametrize("name", ["dag_id", "run_id", "task_id"])
def test_g8_an_id_that_cannot_be_one_is_named(name, value):
    with pytest.raises(
        InvalidArgumentError,
        match=f"{name} must be a string of 1 to 250 characters that UTF-8 can encode, not",
    ):
        TaskScope(**{"dag_id": "d", "run_id": "r", "task_id": "t", name: value})


def test_g8_ids_that_are_too_long_together_are_named():
    most = {"dag_id": "\U0001f600" * 250, "run_id": "é" * 250, "task_id": "é" * 250}
    TaskScope(**most)
    ids = {**most, "run_id": "\U0001f600" * 250, "task_id": "\U0001f600" * 149 + "éx"}
    with pytest.raises(
        InvalidArgumentError,
        match="dag_id, run_id and task_id may have 2,600 bytes in UTF-8 together, not 2,601: shorten one of",
    ):
        TaskScope(**{**ids, "task_id": "\U0001f600" * 150 + "x"})
    TaskScope(**{**ids, "task_id": "\U0001f600" * 150})


@pytest.mark.parametrize("value", [-2, 2**31, None, 1.0, "1", True], ids=repr)
def test_g8_a_map_index_that_cannot_be_one_is_named(value):
    with pytest.raises(
        InvalidArgumentError, match=rf"map_index must be an integer from -1 to 2\^31, not {value!r}"
    ):
        TaskScope("d", "r", "t", value)


def test_g8_a_region_that_cannot_be_one_is_named():
    with pytest.raises(InvalidArgumentError, match="region_id must be a UUID or None, not 'x'"):
        TaskScope("d", "r", "t", region_id="x")


@pytest.mark.parametrize(
    ("source", "scope"),
    [
        ({}, TaskScope("d", "r", "t")),
        ({"map_index": -1}, TaskScope("d", "r", "t")),
        ({"map_index": None}, TaskScope("d", "r", "t")),
        ({"map_index": 2}, TaskScope("d", "r", "t", 2)),
        ({"map_index": 2, "region_id": REGION}, TaskScope("d", "r", "t", 2, REGION)),
        ({"map_index": 2, "region_id": UUID(int=0)}, TaskScope("d", "r", "t", 2)),
    ],
)
def test_a_scope_is_taken_from_what_carries_its_ids(source, scope):
    source = SimpleNamespace(dag_id="d", run_id="r", task_id="t", **source)
    assert TaskScope.from_airflow(source) == scope


def test_a_scope_is_taken_from_airflows_own():
    from airflow.sdk._shared.state import TaskScope as Airflows  # noqa: PLC0415 - takes a second

    source = Airflows(dag_id="d", run_id="r", task_id="t", map_index=2)
    assert TaskScope.from_airflow(source) == TaskScope("d", "r", "t", 2)


def test_g8_what_carries_no_ids_is_named():
    with pytest.raises(InvalidArgumentError, match=r"a SimpleNamespace names no task instance: .*run_id"):
        TaskScope.from_airflow(SimpleNamespace(dag_id="d"))


# assets


def test_an_asset_is_known_by_its_name_or_else_by_its_uri():
    assert AssetScope("x") == AssetScope("x", "file:///x") == AssetScope("x", "file:///y")
    assert AssetScope("x") != AssetScope(uri="x")
    assert AssetScope("x") != ("", "asset", "x", -1, "")
    assert len({AssetScope("x"), AssetScope("x", "y"), AssetScope(uri="x"), TaskScope("x", "x", "x")}) == 3
    assert (str(AssetScope("x", "file:///x")), str(AssetScope(uri="file:///x"))) == (
        "asset x",
        "asset file:///x",
    )


def test_an_asset_does_not_change():
    with pytest.raises(FrozenInstanceError):
        AssetScope("x").name = "other"


@pytest.mark.parametrize(
    "value", ["", "x" * 1501, 1, b"x", "nul\0", "\ud800"], ids=lambda value: repr(value)[:20]
)
@pytest.mark.parametrize("name", ["name", "uri"])
def test_g8_what_cannot_name_an_asset_is_named(name, value):
    message = f"the {name} of an asset must be a string of 1 to 1,500 characters that UTF-8 can encode, not"
    with pytest.raises(InvalidArgumentError, match=message):
        AssetScope(**{name: value})


@pytest.mark.parametrize("name", ["name", "uri"])
def test_g8_what_is_too_long_for_an_index_is_named(name):
    AssetScope(**{name: "x" * 1500})
    AssetScope(**{name: "é" * 1300})
    with pytest.raises(
        InvalidArgumentError, match=f"the {name} of an asset may have 2,600 bytes in UTF-8, not 2,602"
    ):
        AssetScope(**{name: "é" * 1301})


def test_g8_an_asset_without_name_and_uri_is_refused():
    with pytest.raises(InvalidArgumentError, match="an AssetScope needs the asset's name or its uri"):
        AssetScope()


@pytest.mark.parametrize(
    ("source", "scope"),
    [
        ({"name": "x", "uri": "file:///x"}, AssetScope("x")),
        ({"name": "x"}, AssetScope("x")),
        ({"uri": "file:///x"}, AssetScope(uri="file:///x")),
        ({"name": None, "uri": "file:///x"}, AssetScope(uri="file:///x")),
    ],
)
def test_an_asset_is_taken_from_what_names_it(source, scope):
    assert AssetScope.from_airflow(SimpleNamespace(**source)) == scope


def test_an_asset_is_taken_from_airflows_own():
    from airflow.sdk import Asset  # noqa: PLC0415 - takes a second

    source = Asset(name="x", uri="file:///x")
    taken = AssetScope.from_airflow(source)
    assert (taken.name, taken.uri) == (source.name, source.uri)


def test_g8_what_names_no_asset_is_named():
    with pytest.raises(InvalidArgumentError, match="a SimpleNamespace names no asset"):
        AssetScope.from_airflow(SimpleNamespace(name=None))


@pytest.mark.parametrize(
    "scope",
    [
        TaskScope("d", "r", "t"),
        TaskScope("d", "r", "t", 3, REGION),
        AssetScope("x"),
        AssetScope(uri="x"),
    ],
    ids=str,
)
def test_a_row_gives_its_scope_back(scope):
    assert scope_of(scope.row) == scope
    assert type(scope_of(scope.row)) is type(scope)


# the running task


def test_no_task_runs_where_airflow_is_not_loaded(monkeypatch):
    monkeypatch.delitem(sys.modules, "airflow.sdk", raising=False)
    assert running_task() is None
    assert "airflow.sdk" not in sys.modules


def test_no_task_runs_outside_of_one():
    import airflow.sdk  # noqa: F401, PLC0415 - as whoever runs outside of a task may have

    assert running_task() is None


def test_the_running_task_says_scope_and_attempt():
    from airflow.sdk.definitions.context import Context  # noqa: PLC0415 - takes a second
    from airflow.sdk.execution_time.context import set_current_context  # noqa: PLC0415 - the same

    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=4, try_number=3, max_tries=5)
    with set_current_context(Context(ti=ti)):
        assert running_task() == RunningTask(TaskScope("d", "r", "t", 4), 3, 5)


@pytest.mark.parametrize(
    ("attempt", "max_tries", "begun"),
    [
        (1, 2, 1),
        (2, 2, 1),
        (3, 2, 1),
        (2, 3, 2),
        (3, 3, 2),
        (4, 5, 4),
        (2, None, None),
    ],
)
def test_the_attempt_that_the_last_clear_has_begun_is_known_by_the_tries(attempt, max_tries, begun):
    from airflow.sdk.definitions.context import Context  # noqa: PLC0415 - takes a second
    from airflow.sdk.execution_time.context import set_current_context  # noqa: PLC0415 - the same

    ti = SimpleNamespace(
        dag_id="dag",
        run_id="run",
        task_id="task",
        try_number=attempt,
        max_tries=max_tries,
        task=SimpleNamespace(retries=2),
    )
    with set_current_context(Context(ti=ti, dag_run=SimpleNamespace(start_date=None), task=ti.task)):
        running = running_task()
        assert (running.begun, running.after_clear) == (begun, attempt > 1 and attempt == begun)
