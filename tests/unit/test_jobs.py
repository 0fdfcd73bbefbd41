"""One remote job, submitted once, whatever dies between any two steps."""

from __future__ import annotations

import threading
from enum import Enum
from itertools import count
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import greenback
import pytest
from service import Died, service

from async_task_state import (
    NEVER_EXPIRE,
    InvalidArgumentError,
    InvalidValueError,
    JobCallError,
    TaskScope,
    UnknownJobStatusError,
    ValueTooLargeError,
)
from async_task_state import jobs as jobs_module
from async_task_state.jobs import JobWork, RemoteJob, after_clear, is_users_kill

FUNCTIONS = {name: f"service.{name}" for name in ("submit", "poll", "cancel", "result")}
QUICK = {"poll_interval": 0.001, "max_poll_interval": 0.002}
SUCCESS = {"status": "success", "job_id": "a-1", "job_status": "SUCCEEDED", "result": {"rows": 7}}


@pytest.fixture(autouse=True)
def _fresh_service(_settings_read_anew):
    service.reset()


@pytest.fixture
def dsn(tmp_path):
    """What a job needs of a store is the same of every one."""
    return f"memory:{tmp_path}"


def work_of(**options):
    return JobWork(**{**FUNCTIONS, **QUICK, "arguments": {"name": "a"}, **options})


@pytest.fixture
def opened(make_state, scope):
    """The state of a task whose clears raise `max_tries`."""

    def opened(attempt=1, max_tries=0, of=scope):
        return make_state(of, attempt=attempt, max_tries=max_tries, on_clear=after_clear())

    return opened


@pytest.fixture
def run(opened):
    """What one process does with the job."""

    async def run(attempt=1, max_tries=0, of=None, **options):
        async with opened(attempt, max_tries, *([of] if of else [])) as state:
            return await work_of(**options).run(state)

    return run


@pytest.fixture
def die(opened):
    """Runs a process that dies at a step; false if it has ended before."""

    async def die(at, attempt=1, max_tries=0, of=None, **options):
        try:
            async with opened(attempt, max_tries, *([of] if of else [])) as state:
                with service.dying(state, at):
                    await work_of(**options).run(state)
        except Died:
            return True
        return False

    return die


@pytest.mark.anyio
async def test_a_job_is_submitted_polled_until_it_ends_and_asked_for_its_result(run, saved):
    assert await run() == SUCCESS
    assert [name for name, _ in service.calls] == ["submit", "poll", "poll", "result"]
    values = await saved()
    key = values["job"].pop("idempotency_key")
    assert values == {
        "job": {"id": "a-1", "state": "succeeded", "status": "SUCCEEDED", "attempt": 1},
        "result": {"rows": 7},
    }
    assert service.calls[0] == ("submit", key)
    assert len(key) == 32


@pytest.mark.anyio
async def test_g1_an_outcome_is_not_asked_for_again(run):
    await run()
    calls = list(service.calls)
    assert await run(attempt=1) == await run(attempt=2) == SUCCESS
    assert service.calls == calls


@pytest.mark.anyio
@pytest.mark.parametrize("job_id", [17, "j-17", {"app": "a", "run": [1]}, False])
async def test_an_id_is_any_json_value(run, job_id):
    asked = []

    def poll(given):
        asked.append(given)
        return "success"

    outcome = await run(submit=lambda name: job_id, poll=poll, result=lambda given: given)
    assert (asked, outcome["job_id"], outcome["result"]) == ([job_id], job_id, job_id)


@pytest.mark.anyio
async def test_g1_at_whatever_steps_two_processes_die_there_is_one_job_and_it_is_seen_through(run, die):
    steps = 0
    for first in count():
        for second in count():
            service.reset()
            of = TaskScope("dag", f"{first}-{second}", "task")
            first_died = await die(first, of=of)
            second_died = await die(second, of=of)
            assert await run(of=of) == SUCCESS
            assert (len(service.jobs), service.running) == (1, [])
            assert service.count("cancel") == 0
            if not second_died:
                break
        if not first_died:
            break
        steps = first
    assert steps > 10


