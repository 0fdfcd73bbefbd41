"""What a Databricks workspace answers, by way of its hook's methods: it refuses what a workspace refuses."""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.exceptions import AirflowException

TOKEN_CHARS = 64


class RunState:
    """As the hook gives it."""

    def __init__(self, life_cycle_state: str, result_state: str = "") -> None:
        self.life_cycle_state, self.result_state = life_cycle_state, result_state

    is_terminal = property(lambda self: self.life_cycle_state == "TERMINATED")
    is_successful = property(lambda self: self.result_state == "SUCCESS")


class DatabricksHook:
    """A run has an id, and each of its tasks has a run with an id of its own."""

    runs: ClassVar[dict[int, dict[str, Any]]] = {}
    entered = 0

    def __init__(self, databricks_conn_id: str = "databricks_default") -> None:
        self.databricks_conn_id = databricks_conn_id

    async def __aenter__(self):
        DatabricksHook.entered += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        DatabricksHook.entered -= 1

    def submit_run(self, json: dict[str, Any]) -> int:
        token = json["idempotency_token"]
        unknown = json.keys() - {"tasks", "run_name", "idempotency_token"}
        if unknown or not json["tasks"] or not 0 < len(token) <= TOKEN_CHARS:
            raise refused(400)
        for run_id, run in self.runs.items():
            if run["token"] == token:
                return run_id
        run_id = 1000 + 10 * len(self.runs)
        tasks = [
            {
                "run_id": run_id + number,
                "task_key": task["task_key"],
                "path": task["notebook_task"]["notebook_path"],
            }
            for number, task in enumerate(json["tasks"], 1)
        ]
        self.runs[run_id] = {"token": token, "tasks": tasks, "polls": 0, "state": "RUNNING"}
        return run_id

    async def a_get_run(self, run_id: int) -> dict[str, Any]:
        run = self._run(run_id)
        return {"run_id": run_id, "state": {"life_cycle_state": run["state"]}, "tasks": run["tasks"]}

    async def a_get_run_state(self, run_id: int) -> RunState:
        run = self._run(run_id)
        run["polls"] += 1
        if run["polls"] > 1 and run["state"] == "RUNNING":
            run["state"] = "TERMINATED"
        return RunState(run["state"], "SUCCESS" if run["state"] == "TERMINATED" else "")

    async def a_get_run_output(self, run_id: int) -> dict[str, Any]:
        for run in self.runs.values():
            for task in run["tasks"]:
                if task["run_id"] == run_id:
                    return {
                        "notebook_output": {"result": f"the output of {task['path']}", "truncated": False}
                    }
        # Of the run itself, too: each of its tasks has an output.
        raise refused(400)

    def cancel_run(self, run_id: int) -> None:
        self._run(run_id)["state"] = "CANCELED"

    def _run(self, run_id: Any) -> dict[str, Any]:
        if type(run_id) is not int or run_id not in self.runs:
            raise refused(400, f"Run {run_id} does not exist.")
        return self.runs[run_id]


def refused(status: int, message: str = "Bad Request") -> AirflowException:
    return AirflowException(f"Response: {message}, Status Code: {status}")
