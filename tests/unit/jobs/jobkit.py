"""The job that these tests are about."""

from __future__ import annotations

from async_task_state.jobs import JobWork

FUNCTIONS = {name: f"service.{name}" for name in ("submit", "poll", "cancel", "result")}
QUICK = {"poll_interval": 0.001, "max_poll_interval": 0.002}
SUCCESS = {"status": "success", "job_id": "a-1", "job_status": "SUCCEEDED", "result": {"rows": 7}}


def work_of(**options):
    return JobWork(**{**FUNCTIONS, **QUICK, "arguments": {"name": "a"}, **options})
