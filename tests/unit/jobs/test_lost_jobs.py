"""Jobs that their service has lost, jobs that failed while nobody looked, ids and results that are not what they should be."""

from __future__ import annotations

from http import HTTPStatus
from types import SimpleNamespace
from typing import ClassVar

import anyio
import httpx
import pytest
import requests
from airflow.exceptions import AirflowException, AirflowNotFoundException
from jobkit import SUCCESS, work_of
from service import AnswerError, service

from async_task_state import InvalidValueError, JobGoneError, TaskScope
from async_task_state.job_gone import is_gone
from async_task_state.jobs import RemoteJob


def refused(code, kind=requests.HTTPError):
    answer = requests.Response()
    answer.status_code = code
    return kind("refused", response=answer)


def refused_by_httpx(code):
    request = httpx.Request("GET", "http://service/jobs/1")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(code, request=request))


def error_with(name="ServiceError", **attributes):
    """An error of a client that is not installed here."""
    error = type(name, (Exception,), {})("refused")
    for attribute, value in attributes.items():
        setattr(error, attribute, value)
    return error


def caused_by(cause):
    error = RuntimeError("the job's state is not known")
    error.__cause__ = cause
    return error


def of_aws(code, status=400):
    return {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


GRPC = SimpleNamespace(name="NOT_FOUND", value=(5, "not found"))
GONE = [
    JobGoneError("no such job"),
    refused(404),
    refused(410),
    refused_by_httpx(404),
    error_with(status=404),
    error_with(status_code=HTTPStatus.NOT_FOUND),
    error_with("NotFound", code=404),
    error_with("ResourceNotFoundError", status_code=None),
    error_with(response=of_aws("EntityNotFoundException")),
    error_with(response=of_aws("ResourceNotFoundException")),
    error_with(response=of_aws("404", 404)),
    error_with(code=lambda: GRPC),
    AirflowException("Response: {'message': 'no run'}, Status Code: 404"),
    AirflowException('Response: {"error_code":"RESOURCE_DOES_NOT_EXIST"}, Status Code: 400'),
    AirflowException(
        'Response: {"error_code":"INVALID_PARAMETER_VALUE","message":"Run 7 does not exist."}, Status Code: 400'
    ),
    AirflowException("404:Not Found"),
    caused_by(refused(404)),
]
NOT_GONE = [
    refused(403),
    refused(500),
    refused_by_httpx(502),
    error_with(status=401),
    error_with(response=of_aws("ThrottlingException")),
    error_with(code=lambda number: GRPC),
    AirflowException("Response: busy, Status Code: 503"),
    AirflowException("job 404 is busy"),
    AirflowNotFoundException("The conn_id `databricks` isn't defined"),
    FileNotFoundError("status code: 404"),
    KeyError("404"),
    ConnectionError(),
]


@pytest.mark.parametrize("error", GONE, ids=repr)
def test_what_says_that_a_job_is_gone(error):
    assert is_gone(error)


@pytest.mark.parametrize("error", NOT_GONE, ids=repr)
def test_what_does_not_say_that_a_job_is_gone(error):
    assert not is_gone(error)


# A job that is gone


@pytest.mark.anyio
async def test_a_retry_submits_another_where_the_job_is_gone(run, die, saved):
    service.polls = None
    assert await die(7)
    service.jobs.clear()
    gone = await run(max_poll_failures=3)
    assert (gone["status"], gone["job_id"]) == ("failed", "a-1")
    assert "gone: poll raised AnswerError('answer 404')" in gone["job_status"]
    polls = service.count("poll")
    assert await run() == gone
    assert service.count("poll") == polls
    assert (await saved())["job"]["state"] == "gone"
    service.polls = 1
    assert (await run(attempt=2))["job_id"] == "a-2"
    assert service.count("submit") == 2


@pytest.mark.anyio
async def test_a_retry_that_finds_the_job_gone_submits_another_at_once(run, die):
    service.polls = None
    assert await die(7)
    service.jobs.clear()
    service.polls = 1
    assert await run(attempt=2, max_poll_failures=3) == {**SUCCESS, "job_id": "a-2"}


@pytest.mark.anyio
async def test_a_job_that_is_not_there_for_a_moment_is_not_gone(run):
    service.polls = 3
    service.errors["poll"] = [AnswerError(404), AnswerError(404)]
    assert await run(max_poll_failures=3) == SUCCESS
    assert service.count("submit") == 1


@pytest.mark.anyio
async def test_an_author_who_knows_that_the_job_is_gone_is_believed(run):
    service.errors["poll"] = [JobGoneError("the cluster was deleted")]
    assert (await run())["job_status"] == "gone: the cluster was deleted"
    assert service.count("poll") == 1
    assert (await run(attempt=2))["job_id"] == "a-2"


@pytest.mark.anyio
async def test_a_clear_goes_on_where_the_job_is_gone(run, die, caplog):
    service.polls = None
    assert await die(7)
    service.jobs.clear()
    service.polls = 1
    assert (await run(attempt=2, max_tries=1))["job_id"] == "a-2"
    assert service.count("cancel") == 1
    assert "could not be cancelled" not in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("error", [AnswerError(500), ConnectionError("unreachable")])
async def test_a_clear_gives_up_a_job_that_cannot_be_cancelled(run, die, saved, caplog, error):
    service.polls = None
    assert await die(7)
    service.errors["cancel"] = [error] * 3

    async def poll(job_id):
        return "RUNNING" if job_id == "a-1" else "SUCCESS"

    outcome = await run(attempt=2, max_tries=1, max_poll_failures=3, poll=poll, result=None)
    assert (outcome["status"], outcome["job_id"]) == ("success", "a-2")
    assert service.count("cancel") == 3
    assert "job 'a-1' of attempt 1 could not be cancelled and may be running" in caplog.text
    assert "earlier_jobs" not in await saved()


@pytest.mark.anyio
async def test_a_user_who_kills_a_job_that_is_gone_has_killed_it(opened, die, saved):
    service.polls = None
    assert await die(7)
    service.jobs.clear()
    async with opened() as state:
        await work_of().cancel_job(state)
    assert (await saved())["job"]["state"] == "cancelled"
    assert service.count("cancel") == 1


# A job that has failed


@pytest.mark.anyio
async def test_a_retry_that_finds_the_job_failed_submits_another_at_once(run, die):
    service.polls, service.ends = None, "FAILED"
    assert await die(7)
    service.jobs["a-1"] |= {"ended": True, "status": "FAILED"}
    service.polls, service.ends = 1, "SUCCEEDED"
    outcome = await run(attempt=2)
    assert (outcome["status"], outcome["job_id"]) == ("success", "a-2")
    assert service.count("cancel") == 0


@pytest.mark.anyio
async def test_the_same_attempt_in_a_new_process_has_failed_with_its_job(run, die):
    service.polls, service.ends = None, "FAILED"
    assert await die(7)
    service.polls = 0
    assert (await run())["status"] == "failed"
    assert len(service.jobs) == 1


@pytest.mark.anyio
async def test_a_submission_that_was_cut_short_may_have_been_of_a_job_that_failed(run, die):
    assert await die(4)
    service.jobs["a-1"] |= {"ended": True, "status": "FAILED"}
    assert (await run(attempt=2))["job_id"] == "a-2"
    keys = [about for name, about in service.calls if name == "submit"]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.anyio
@pytest.mark.parametrize("at", range(14))
async def test_whatever_dies_a_failed_job_is_replaced_by_one(run, die, at):
    of = TaskScope("dag", f"{at}", "task")
    service.polls = None
    assert await die(7, of=of)
    service.jobs["a-1"] |= {"ended": True, "status": "FAILED"}
    service.polls = 1
    await die(at, attempt=2, of=of)
    outcome = await run(attempt=2, of=of)
    assert (outcome["status"], outcome["job_id"], len(service.jobs)) == ("success", "a-2", 2)


# Ids and results


@pytest.mark.anyio
async def test_a_result_that_is_gone_fails_the_attempt_and_not_every_retry(run):
    service.errors["result"] = [AnswerError(404)] * 3
    gone = await run(max_poll_failures=3)
    assert (gone["status"], gone["result"]) == ("failed", None)
    assert "its result is gone: result raised AnswerError('answer 404')" in gone["job_status"]
    assert await run(attempt=2) == {**SUCCESS, "job_id": "a-2"}


@pytest.mark.anyio
async def test_a_result_that_cannot_be_had_yet_costs_no_job(run):
    service.errors["result"] = [ConnectionError()] * 3
    with pytest.raises(ConnectionError):
        await run(max_poll_failures=3)
    assert await run(attempt=2) == SUCCESS


@pytest.mark.anyio
async def test_an_id_is_of_the_same_shape_in_each_process(run, die):
    asked = []

    async def poll(job_id):
        asked.append(job_id)
        service.step()
        return "RUNNING" if len(asked) < 3 else "SUCCESS"

    calls = {"submit": lambda name: ("app", {"runs": (1, 2)}), "poll": poll, "result": lambda job_id: job_id}
    assert await die(5, **calls)
    outcome = await run(**calls)
    plain = ["app", {"runs": [1, 2]}]
    assert len(asked) == 3
    assert (outcome["job_id"], outcome["result"], asked) == (plain, plain, [plain] * 3)


@pytest.mark.anyio
@pytest.mark.parametrize("job_id", [object(), {1: 2}, float("nan"), {"a"}, "x" * 2_000_000], ids=type)
async def test_g8_a_job_whose_id_is_no_json_is_cancelled(run, job_id):
    cancelled = []
    with pytest.raises(InvalidValueError, match="the value of 'id'"):
        await run(submit=lambda name: job_id, cancel=cancelled.append)
    assert cancelled == [job_id]
    assert (await run(attempt=2))["job_id"] == "a-1"


@pytest.mark.anyio
async def test_g8_an_id_that_is_no_json_is_the_error_though_the_job_cannot_be_cancelled(run, caplog):
    service.errors["cancel"] = [ConnectionError()]
    with pytest.raises(InvalidValueError, match="which is not JSON"):
        await run(submit=lambda name: object())
    assert "could not be cancelled and may be running" in caplog.text


# A job whose token expires


class Expiring(RemoteJob):
    """Made with a token that is good for two polls."""

    made: ClassVar[list] = []
    entered = 0
    broken = False

    def __init__(self):
        if Expiring.broken:
            Expiring.broken = False
            raise ConnectionError("no token today")
        self.polls = 0
        Expiring.made.append(self)

    async def __aenter__(self):
        Expiring.entered += 1
        return self

    async def __aexit__(self, *_):
        Expiring.entered -= 1

    async def submit(self, name):
        return name

    async def poll(self, job_id):
        await anyio.lowlevel.checkpoint()
        assert Expiring.entered == 1
        self.polls += 1
        if self.polls > 2:
            raise AnswerError(401)
        return "SUCCESS" if len(Expiring.made) == 3 else "RUNNING"

    async def cancel(self, job_id):
        pass


@pytest.mark.anyio
@pytest.mark.parametrize("broken", [False, True])
async def test_a_token_that_expires_costs_one_poll(run, broken, monkeypatch):
    monkeypatch.setattr(Expiring, "made", [])
    of_class = {"job": f"{__name__}.Expiring", "submit": None, "poll": None, "cancel": None, "result": None}
    if broken:
        submit = Expiring.submit

        async def submit_and_break(self, name):
            Expiring.broken = True
            return await submit(self, name)

        monkeypatch.setattr(Expiring, "submit", submit_and_break)
    outcome = await run(max_poll_failures=3, **of_class)
    assert (outcome["status"], len(Expiring.made), Expiring.entered) == ("success", 3, 0)
