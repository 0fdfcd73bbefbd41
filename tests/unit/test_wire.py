"""What leaves by way of Airflow fits Airflow's own wire, whatever files are called and jobs return."""

from __future__ import annotations

import json
import os
from functools import partial
from traceback import format_exception

import anyio
import pytest
from airflow.jobs.triggerer_job_runner import messages
from airflow.sdk.execution_time.comms import SetXCom, _RequestFrame
from airflow.sdk.serde import serialize
from airflow.triggers.base import TriggerEvent

from async_task_state import EscapedError, Failure, InvalidValueError
from async_task_state.operators import ProcessFilesOperator
from async_task_state.testing import run_trigger
from async_task_state.triggers import (
    CheckpointTrigger,
    NewFilesTrigger,
    ProcessFilesTrigger,
    RemoteJobTrigger,
)
from async_task_state.wire import fitted

NAME = os.fsdecode(b"caf\xe9.csv")
HUGE = 2**70

pytestmark = pytest.mark.usefixtures("_airflow_imported")


def as_bytes(message):
    return bytes(_RequestFrame(id=0, body=message.model_dump()).as_bytes())


def by_triggerer(events=(), error=None):
    """What the triggerer sends, or its process ends."""
    failures = None if error is None else [(1, format_exception(type(error), error, error.__traceback__))]
    entries = [(1, event, None) for event in events] or None
    sent = as_bytes(messages.TriggerStateChanges(events=entries, finished=[1], failures=failures))
    # And what a database's JSON is given.
    for text in [json.dumps([event.payload for event in events]), json.dumps(failures)]:
        assert "\\u0000" not in text
        assert "NaN" not in text
    return sent


def by_task(result):
    """What a task's process sends of what it returned."""
    xcom = SetXCom(key="return_value", dag_id="d", run_id="r", task_id="t", value=serialize(result))
    return as_bytes(xcom)


async def picky(path):
    raise ValueError(f"cannot read {path}\x00")


async def count(path):
    return {"size": HUGE}


def submit():
    return {"id": NAME, "number": HUGE}


def poll(job_id):
    assert job_id == {"id": NAME, "number": HUGE}
    return "success"


def result(job_id):
    return {"checksum": HUGE, "low": [-HUGE], NAME: NAME, "fits": [2**64 - 1, -(2**63), 1.5, None, True, "a"]}


@pytest.fixture
def bad_file(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / NAME).touch()
    return folder


def test_what_the_wire_refuses_is_text():
    assert fitted({"a": [HUGE, -HUGE, float("nan")], NAME: ("\x00", 1)}) == {
        "a": [str(HUGE), str(-HUGE), "nan"],
        "caf\\udce9.csv": ["\\x00", 1],
    }
    assert fitted(value := {"a": [2**64 - 1, -(2**63), True, None, 0.5, "é🎉"]}) == value


@pytest.mark.asyncio
@pytest.mark.parametrize("on_error", ["collect", "raise"])
async def test_a_failing_file_of_any_name_is_in_the_event(bad_file, on_error):
    trigger = ProcessFilesTrigger(str(bad_file), f"{__name__}.picky", on_error=on_error)
    [event] = (await run_trigger(trigger)).events
    assert by_triggerer([event])
    [failure] = event.payload["failures"]
    assert failure == {
        "file": f"{bad_file}/caf\\udce9.csv",
        "error": f"ValueError: cannot read {bad_file}/caf\\udce9.csv\\x00",
    }


@pytest.mark.asyncio
async def test_totals_of_any_size_are_in_the_event(bad_file):
    [event] = (await run_trigger(ProcessFilesTrigger(str(bad_file), f"{__name__}.count"))).events
    assert by_triggerer([event])
    assert event.payload["totals"] == {"size": str(HUGE)}


@pytest.mark.asyncio
async def test_a_result_of_any_size_is_in_the_event():
    trigger = RemoteJobTrigger(
        submit=f"{__name__}.submit",
        poll=f"{__name__}.poll",
        cancel=f"{__name__}.poll",
        result=f"{__name__}.result",
    )
    run = await run_trigger(trigger)
    [event] = run.events
    assert by_triggerer([event])
    assert event.payload["job_id"] == {"id": "caf\\udce9.csv", "number": str(HUGE)}
    assert event.payload["result"] == {
        "checksum": str(HUGE),
        "low": [str(-HUGE)],
        "caf\\udce9.csv": "caf\\udce9.csv",
        "fits": [2**64 - 1, -(2**63), 1.5, None, True, "a"],
    }
    # What the next process goes on with is what the service gave.
    assert run.values["job"]["id"] == submit()


