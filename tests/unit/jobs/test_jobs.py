"""One remote job, submitted once, whatever dies between any two steps."""

from __future__ import annotations

from itertools import count

import anyio
import anyio.lowlevel
import greenback
import pytest
from jobkit import SUCCESS, work_of
from service import service

from async_task_state import (
    InvalidValueError,
    TaskScope,
    ValueTooLargeError,
)
from async_task_state import jobs as jobs_module
from async_task_state.instances import is_users_kill


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
    # Before it has asked the service to cancel.
    assert await die(0, attempt=2, max_tries=1)
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
        ("unknown", False, True),
        (None, False, False),
        ("deferred", False, False),
    ],
)
def test_whose_kill_it_is(state, worker, triggerer):
    assert is_users_kill(state, doubtful=False, resumes=False) == worker
    assert is_users_kill(state, doubtful=True, resumes=False) == triggerer


def test_a_clear_that_resumes_kills_nothing():
    for state in ("restarting", "none", None, "queued"):
        assert not is_users_kill(state, doubtful=True, resumes=True)
    assert is_users_kill("failed", doubtful=False, resumes=True)


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
