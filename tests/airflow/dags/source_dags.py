"""DAGs whose sources are what the user who triggers them says."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from airflow.sdk import DAG, BaseOperator, get_current_context, task
from source_helpers import Ticks

from async_task_state.operators import ProcessFilesOperator
from async_task_state.triggers import ProcessFilesTrigger

SOURCE = "{{ dag_run.conf['sources'][ti.map_index] }}"
PROCESSOR = "source_helpers.read"


class SendingOperator(BaseOperator):
    """Sends a trigger a source that no worker has checked."""

    template_fields = ("source",)

    def __init__(self, *, source: str, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.number = number

    def execute(self, context):
        trigger = ProcessFilesTrigger("/nowhere", PROCESSOR)
        trigger._work = replace(trigger._work, source=self.source)
        self.defer(trigger=trigger, method_name="finish")

    def finish(self, context, event):
        return event


class TicksOperator(BaseOperator):
    def execute(self, context):
        given = context["dag_run"].conf
        self.defer(trigger=Ticks(given["journal"], given["until"]), method_name="finish")

    def finish(self, context, event):
        return event


@task
def numbers() -> list[int]:
    return [1 for _ in get_current_context()["dag_run"].conf["sources"]]


for where in ("here", "deferred"):
    for name, base in (("any", None), ("based", f"{os.environ['AIRFLOW_HOME']}/inbox")):
        with DAG(f"sources_{name}_{where}", schedule=None, render_template_as_native_obj=True):
            ProcessFilesOperator.partial(
                task_id="files",
                source=SOURCE,
                base=base,
                processor=PROCESSOR,
                deferrable=where == "deferred",
                retries=0,
            ).expand(max_attempts=numbers())

with DAG("sources_any_sent", schedule=None, render_template_as_native_obj=True):
    SendingOperator.partial(task_id="files", source=SOURCE, retries=0).expand(number=numbers())

with DAG("ticks", schedule=None):
    TicksOperator(task_id="ticks", retries=0)
