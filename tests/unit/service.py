"""A service that runs jobs in this process, and the death of the process at any step of what a task does with it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio

from async_task_state import StaleWriterError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_task_state import TaskState


class Died(BaseException):
    """What ends the run of a task whose process is dead."""


class AnswerError(Exception):
    """What the service refuses, as clients of HTTP raise it."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"answer {status_code}")
        self.status_code = status_code


class Service:
    """The jobs, and every call in order; what a test says of it lasts until the next test.

    Attributes:
        jobs: Every job, by id.
        calls: What was called with which job.
        polls: How often a job is running before it ends; None never.
        ends: The status that it ends with.
        words: What polls return first, whatever the job is.
        errors: What each call by its name raises, one after the other.
        submitted: Set when a job has begun.
        answer: A submission is answered when it is set.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.polls: int | None = 1
        self.ends: Any = "SUCCEEDED"
        self.result: Any = {"rows": 7}
        self.words: list[Any] = []
        self.errors: dict[str, list[Exception]] = {}
        self.submitted: anyio.Event | None = None
        self.answer: anyio.Event | None = None
        self.answers = self.begun = 0
        self._deadly: int | None = None
        self._steps = 0
        self._state: TaskState | None = None

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)

    @property
    def running(self) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if not job["ended"]]

    @contextmanager
    def dying(self, state: TaskState, at: int) -> Iterator[None]:
        """The process that holds a state dies at a step: between any two things that are seen from outside."""
        self._state, self._deadly, self._steps = state, at, 0
        save = state.set

        async def save_and_step(*args: Any, **options: Any) -> None:
            self.step()
            await save(*args, **options)
            self.step()

        state.set = save_and_step
        try:
            yield
        finally:
            self._deadly = None

    def step(self) -> None:
        self._steps += 1
        if self._deadly is not None and self._steps > self._deadly:
            if self._state._pending.error is None:
                self._state._pending.abandon(StaleWriterError("the process is dead"))
            raise Died

    async def call(self, name: str, about: Any) -> None:
        self.step()
        await anyio.lowlevel.checkpoint()
        self.calls.append((name, about))
        if self.errors.get(name):
            raise self.errors[name].pop(0)

    async def submit(self, name: str, key: str | None) -> str:
        await self.call("submit", key)
        for job_id, job in self.jobs.items():
            if key is not None and job["key"] == key:
                return job_id
        self.begun += 1
        job_id = f"{name}-{self.begun}"
        self.jobs[job_id] = {"key": key, "ended": False, "polls": 0}
        if self.submitted is not None:
            self.submitted.set()
        if self.answer is not None:
            await self.answer.wait()
        self.answers += 1
        self.step()
        return job_id

    async def poll(self, job_id: str) -> Any:
        await self.call("poll", job_id)
        job = self.job(job_id)
        job["polls"] += 1
        if self.words:
            return self.words.pop(0)
        if not job["ended"] and (self.polls is None or job["polls"] <= self.polls):
            return "RUNNING"
        job["ended"] = True
        return job.get("status", self.ends)

    async def cancel(self, job_id: str) -> None:
        await self.call("cancel", job_id)
        job = self.job(job_id)
        if job["ended"]:
            raise AnswerError(409)
        job |= {"ended": True, "status": "CANCELLED"}
        self.step()

    async def fetch(self, job_id: str) -> Any:
        await self.call("result", job_id)
        if not self.job(job_id)["ended"]:
            raise AnswerError(409)
        return self.result

    def job(self, job_id: Any) -> dict[str, Any]:
        """The job of an id, which is what `submit` has returned."""
        if not isinstance(job_id, str) or job_id not in self.jobs:
            raise AnswerError(404)
        return self.jobs[job_id]


service = Service()


async def submit(name: str, idempotency_key: str) -> str:
    return await service.submit(name, idempotency_key)


async def submit_without_key(name: str) -> str:
    return await service.submit(name, None)


async def poll(job_id: str) -> Any:
    return await service.poll(job_id)


async def cancel(job_id: str) -> None:
    await service.cancel(job_id)


async def result(job_id: str) -> Any:
    return await service.fetch(job_id)