@pytest.mark.anyio
async def test_g1_without_a_key_only_the_answer_to_a_submission_can_be_lost(run, die):
    twice = []
    for at in count():
        service.reset()
        of = TaskScope("dag", f"{at}", "task")
        died = await die(at, of=of, submit="service.submit_without_key")
        answered = service.count("submit")
        await run(of=of, submit="service.submit_without_key")
        if len(service.jobs) != 1:
            twice.append((at, answered))
        if not died:
            break
    # The steps after the job has begun and before its id is saved; none of them is after.
    assert [answered for _, answered in twice] == [1] * len(twice)
    assert len(twice) == 2


@pytest.mark.anyio
async def test_g1_the_same_key_is_sent_until_an_id_is_known_and_another_one_for_the_next_job(run, die):
    service.errors["submit"] = [ConnectionError("no answer")]
    with pytest.raises(ConnectionError):
        await run()
    # The third step is the one after the key is saved, the fifth after the job has begun.
    assert await die(4, attempt=2)
    service.ends = "FAILED"
    assert (await run(attempt=3))["status"] == "failed"
    keys = [about for name, about in service.calls if name == "submit"]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    await run(attempt=4)
    assert service.calls[-3][0] == "submit"
    assert service.calls[-3][1] not in keys


@pytest.mark.anyio
async def test_a_submission_that_raised_says_so_in_the_state(run, saved):
    service.errors["submit"] = [ConnectionError("no answer")]
    with pytest.raises(ConnectionError):
        await run()
    job = (await saved())["job"]
    assert (job["state"], job["status"]) == ("refused", "submit raised ConnectionError('no answer')")


@pytest.mark.anyio
async def test_a_failed_job_fails_its_attempt_again_and_the_next_one_submits_anew(run):
    service.ends = "FAILED"
    failure = {"status": "failed", "job_id": "a-1", "job_status": "FAILED", "result": None}
    assert await run() == failure
    calls = list(service.calls)
    assert await run() == failure
    assert service.calls == calls
    service.ends = "SUCCEEDED"
    assert (await run(attempt=2))["job_id"] == "a-2"


@pytest.mark.anyio
async def test_an_attempt_that_took_over_a_job_and_saw_it_fail_reports_that_and_no_other(run, die):
    service.ends, service.polls = "FAILED", 5
    assert await die(8)
    assert (await run(attempt=2))["job_id"] == "a-1"
    assert (await run(attempt=2))["status"] == "failed"
    assert len(service.jobs) == 1


@pytest.mark.anyio
async def test_a_result_is_asked_for_again_only_until_it_is_saved(run, die):
    for at in count():
        service.reset()
        of = TaskScope("dag", f"{at}", "task")
        died = await die(at, of=of)
        assert await run(of=of) == SUCCESS
        assert service.count("result") <= 2
        if not died:
            break


@pytest.mark.anyio
async def test_a_job_without_a_result_gives_none(run):
    outcome = await run(result=None)
    assert (outcome["status"], outcome["result"]) == ("success", None)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("result", "error"), [(object(), InvalidValueError), ("x" * 2_000_000, ValueTooLargeError)]
)
async def test_g8_a_result_that_cannot_be_saved_is_an_error_of_the_result_and_costs_no_job(
    run, result, error
):
    service.result = result
    with pytest.raises(error, match="the value of 'result'"):
        await run()
    service.result = 5
    assert (await run(attempt=2))["result"] == 5
    assert len(service.jobs) == 1


# After a clear


