"""An agent in a loop, which Airflow has since 3.4: it asks a model until an answer is good enough.

Each iteration has a state of its own, so that a retry asks nothing twice, and one state over all iterations keeps the best.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import LoopDecision, dag, task, task_group

from async_task_state import TaskScope, task_state

TARGET = 2.0
PROMPTS = (1, 2, 3)


def error(answer: float) -> float:
    """How far an answer is from being the square root of the target."""
    return abs(answer * answer - TARGET)


async def ask(answer: float, prompt: int) -> float:
    """Stand-in for a call of a model, which costs money: it goes on from an answer."""
    return answer + (TARGET / answer - answer) * prompt / (len(PROMPTS) + 1)


@dag(schedule=None, params={"error": 1e-6})
def example_refine_loop() -> None:
    """Refine an answer until it is good enough."""

    @task_group
    def refine() -> None:
        @task(retries=3, retry_delay=timedelta(seconds=5))
        async def improve(*, loop: Any) -> float:
            async with task_state() as state, task_state(across_iterations=True) as memory:
                best = await memory.get("best", 1.0)
                await state.work("prompts").process(
                    PROMPTS,
                    lambda prompt: ask(best, prompt),
                    # What a crash leaves: a prompt is done and its answer there, or neither.
                    record=lambda prompt, answer: {f"answer {prompt}": answer},
                )
                best = min([best, *(await state.get_all()).values()], key=error)
                # By iteration, so that it is the same where a retry comes after it.
                errors = await memory.get("errors", {})
                await memory.set("errors", {**errors, str(loop.index): error(best)})
                await memory.set("best", best)
                return error(best)

        improve()

    def good_enough(*, loop: Any, params: dict[str, float]) -> LoopDecision:
        return LoopDecision(stop=loop.result < params["error"], reason=f"error {loop.result:.2g}")

    @task
    async def report(dag_run: Any = None) -> dict[str, Any]:
        over_all = TaskScope(dag_run.dag_id, dag_run.run_id, "refine.improve")
        async with task_state(over_all, read_only=True) as memory:
            return await memory.get_all()

    refine.loop(max_iterations=10, until=good_enough) >> report()


example_refine_loop()
