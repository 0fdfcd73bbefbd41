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
    calls = "checkpoint(n=i) in an async task", "calls/s", rates["ours"], 2000, ">="
    lines = [
        Line(*calls, "asend(SetTaskStateStore)", rates["theirs"], "ratio"),
        Line(
            "awaiting set in an async task",
            "calls/s",
            rates["set"],
            5,
            ">=",
            "asend(SetTaskStateStore)",
            rates["theirs"],
            "ratio",
        ),
    ]
    if not rates["aset"]:
        # Airflow's own accessors can await since 3.4.
        return lines
    ours, theirs = zip(*rates["kept"], strict=True)
    refused = list(zip(*rates["refused"], strict=True))
    return [
        *lines,
        Line(*calls, "aset", rates["aset"], "ratio"),
        Line(
            "awaiting set in an async task", "calls/s", rates["set"], 5, ">=", "aset", rates["aset"], "ratio"
        ),
        Line(
            "items there of 64 noted at once, in a work set",
            "items",
            list(ours),
            peer="in a list by aget and aset",
            theirs=list(theirs),
        ),
        Line(
            "sync calls of Airflow's SDK refused of 50 beside a set",
            "calls",
            list(refused[0]),
            peer="beside an aset",
            theirs=list(refused[1]),
        ),
    ]
