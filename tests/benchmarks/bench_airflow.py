"""`checkpoint()` against Airflow's own task state store, in one task of a real Airflow."""

from __future__ import annotations

from pathlib import Path

from bench_measure import Line, Plan

from async_task_state.sandbox import Sandbox

DAG = Path(__file__).with_name("bench_airflow_dag.py")


def airflow(plan: Plan) -> list[Line]:
    with Sandbox(DAG) as sandbox:
        conf = {"repeat": plan.repeat, "requests": plan.scaled(300), "checkpoints": plan.scaled(200_000)}
        run_id = sandbox.trigger("benchmark", conf)
        sandbox.wait_for_run("benchmark", run_id, timeout=60 + 30 * plan.repeat)
        rates = sandbox.result("benchmark", run_id, "measure")
    return [
        Line(
            "checkpoint(n=i) in an async task",
            "calls/s",
            rates["ours"],
            2000,
            ">=",
            "asend(SetTaskStateStore)",
            rates["theirs"],
            "ratio",
        )
    ]
