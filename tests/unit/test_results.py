"""What our functions return: plain data, which Airflow's XCom gives to the next task as it is."""

from __future__ import annotations

import copy
import json
import pickle
from types import SimpleNamespace

import pytest
from airflow.sdk.serde import deserialize, serialize

from async_task_state import Failure, Stats, WorkCounts, WorkFailedError, WorkSummary
from async_task_state.operators import ProcessFilesOperator

pytestmark = pytest.mark.anyio


async def picky(item):
    if item == "bad":
        raise ValueError("no")


def through_xcom(value):
    """What the next task gets: the value on its way through Airflow's XCom table, which holds JSON."""
    return deserialize(json.loads(json.dumps(serialize(value))))


def is_plain(value):
    if isinstance(value, dict):
        return type(value) is dict and all(map(is_plain, value.values()))
    return type(value) in (str, int, float) or (type(value) is list and all(map(is_plain, value)))


async def test_what_a_task_returns_reaches_the_next_one(make_state):
    async with make_state(attempt=1) as state:
        files = state.work("files")
        await files.done("before")
        summary = await files.process(["before", "a", "b", "bad"], picky, on_error="collect")
        received = through_xcom(summary)
        assert is_plain(received)
        failure = {"item": "bad", "error": "ValueError: no", "tries": 1, "attempt": 1, "attempt_tries": 1}
        assert {**received, "elapsed": 0} == {
            "status": "failed",
            "total": 4,
            "done": 2,
            "skipped": 1,
            "failed": 1,
            "done_in_all": 3,
            "failures": [failure],
            "elapsed": 0,
        }
        assert through_xcom(files.counts) == {"done": 3, "failed": 1}
        assert through_xcom(files.failures) == [failure]
        stats = through_xcom(state.stats)
        assert is_plain(stats)
        assert stats["recorded"] == 4
        # And may be kept as a value.
        await state.set("summary", summary)
        assert await state.get("summary") == received


async def test_status_is_failed_wherever_an_item_failed(make_state):
    async with make_state() as state:
        work = state.work("files")
        collected = await work.process(["a", "bad"], picky, on_error="collect")
        with pytest.raises(WorkFailedError) as raised:
            await work.process(["worse", "a"], lambda _: 1 / 0)
        well = await work.process(["a"], picky)
    assert [each.status for each in (collected, raised.value.summary, well)] == [
        "failed",
        "failed",
        "success",
    ]
    for summary in (collected, raised.value.summary, well):
        assert summary.as_event()["status"] == summary["status"] == summary.status


@pytest.mark.parametrize("on_error", ["collect", "raise"])
async def test_an_operator_that_collects_succeeds(tmp_path, on_error):
    operator = ProcessFilesOperator(task_id="t", source=str(tmp_path), processor="os.stat", on_error=on_error)
    event = {
        "status": "failed",
        "total": 1,
        "done": 0,
        "skipped": 0,
        "failed": 1,
        "failures": [{"file": "/in/a", "error": "ValueError: no"}],
        "elapsed": 0.1,
    }
    if on_error == "collect":
        assert operator.execute_complete({}, event) == event
    else:
        with pytest.raises(
            Exception, match=r"1 failed.*stopped there.*files after these are left.*ValueError: no"
        ):
            operator.execute_complete({}, event)


def test_the_worker_that_takes_an_event_says_which_files_failed(tmp_path, capsys):
    operator = ProcessFilesOperator(task_id="t", source="/in/*.csv", processor="os.stat", on_error="collect")
    event = {"status": "failed", "total": 14, "done": 1, "skipped": 0, "failed": 13, "elapsed": 0.1}
    event["failures"] = [{"file": f"/in/{n}\x1b", "error": "ValueError: no\nmore"} for n in range(10)]
    ti = SimpleNamespace(dag_id="my dag", run_id="run", task_id="t", map_index=3)
    operator.execute_complete({"ti": ti}, event)
    told = capsys.readouterr().out
    for number in range(10):
        assert f"'/in/{number}\\x1b' failed: ValueError: no\\nmore" in told
    command = "async-task-state show --json --map-index 3 'my dag' run t"
    assert f"3 more files failed, which this names: {command}" in told
    assert "1 file done, 0 done before, 13 failed, in 0.1 s" in told


def test_the_worker_that_takes_an_event_says_that_there_was_no_file(capsys):
    operator = ProcessFilesOperator(task_id="t", source="/in/*.csv", processor="os.stat")
    event = {
        "status": "success",
        "total": 0,
        "done": 0,
        "skipped": 0,
        "failed": 0,
        "elapsed": 0.1,
        "failures": [],
    }
    operator.execute_complete({}, event)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "there is no file" in line]
    assert "warning" in line.lower()
    assert "there is no file in '/in/*.csv'" in line


@pytest.mark.parametrize(
    "result",
    [
        Stats(1, 2, 3, 4, 0.5),
        Failure("a", "why", 2, 3, 1),
        WorkCounts(1, 2),
        WorkSummary(1, 2, 1, [Failure("a", "why")], 0.5, 3),
    ],
    ids=lambda result: type(result).__name__,
)
async def test_results_are_read_only_dicts_with_attributes(result):
    for name, value in result.items():
        assert getattr(result, name) == value
        with pytest.raises(TypeError, match="cannot be changed"):
            result[name] = value
        with pytest.raises(TypeError, match="cannot be changed"):
            setattr(result, name, value)
    for change in (result.clear, result.popitem, lambda: result.pop("done"), lambda: result.update(done=1)):
        with pytest.raises(TypeError, match="cannot be changed"):
            change()
    with pytest.raises(AttributeError, match="has no 'nothing'"):
        _ = result.nothing
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        assert (type(again), again, repr(again)) == (type(result), result, repr(result))
    assert repr(WorkCounts(1, 2)) == "WorkCounts(done=1, failed=2)"
