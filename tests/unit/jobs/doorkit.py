"""What a trigger and an operator are given of a job, Airflow to be asked, and the moments at which a trigger ends."""

from __future__ import annotations

from types import SimpleNamespace

from jobkit import FUNCTIONS, QUICK
from service import service

from async_task_state.triggers import RemoteJobTrigger

GIVEN = {**FUNCTIONS, **QUICK, "arguments": {"name": "a"}}


class Comms:
    """Airflow, to be asked for the state of the one task there is."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    async def asend(self, question):
        self.asked.append(question)
        if isinstance(self.answer, Exception):
            raise self.answer
        return SimpleNamespace(task_states=self.answer)


def trigger_of(**options):
    return RemoteJobTrigger(**{**GIVEN, **options})


MOMENTS = {
    "opened": lambda state: True,
    "key saved": lambda state: "job" in state._pending.values,
    "submitted": lambda state: service.jobs,
    "id saved": lambda state: '"running"' in state._pending.values.get("job", ""),
    "polled": lambda state: service.count("poll") > 1,
}