@pytest.mark.anyio
async def test_a_clear_cancels_the_job_before_another_is_submitted_whatever_dies(run, die):
    for at in count():
        service.reset()
        of = TaskScope("dag", f"{at}", "task")
        service.polls = None
        assert await die(7, of=of)
        assert service.running == ["a-1"]
        died = await die(at, attempt=2, max_tries=1, of=of)
        if died:
            service.polls = 1
            outcome = await run(attempt=2, max_tries=1, of=of)
            assert outcome["job_id"] == "a-2"
        names = [name for name, _ in service.calls]
        first = names.index("cancel")
        assert "submit" not in names[1:first]
        assert service.jobs["a-1"]["status"] == "CANCELLED"
        assert service.running == []
        assert len(service.jobs) == 2
        if at > 14:
            break


@pytest.mark.anyio
async def test_a_clear_finds_and_cancels_a_job_whose_submission_was_cut_short(run, die):
    assert await die(4)
    assert service.answers == 1
    assert (await run(attempt=2, max_tries=1))["job_id"] == "a-2"
    assert service.jobs["a-1"]["status"] == "CANCELLED"
    assert len(service.jobs) == 2


@pytest.mark.anyio
async def test_a_clear_says_so_where_a_submission_was_cut_short_and_nobody_knows_its_job(run, die, caplog):
    assert await die(4, submit="service.submit_without_key")
    await run(attempt=2, max_tries=1, submit="service.submit_without_key")
    assert "a job may be running that is not known here" in caplog.text


