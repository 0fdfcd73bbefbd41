"""The state of an asset: known by its name, held by whoever opened it last."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from async_task_state import (
    AssetScope,
    AssetState,
    InvalidArgumentError,
    StaleWriterError,
    asset_state,
    task_state,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_airflow_imported")]


@pytest.fixture
def orders(dsn, settings):
    def orders(scope=AssetScope("orders"), **options):  # noqa: B008 - frozen
        return AssetState(scope, store=dsn, settings=settings, **options)

    return orders


async def test_g1_what_one_run_leaves_the_next_one_finds(orders):
    async with orders() as state:
        assert not state.resumed
        await state.set("watermark", "2026-01-01")
        await state.work("files").done("a", rows=1)
    async with orders() as state:
        assert state.resumed
        assert await state.get_all() == {"watermark": "2026-01-01", "rows": 1}
        assert state.work("files").is_done("a")


async def test_an_asset_is_what_its_name_says_or_its_uri(orders):
    async with orders(AssetScope("orders", "s3://orders")) as state:
        await state.set("n", 1)
    async with orders(AssetScope("orders")) as state:
        assert await state.get("n") == 1
    async with orders(AssetScope(uri="orders")) as state:
        assert await state.get("n") is None


async def test_g4_the_last_one_to_open_it_holds_it(orders):
    async with orders() as old, orders(max_delay=9) as joined:
        assert joined is old
    first, second = orders(), orders()
    await first.__aenter__()
    await first.__aexit__(None, None, None)
    async with second:
        await second.set("n", 2)
    with pytest.raises(StaleWriterError):
        await first.__aenter__()


async def test_an_item_that_failed_is_tried_anew_by_the_next_holder(orders):
    def fail(item):
        raise ValueError(item)

    async with orders() as state:
        summary = await state.work("files").process(["a"], fail, on_error="collect")
        assert summary.failed == 1
        assert list(state.work("files").remaining(["a"])) == []
    async with orders() as state:
        assert list(state.work("files").remaining(["a"])) == ["a"]


async def test_what_is_saved_never_expires_unless_told_to(orders, on_store):
    async with orders() as state:
        await state.set("watermark", 1)
        await state.set("soon", 1, retention=timedelta(days=1))
        await state.work("files").done("a")
    assert await on_store("purge", time.time() + 100 * 86400) == 1
    async with orders() as state:
        assert await state.get_all() == {"watermark": 1}
        assert state.work("files").is_done("a")


async def test_airflows_assets_name_theirs(tmp_path):
    from airflow.sdk import Asset  # noqa: PLC0415 - takes a second

    store = f"memory:{tmp_path}"
    async with asset_state(Asset(name="orders", uri="s3://bucket/orders"), store=store) as state:
        await state.set("n", 1)
        assert state.scope == AssetScope("orders")
    async with asset_state("orders", store=store) as state:
        assert await state.get("n") == 1
    async with asset_state(Asset.ref(name="orders"), store=store, read_only=True) as state:
        assert await state.get("n") == 1
    async with asset_state(Asset.ref(uri="s3://bucket/orders"), store=store) as state:
        assert await state.get("n") is None


async def test_a_task_and_an_asset_are_not_joined(tmp_path, scope):
    store = f"memory:{tmp_path}"
    async with task_state(scope, store=store) as task, asset_state("orders", store=store) as asset:
        assert task is not asset
        async with task_state() as joined:
            assert joined is task


@pytest.mark.parametrize("what", [None, 7, "", "x" * 1501, "\0"])
async def test_g8_what_names_no_asset(what):
    with pytest.raises(InvalidArgumentError):
        asset_state(what, store="memory:")
    with pytest.raises(InvalidArgumentError):
        AssetScope(name=what)