@pytest.mark.asyncio
async def test_new_files_of_any_name_are_in_the_event(bad_file, monkeypatch, tmp_path):
    monkeypatch.setattr(NewFilesTrigger, "store", f"memory:{tmp_path}")
    trigger = NewFilesTrigger(str(bad_file), asset="a", settle=0)
    events = trigger.run()
    event = await anext(events)
    await events.aclose()
    assert by_triggerer([event])


def test_what_an_operator_returns_reaches_xcom(bad_file, monkeypatch, tmp_path, make_state):
    monkeypatch.setattr("async_task_state.operators.task_state", lambda **_: make_state())
    operator = partial(
        ProcessFilesOperator, task_id="t", source=str(bad_file), on_error="collect", deferrable=False
    )
    assert by_task(operator(processor=picky).execute({}))
    assert by_task(operator(processor=count).execute({}))


@pytest.mark.anyio
async def test_what_work_sets_return_reaches_xcom(make_state):
    async with make_state() as state:
        work = state.work("files")
        summary = await work.process([NAME], picky, on_error="collect")
        assert work.failures == [
            Failure("caf\\udce9.csv", "ValueError: cannot read caf\\udce9.csv\\x00", attempt=state._turn)
        ]
        assert not work.is_done(NAME)
        # The item is known by what it is called.
        assert list(work.remaining([NAME])) == []
        for returned in (summary, summary.as_event(), work.failures, work.counts, state.stats):
            assert by_task(returned)


class Fires(CheckpointTrigger):
    """Fires what it is told to."""

    payload = None

    def serialize(self):
        return f"{__name__}.{type(self).__name__}", {}

    async def run_with_state(self, state):
        await state.set("done", 1)
        yield TriggerEvent(type(self).payload)


class FiresByHand(Fires):
    async def run(self):
        async with self.task_state() as state:
            async for event in self.run_with_state(state):
                yield event


def picky_too():
    raise ValueError(f"no such file: {NAME}")


class Fails(Fires):
    async def run_with_state(self, state):
        try:
            picky_too()
        except ValueError as error:
            raise RuntimeError("the author's own") from error
        yield


class FailsByHand(Fails):
    async def run(self):
        async with self.task_state() as state:
            async for event in self.run_with_state(state):
                yield event


class Strange:
    pass


@pytest.mark.asyncio
@pytest.mark.parametrize("trigger", [Fires, FiresByHand])
@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({"checksum": HUGE}, r"payload at \['checksum'\] has an integer of more than 64 bits"),
        ({"files": ["a", NAME]}, r"payload at \['files'\]\[1\] has the character '\\udce9'"),
        ({NAME: 1}, "the character"),
        ("\x00", r"payload has the character '\\x00'"),
        ([float("nan")], r"at \[0\] has nan"),
        ({"a": Strange()}, "cannot be sent by Airflow"),
    ],
)
async def test_an_authors_event_that_does_not_fit_is_the_failure_of_that_trigger(
    trigger, payload, named, monkeypatch
):
    monkeypatch.setattr(Fires, "payload", payload)
    with pytest.raises(InvalidValueError, match=named) as raised:
        await run_trigger(trigger())
    assert by_triggerer(error=raised.value)


@pytest.mark.asyncio
async def test_an_authors_event_that_fits_leaves_as_it_is(monkeypatch, tmp_path):
    payload = {"a": [2**64 - 1, "é"], "path": tmp_path, "none": None, 1: (2, {3})}
    monkeypatch.setattr(Fires, "payload", payload)
    [event] = (await run_trigger(Fires())).events
    assert event.payload is payload
    assert by_triggerer([TriggerEvent({**payload, "path": "", 1: 2})])


@pytest.mark.asyncio
@pytest.mark.parametrize("trigger", [Fails, FailsByHand])
async def test_an_authors_error_reaches_airflow_whatever_it_says(trigger):
    with pytest.raises(EscapedError, match="RuntimeError: the author's own") as raised:
        await run_trigger(trigger())
    assert "ValueError: no such file: caf\\udce9.csv" in str(raised.value)
    assert "the direct cause" in str(raised.value)
    assert by_triggerer(error=raised.value)


@pytest.mark.anyio
async def test_what_airflow_never_saw_is_not_an_error(make_state):
    """Other stores keep any JSON."""
    async with make_state() as state:
        await state.set("a", [HUGE, NAME])
    async with make_state(read_only=True) as state:
        assert await state.get("a") == [HUGE, NAME]
    await anyio.lowlevel.checkpoint()