@pytest.mark.anyio
async def test_a_clear_after_a_submission_that_raised_submits_one_job(run):
    service.errors["submit"] = [ConnectionError()]
    with pytest.raises(ConnectionError):
        await run()
    await run(attempt=2, max_tries=1)
    assert (len(service.jobs), service.count("cancel")) == (1, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("ends", ["SUCCEEDED", "FAILED"])
async def test_a_clear_cancels_nothing_that_has_ended(run, ends):
    service.ends = ends
    await run()
    service.ends = "SUCCEEDED"
    assert (await run(attempt=2, max_tries=1))["job_id"] == "a-2"
    assert service.count("cancel") == 0


@pytest.mark.anyio
async def test_an_earlier_job_that_was_not_cancelled_yet_is_not_forgotten_by_another_clear(run, die, saved):
    service.polls = None
    assert await die(7)
    service.errors["cancel"] = [ConnectionError()]
    with pytest.raises(ConnectionError):
        await run(attempt=2, max_tries=1, max_poll_failures=1)
    service.errors.clear()
    service.polls = 1
    assert (await run(attempt=3, max_tries=2))["job_id"] == "a-2"
    assert service.jobs["a-1"]["status"] == "CANCELLED"
    assert "earlier_jobs" not in await saved()


@pytest.mark.anyio
async def test_on_clear_resume_goes_on_with_the_job(run, die, monkeypatch):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__ON_CLEAR", "resume")
    load_settings_anew()
    service.polls = 8
    assert await die(7)
    assert (await run(attempt=2, max_tries=1))["job_id"] == "a-1"
    assert (len(service.jobs), service.count("cancel")) == (1, 0)


def load_settings_anew():
    jobs_module.load_settings.cache_clear()


@pytest.mark.anyio
async def test_a_job_that_has_ended_need_not_take_a_cancel(run, die):
    service.polls = 3
    assert await die(7)
    service.polls = 0
    service.errors["cancel"] = [RuntimeError("409 Conflict")]
    assert (await run(attempt=2, max_tries=1))["job_id"] == "a-2"
    assert service.count("cancel") == 1


# Cancelling


@pytest.mark.anyio
async def test_a_cancelled_job_is_remembered_and_the_next_attempt_submits_anew(opened, run, die):
    service.polls = None
    assert await die(7)
    async with opened() as state:
        await work_of().cancel_job(state)
        await work_of().cancel_job(state)
    assert service.count("cancel") == 1
    outcome = await run()
    assert (outcome["status"], outcome["job_status"]) == ("failed", "cancelled by a user")
    service.polls = 1
    assert (await run(attempt=2))["job_id"] == "a-2"


@pytest.mark.anyio
async def test_nothing_is_cancelled_where_nothing_runs(opened, run):
    await run()
    async with opened() as state:
        await work_of().cancel_job(state)
    assert (await run())["status"] == "success"
    assert service.count("cancel") == 0


@pytest.mark.anyio
async def test_g4_an_attempt_that_is_cancelled_before_it_submits_does_not_submit(opened, run):
    async with opened() as state:
        await work_of().cancel_job(state)
    outcome = await run()
    assert (outcome["status"], outcome["job_status"]) == ("failed", "cancelled by a user")
    assert service.count("submit") == 0
    assert (await run(attempt=2))["status"] == "success"


@pytest.mark.parametrize(
    ("state", "worker", "triggerer"),
    [
        ("failed", True, True),
        ("success", True, True),
        ("removed", True, True),
        ("restarting", True, True),
        ("running", False, True),
        ("up_for_retry", False, True),
        ("none", False, True),
        (None, False, True),
        ("deferred", False, False),
    ],
)
def test_whose_kill_it_is(state, worker, triggerer):
    assert is_users_kill(state, doubtful=False) == worker
    assert is_users_kill(state, doubtful=True) == triggerer


def test_a_clear_that_resumes_kills_nothing(monkeypatch):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__ON_CLEAR", "resume")
    load_settings_anew()
    for state in ("restarting", "none", None, "queued"):
        assert not is_users_kill(state, doubtful=True)
    assert is_users_kill("failed", doubtful=False)


@pytest.mark.anyio
async def test_g6_a_submission_that_is_cancelled_still_saves_its_id(opened, saved):
    service.submitted, service.answer = anyio.Event(), anyio.Event()

    async def cancel_when_submitted(scope):
        await service.submitted.wait()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        service.answer.set()

    async with opened() as state, anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(cancel_when_submitted, scope)
            await work_of().run(state)
    assert scope.cancelled_caught
    assert (await saved())["job"]["id"] == "a-1"
    assert service.count("poll") == 0


@pytest.mark.anyio
async def test_g6_a_submission_that_hangs_does_not_keep_the_process(opened, saved, monkeypatch):
    monkeypatch.setattr(jobs_module, "SUBMIT_SECONDS", 0.05)
    service.answer = anyio.Event()
    async with opened() as state:
        with anyio.move_on_after(0.05) as scope:
            await work_of().run(state)
    assert scope.cancelled_caught
    assert (await saved())["job"]["state"] == "submitting"


@pytest.mark.anyio
async def test_submit_may_block_where_airflow_lets_a_trigger_block(run):
    async def submit(name):
        # As Connection.get() does in a triggerer.
        greenback.await_(anyio.lowlevel.checkpoint())
        return name

    with pytest.raises(RuntimeError, match="ensure_portal"):
        await run(submit=submit, poll=lambda job_id: "success")
    await greenback.ensure_portal()
    assert (await run(attempt=2, submit=submit, poll=lambda job_id: "success"))["job_id"] == "a"


# Polling


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

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(jobs_module, "anyio", SimpleNamespace(**{**vars(anyio), "sleep": sleep}))
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
        (RunState("TERMINATED", "SUCCESS"), None, "success"),
        (RunState("TERMINATED", "TIMEDOUT"), None, "failed"),
        (RunState("TERMINATED"), None, "failed"),
    ],
)
async def test_what_a_status_means(run, status, statuses, meaning):
    service.ends = status
    assert (await run(statuses=statuses))["status"] == meaning


@pytest.mark.anyio
@pytest.mark.parametrize(
    "status", ["COMPLETED", "finished", "TERMINATED", "DONE", "", None, True, {"status": "success"}]
)
async def test_g8_an_unknown_status_is_named_and_neither_success_nor_waited_for(run, saved, status):
    service.ends = status
    with pytest.raises(UnknownJobStatusError, match=r"statuses=.*COMPLETED") as raised:
        await run()
    assert repr(str(status)) in str(raised.value)
    assert (await saved())["job"]["state"] == "running"
    assert service.count("poll") == 2


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
