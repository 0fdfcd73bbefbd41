"""DAGs whose files, jobs and authors give what Airflow's wire does not hold."""

from __future__ import annotations

from airflow.sdk import DAG, BaseOperator
from wire_helpers import Fires

from async_task_state.operators import ProcessFilesOperator, RemoteJobOperator


class FiresOperator(BaseOperator):
    def __init__(self, *, what: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.what = what

    def execute(self, context):
        self.defer(trigger=Fires(self.what), method_name="finish")

    def finish(self, context, event):
        return event


with DAG("wire_ours", schedule=None):
    for where, deferrable in (("here", False), ("deferred", True)):
        ProcessFilesOperator(
            task_id=f"files_{where}",
            source="{{ dag_run.conf['folder'] }}",
            processor="wire_helpers.refuse",
            on_error="collect",
            deferrable=deferrable,
        )
        RemoteJobOperator(
            task_id=f"job_{where}",
            submit="wire_helpers.submit",
            poll="wire_helpers.poll",
            cancel="wire_helpers.poll",
            result="wire_helpers.result",
            poll_interval=0.1,
            deferrable=deferrable,
        )

with DAG("wire_authors", schedule=None):
    for what in ("number", "name", "error"):
        FiresOperator(task_id=what, what=what, retries=0)
