"""What a remote job is made of: how it is polled, what its statuses mean, and which functions are called."""

from __future__ import annotations

import threading
from enum import Enum
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest
from jobkit import SUCCESS, work_of
from service import service

from async_task_state import (
    NEVER_EXPIRE,
    InvalidArgumentError,
    JobCallError,
    UnknownJobStatusError,
)
from async_task_state import jobs as jobs_module
from async_task_state.jobs import RemoteJob
from async_task_state.triggers import RemoteJobTrigger


@pytest.mark.anyio
async def test_a_poll_that_fails_is_tried_again_and_a_good_one_forgets_it(run, caplog):
    service.polls = 2
    service.errors["poll"] = [TimeoutError()] * 2
    assert await run(max_poll_failures=3) == SUCCESS
    assert "poll has failed 2 times in a row: TimeoutError()" in caplog.text


@pytest.mark.anyio
async def test_a_poll_that_goes_on_failing_raises_and_the_next_attempt_goes_on_with_the_job(run):
    service.errors["poll"] = [TimeoutError("unreachable")] * 3
    with pytest.raises(TimeoutError, match="unreachable"):
        await run(max_poll_failures=3)
    assert service.count("poll") == 3
    assert await run(attempt=2) == SUCCESS
    assert len(service.jobs) == 1


@pytest.mark.anyio
async def test_polls_back_off_with_jitter_up_to_the_longest_interval(run, monkeypatch):
    waits = []

    class Anyio:
        @staticmethod
        async def sleep(seconds):
            waits.append(seconds)

        def __getattr__(self, name):
            # Asked for, because anyio loads what it has when that is asked for.
            return getattr(anyio, name)

    monkeypatch.setattr(jobs_module, "anyio", Anyio())
    service.polls = 40
    await run(poll_interval=2, max_poll_interval=30)
    interval = 2
    for wait in waits:
        assert interval / 2 <= wait <= interval
        interval = min(interval * 1.5, 30)
    assert interval == 30
    assert len(waits) == 40
    assert len(set(waits)) == 40


@pytest.mark.anyio
async def test_a_running_job_is_never_forgotten_and_one_that_ended_is_kept_as_long_as_anything(
    opened, monkeypatch
):
    kept = []
    async with opened() as state:
        save = state.set

        async def note(key, value, *, retention=None):
            if key == "job":
                kept.append((value["state"], retention))
            await save(key, value, retention=retention)

        monkeypatch.setattr(state, "set", note)
        await work_of().run(state)
    assert kept == [
        ("submitting", NEVER_EXPIRE),
        ("running", NEVER_EXPIRE),
        ("running", NEVER_EXPIRE),
        ("succeeded", None),
    ]


class Livy(Enum):
    BUSY = "busy"
    SUCCESS = "success"
    DEAD = "dead"


class RunState:
    """Says what it means as the states of Databricks's hook do."""

    def __init__(self, life_cycle, result=""):
        self.life_cycle, self.result = life_cycle, result

    is_terminal = property(lambda self: self.life_cycle == "TERMINATED")
    is_successful = property(lambda self: self.result == "SUCCESS")

    def __repr__(self):
        return f"{self.life_cycle} {self.result}"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "statuses", "meaning"),
    [
        ("Timed Out", None, "failed"),
        ("COMPLETED", {"completed": "succeeded"}, "success"),
        ("finished", {"FINISHED": "failed"}, "failed"),
        ("SUCCEEDED", {"succeeded": "failed"}, "failed"),
        (Livy.SUCCESS, None, "success"),
        (Livy.DEAD, None, "failed"),
        (Livy.DEAD, {Livy.DEAD: "succeeded"}, "success"),
        ("Dead", {Livy.DEAD: "succeeded"}, "success"),
        (7, {7: "succeeded"}, "success"),
        (7, {"7": "failed"}, "failed"),
        (RunState("TERMINATED", "SUCCESS"), None, "success"),
        (RunState("TERMINATED", "TIMEDOUT"), None, "failed"),
        (RunState("TERMINATED"), None, "failed"),
    ],
)
async def test_what_a_status_means(run, status, statuses, meaning):
    service.ends = status
    assert (await run(statuses=statuses))["status"] == meaning


def test_statuses_are_sent_to_the_triggerer_as_text():
    names = {name: f"service.{name}" for name in ("submit", "poll", "cancel")}
    arguments = RemoteJobTrigger(**names, statuses={Livy.DEAD: "failed", 7: "succeeded"}).serialize()[1]
    assert arguments["statuses"] == {"dead": "failed", "7": "succeeded"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "status", ["COMPLETED", "finished", "TERMINATED", "DONE", "", None, True, {"status": "success"}]
)
async def test_g8_an_unknown_status_is_waited_for_and_then_named(run, saved, status):
    service.ends = status
    with pytest.raises(UnknownJobStatusError, match=r"statuses=.*COMPLETED") as raised:
        await run(max_poll_failures=3)
    assert repr(str(status)) in str(raised.value)
    assert (await saved())["job"]["state"] == "running"
    assert service.count("poll") == 1 + 3


