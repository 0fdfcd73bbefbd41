"""The public API as a type checker sees it; checked by mypy, run by nobody."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import assert_type

from async_task_state import (
    NEVER_EXPIRE,
    AssetScope,
    AssetState,
    Failure,
    Settings,
    Stats,
    SyncAssetState,
    SyncTaskState,
    TaskScope,
    TaskState,
    WorkCounts,
    WorkFailedError,
    WorkSet,
    WorkSummary,
    asset_state,
    asset_state_sync,
    purge,
    purge_sync,
    task_state,
    task_state_sync,
)
from async_task_state.jobs import RemoteJob
from async_task_state.stores import Store, open_store
from async_task_state.stores.memory import MemoryStore
from async_task_state.stores.sqlite import SQLiteStore
from async_task_state.testing import StoreConformance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

scope = TaskScope("dag", "run", "task", map_index=2)
assert_type(TaskScope.from_airflow(object()), TaskScope)
assert_type(NEVER_EXPIRE, timedelta)
assert_type(Settings(dsn="memory:").default_retention, float | None)

stores: list[Store] = [MemoryStore(), SQLiteStore(Path("state.db")), open_store("memory:")]


async def load(path: Path) -> int:
    return len(str(path))


def load_plainly(path: Path) -> int:
    return len(str(path))


async def list_files() -> AsyncIterator[Path]:
    yield Path("a")


async def use_a_state() -> None:
    assert_type(task_state(), TaskState)
    async with task_state(scope, attempt=1, store=stores[0], max_delay=0.5) as state:
        assert_type(state, TaskState)
        assert_type(await state.get("key"), Any)
        assert_type(await state.get("key", 0), Any)
        assert_type(await state.get_all(), dict[str, Any])
        await state.set("key", [1], retention=NEVER_EXPIRE)
        await state.set("key", {"a": None}, retention=timedelta(days=1))
        await state.checkpoint({"a/b": 1}, rows=2)
        await state.flush()
        await state.delete("key")
        await state.clear()
        assert_type(await state.is_current(), bool)
        assert_type(state.scope, TaskScope)
        assert_type(state.attempt, int)
        assert_type(state.resumed, bool)
        assert_type(state.stats, Stats)
        assert_type(state.work("files"), WorkSet)
    async with task_state(scope, store="memory:", read_only=True) as seen:
        assert_type(seen, TaskState)


async def use_a_work_set(work: WorkSet) -> None:
    paths = [Path("a"), Path("b")]
    assert_type(list(work.remaining(paths)), list[Path])
    assert_type(list(work.remaining(paths, key=lambda path: path.name)), list[Path])
    assert_type(work.is_done("a"), bool)
    assert_type(work.counts, WorkCounts)
    assert_type(work.failures, list[Failure])
    await work.done(paths[0], rows=1)
    await work.failed(paths[0], ValueError("why"))
    await work.failed(paths[0], "why")
    assert_type(await work.process(paths, load), WorkSummary)
    assert_type(await work.process(list_files(), load, concurrency=4, max_attempts=2), WorkSummary)
    assert_type(await work.process(paths, load_plainly, on_error="collect"), WorkSummary)
    await work.process(paths, load_plainly, key=lambda path: path.name)
    await work.process(paths, load_plainly, record=lambda path, size: {path.name: size + 1})
    try:
        summary = await work.process(paths, lambda path: path.name)
    except WorkFailedError as error:
        assert_type(error.summary, WorkSummary)
    else:
        assert_type(summary.as_event(), dict[str, Any])
        assert_type(summary.failures, list[Failure])


async def misuse(state: TaskState, work: WorkSet) -> None:
    # Each ignore is needed, or mypy says so: these are errors.
    await state.set(1, "value")  # type: ignore[arg-type]
    await state.set("key", 1, retention=5)  # type: ignore[arg-type]
    await state.checkpoint([("key", 1)])  # type: ignore[arg-type]
    await work.process([Path("a")], load, on_error="ignore")  # type: ignore[arg-type]
    await work.process(5, load)  # type: ignore[arg-type]
    task_state(("dag", "run", "task"))  # type: ignore[arg-type]
    state.attempt = 2  # type: ignore[misc]
    scope.dag_id = "other"  # type: ignore[misc]


class TestMyStore(StoreConformance):
    def make_store(self, default_retention: float | None) -> Store:
        return MemoryStore(default_retention=default_retention)

    def reopen(self, store: Store) -> Store | None:
        return store


async def use_an_asset() -> None:
    assert_type(await purge(), int)
    async with asset_state("orders", max_delay=1) as state:
        assert_type(state, AssetState)
        assert_type(state.scope, AssetScope)
        assert_type(await state.get("watermark"), Any)
        await state.refresh()


async def use_a_cleared_task() -> None:
    async with task_state(on_clear=lambda values: {"job": values["job"]}) as state:
        assert_type(state.cleared, bool)
        assert_type(state.scope, TaskScope)
    task_state(on_clear="resume")


def use_without_await() -> None:
    assert_type(purge_sync("memory:"), int)
    with task_state_sync(scope, on_clear="restart") as state:
        assert_type(state, SyncTaskState)
        assert_type(state.get("key"), Any)
        assert_type(state.attempt, int)
        state.checkpoint(n=1)
        files = state.work("files")
        assert_type(files.counts, WorkCounts)
        assert_type(files.process([Path("a")], load_plainly), WorkSummary)
        assert_type(list(files.remaining(["a"])), list[str])
    with asset_state_sync(AssetScope(uri="s3://bucket/orders")) as asset:
        assert_type(asset, SyncAssetState)
        asset.set("watermark", 1)


class Training(RemoteJob):
    async def submit(self, name: str, idempotency_key: str) -> int:
        return len(name + idempotency_key)

    async def poll(self, job_id: int) -> str:
        return str(job_id)

    def cancel(self, job_id: int) -> None:
        assert job_id
