"""DAGs with loops, which have come with Airflow 3.4."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, get_current_context, task, task_group
from crash_helpers import log_to
from loop_calls import CountIterations

from async_task_state import task_state
from async_task_state.operators import ProcessFilesOperator, RemoteJobOperator

ITERATIONS = 3
FILES = range(5)
AT_ONCE = timedelta(0)

with DAG("loop_task", schedule=None):

    @task(retries=1, retry_delay=AT_ONCE)
    async def work(*, loop):
        context = get_current_context()
        journal, ti = context["dag_run"].conf["journal"], context["ti"]
        async with task_state() as state:
            log_to(
                journal, begun=loop.index, attempt=ti.try_number, resumed=state.resumed, cleared=state.cleared
            )
            await state.set("ours", loop.index)
            seen = context["task_state_store"].get("ours")
            context["task_state_store"].set("theirs", -loop.index)
            await state.refresh()
            log_to(journal, agree=loop.index, seen=[seen, await state.get("theirs")])
            files = state.work("files")
            for file in files.remaining(FILES):
                if (loop.index, ti.try_number, file) == (1, 1, 2):
                    raise RuntimeError("the first attempt of the second iteration fails")
                log_to(journal, file=file, iteration=loop.index)
                await files.done(file)

    @task_group
    def again():
        work()

    again.loop(max_iterations=ITERATIONS)

with DAG("loop_over", schedule=None):

    @task(retries=1, retry_delay=AT_ONCE)
    async def note(*, loop):
        context = get_current_context()
        async with task_state() as own, task_state(across_iterations=True) as over:
            name = f"{loop.index}.{context['ti'].try_number}"
            seen = [*await over.get("seen", []), name]
            log_to(
                context["dag_run"].conf["journal"],
                begun=loop.index,
                seen=seen,
                own=own.resumed,
                cleared=over.cleared,
            )
            await over.set("seen", seen)
            await own.set("own", name)
            if name == "1.1":
                raise RuntimeError("the first attempt of the second iteration fails")

    def over_until(*, loop):
        return loop.index == ITERATIONS - 1

    @task_group
    def shared():
        note()

    shared.loop(max_iterations=ITERATIONS, until=over_until)

for where in ("here", "deferred"):
    with DAG(f"loop_over_{where}", schedule=None):

        @task_group
        def operated(where=where):
            CountIterations(task_id="count", deferrable=where == "deferred")

        operated.loop(max_iterations=ITERATIONS)

with DAG("loop_mapped", schedule=None):

    @task
    async def each(number):
        context = get_current_context()
        async with task_state() as state:
            context["task_state_store"].set("theirs", number)
            await state.refresh()
            log_to(
                context["dag_run"].conf["journal"],
                mapped=[context["loop"].index, number],
                resumed=state.resumed,
                seen=await state.get("theirs"),
            )
            await state.set("ours", number)

    @task_group
    def all_of_them():
        each.expand(number=[0, 1])

    all_of_them.loop(max_iterations=2)

for where, deferrable in (("here", False), ("deferred", True)):
    with DAG(f"loop_files_{where}", schedule=None):

        @task_group
        def files(deferrable=deferrable):
            ProcessFilesOperator(
                task_id="files",
                source="{{ dag_run.conf['source'] }}",
                processor="loop_calls.read",
                deferrable=deferrable,
            )

        files.loop(max_iterations=ITERATIONS)

    with DAG(f"loop_jobs_{where}", schedule=None):

        @task_group
        def jobs(deferrable=deferrable):
            RemoteJobOperator(
                task_id="job",
                submit="loop_calls.submit",
                poll="loop_calls.poll",
                cancel="loop_calls.cancel",
                result="loop_calls.result",
                arguments={"name": "{{ dag_run.dag_id }}"},
                poll_interval=0.1,
                deferrable=deferrable,
            )

        jobs.loop(max_iterations=ITERATIONS)

with DAG("mapped_task", schedule=None):

    @task
    async def one(number):
        context = get_current_context()
        async with task_state() as state:
            await state.set("mine", number)
            log_to(
                context["dag_run"].conf["journal"], one=number, theirs=context["task_state_store"].get("mine")
            )

    one.expand(number=[10, 11])