@pytest.mark.anyio
@pytest.mark.parametrize("word", [None, "", "<html>Bad Gateway</html>"])
async def test_a_word_that_means_nothing_ends_no_attempt(run, word, caplog):
    service.words = [word, word, "RUNNING", word, word]
    assert await run(max_poll_failures=3) == SUCCESS
    assert "poll has failed 2 times in a row: UnknownJobStatusError" in caplog.text


# What a job is made of


class Batches(RemoteJob):
    """A job whose functions are methods, some of them plain."""

    entered = 0

    def __init__(self, prefix="b"):
        self.prefix = prefix

    async def __aenter__(self):
        Batches.entered += 1
        return self

    async def __aexit__(self, *_):
        Batches.entered -= 1

    def submit(self, name, idempotency_key):
        assert Batches.entered == 1
        assert threading.current_thread() is not threading.main_thread()
        return {"batch": f"{self.prefix}-{name}", "key": idempotency_key}

    async def poll(self, job_id):
        assert Batches.entered == 1
        return {"batch_state": Livy.SUCCESS, "status": "error"}

    async def cancel(self, job_id):
        pass

    def meaning_of(self, status):
        return {Livy.SUCCESS: "succeeded", Livy.DEAD: "failed"}.get(status["batch_state"], "running")


class Hook:
    """One that knows nothing of this library."""

    def __init__(self, conn_id):
        self.conn = SimpleNamespace(start_job_run=self.submit_run)
        self.conn_id = conn_id

    def submit_run(self, json, **options):
        return [self.conn_id, json, options]

    async def a_get_run_state(self, run_id):
        return RunState("TERMINATED", "SUCCESS")

    def cancel_run(self, run_id):
        pass


@pytest.mark.anyio
async def test_the_methods_of_a_class(run):
    work = {"submit": None, "poll": None, "cancel": None, "result": None}
    outcome = await run(job=f"{__name__}.Batches", job_args={"prefix": "p"}, **work)
    assert (outcome["status"], outcome["job_id"]["batch"], outcome["result"]) == ("success", "p-a", None)
    assert len(outcome["job_id"]["key"]) == 32
    assert Batches.entered == 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("json.idempotency_token", lambda json, options: json["idempotency_token"]),
        ("json.deep.er.token", lambda json, options: json["deep"]["er"]["token"]),
        ("client_token", lambda json, options: options["client_token"]),
    ],
)
async def test_the_methods_of_a_hook_and_where_it_takes_the_key(run, path, where):
    hook = {
        "job": f"{__name__}.Hook",
        "job_args": {"conn_id": "c"},
        "submit": "conn.start_job_run",
        "poll": "a_get_run_state",
        "cancel": "cancel_run",
        "result": None,
    }
    arguments = {"json": {"a": 1}}
    outcome = await run(arguments=arguments, idempotency_argument=path, **hook)
    conn_id, json, options = outcome["job_id"]
    assert (outcome["status"], conn_id, json["a"]) == ("success", "c", 1)
    assert len(where(json, options)) == 32
    assert arguments == {"json": {"a": 1}}


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["submit", "poll", "cancel", "result"])
@pytest.mark.parametrize("path", ["no.such.module", "service.no_such", "service.anyio.__name__"])
async def test_g8_a_function_that_cannot_be_called_is_named_before_anything_is_begun(run, name, path):
    with pytest.raises(JobCallError, match=f"{name}='{path}'"):
        await run(**{name: path})
    assert service.calls == []


@pytest.mark.anyio
async def test_g8_a_method_that_is_missing_is_named(run):
    with pytest.raises(JobCallError, match="say which method it is, as in poll="):
        await run(job=f"{__name__}.Hook", job_args={"conn_id": "c"}, submit="submit_run", poll=None)


@pytest.mark.anyio
async def test_g8_a_submit_that_returns_no_id_is_an_error(run):
    with pytest.raises(JobCallError, match="must return the id"):
        await run(submit=lambda name: None)


@pytest.mark.anyio
@pytest.mark.parametrize("arguments", ["{}", ["a"]])
async def test_g8_arguments_that_were_rendered_to_something_else_are_an_error(run, arguments):
    with pytest.raises(InvalidArgumentError, match="arguments must be a mapping"):
        await run(arguments=arguments)


BAD = [
    ("submit", None),
    ("poll", 7),
    ("cancel", ""),
    ("result", 7),
    ("job", 7),
    ("statuses", {"DONE": "fine"}),
    ("statuses", ["DONE"]),
    ("poll_interval", 0),
    ("poll_interval", None),
    ("max_poll_interval", 0.0001),
    ("max_poll_interval", float("inf")),
    ("max_poll_failures", 0),
]


@pytest.mark.parametrize(("argument", "value"), BAD)
def test_g8_a_bad_argument_raises_where_it_is_given(argument, value):
    with pytest.raises(InvalidArgumentError, match=argument):
        work_of(**{argument: value})
