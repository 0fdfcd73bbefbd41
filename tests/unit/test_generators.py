"""A generator function in the place of a function does nothing when it is called: it is refused, wherever it is given."""

from __future__ import annotations

import functools

import pytest

from async_task_state import InvalidArgumentError, JobCallError, ProcessorError
from async_task_state.files import FileWork, load_processor
from async_task_state.job_calls import JobDefinition
from async_task_state.operators import ProcessFilesOperator, RemoteJobOperator
from async_task_state.testing import run_trigger
from async_task_state.triggers import ProcessFilesTrigger

ran = []


@pytest.fixture
def dsn(tmp_path):
    """No store is asked."""
    return f"memory:{tmp_path}"


def plain(item, more=None):
    ran.append(item)
    yield


async def awaited(item, more=None):
    ran.append(item)
    yield


class Plain:
    def __call__(self, item):
        ran.append(item)
        yield

    def method(self, item):
        ran.append(item)
        yield


class Awaited:
    async def __call__(self, item):
        ran.append(item)
        yield


GENERATORS = {
    "plain": plain,
    "async": awaited,
    "object": Plain(),
    "async object": Awaited(),
    "method": Plain().method,
    "partial": functools.partial(plain, more=1),
    "partial of async": functools.partial(awaited, more=1),
    "partial of object": functools.partial(Awaited()),
    "partial of partial": functools.partial(functools.partial(plain), more=1),
}
EACH = pytest.mark.parametrize("fn", GENERATORS.values(), ids=GENERATORS)


@pytest.mark.anyio
@EACH
async def test_g8_process_refuses_it(make_state, fn):
    async with make_state() as state:
        work = state.work("w")
        with pytest.raises(InvalidArgumentError, match="fn is a generator function"):
            work.process(["a"], fn)
        assert work.counts.done == 0


@pytest.mark.anyio
@pytest.mark.parametrize("on_error", ["raise", "collect"])
@pytest.mark.parametrize(
    "fn", [lambda item: plain(item, 1), lambda item: awaited(item, 1)], ids=["plain", "async"]
)
async def test_g8_what_returns_a_generator_ends_the_run(make_state, fn, on_error):
    async with make_state() as state:
        work = state.work("w")
        with pytest.raises(
            InvalidArgumentError, match=r"fn returned a generator, .*, of which nothing has run"
        ):
            await work.process(["a"], fn, on_error=on_error)
        assert (work.counts.done, work.counts.failed) == (0, 0)


@EACH
def test_g8_an_operator_refuses_it(fn):
    with pytest.raises(ProcessorError, match="is a generator function"):
        ProcessFilesOperator(task_id="t", source="/in", processor=fn, deferrable=False)
    with pytest.raises(ProcessorError, match="is a generator function"):
        FileWork(source="/in", processor=fn)
    with pytest.raises(ProcessorError, match="is a generator function"):
        load_processor(fn)


@pytest.mark.parametrize("deferrable", [True, False])
def test_g8_a_path_to_one_is_refused_where_the_task_runs(tmp_path, monkeypatch, make_state, deferrable, dsn):
    monkeypatch.setattr("async_task_state.operators.task_state", lambda **_: make_state())
    operator = ProcessFilesOperator(
        task_id="t", source=str(tmp_path), processor=f"{__name__}.plain", deferrable=deferrable
    )
    with pytest.raises(
        ProcessorError, match=r"'test_generators.plain' is a generator function, plain: it has a yield"
    ):
        operator.execute({})


@pytest.mark.asyncio
@pytest.mark.usefixtures("_airflow_imported")
@pytest.mark.parametrize("name", ["plain", "awaited"])
async def test_g8_a_trigger_refuses_it(tmp_path, name):
    (tmp_path / "a").touch()
    with pytest.raises(ProcessorError, match="is a generator function"):
        await run_trigger(ProcessFilesTrigger(str(tmp_path), f"{__name__}.{name}"))
    assert ran == []


@EACH
@pytest.mark.parametrize("name", ["submit", "poll", "cancel", "result"])
def test_g8_a_job_refuses_it(fn, name):
    functions = {**dict.fromkeys(("submit", "poll", "cancel", "result"), print), name: fn}
    with pytest.raises(JobCallError, match=f"{name}=.* is a generator function"):
        JobDefinition(**functions).check()


@pytest.mark.usefixtures("_airflow_imported")
def test_g8_a_jobs_operator_refuses_it_before_it_defers():
    paths = dict.fromkeys(("submit", "poll", "cancel"), f"{__name__}.awaited")
    operator = RemoteJobOperator(task_id="t", **paths, deferrable=True)
    with pytest.raises(JobCallError, match="is a generator function"):
        operator.execute({})
