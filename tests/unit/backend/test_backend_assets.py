"""An asset whose id is all that the API server says has the state of its name."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("airflow.state", reason="Airflow has state backends since 3.3")

from airflow import settings
from airflow.models.asset import AssetModel
from airflow.sdk import Asset
from airflow.sdk import state as sdk
from airflow.state import AssetScope
from airflow.utils.session import create_session, create_session_async

from async_task_state import AssetScope as OurScope
from async_task_state import InvalidArgumentError, asset_state
from async_task_state import backend as module

SECTION = "AIRFLOW__ASYNC_TASK_STATE__"
ORDERS = Asset(name="orders/daily", uri="s3://warehouse/orders/daily")
NOWHERE = 2**31 - 1

pytestmark = pytest.mark.usefixtures("_settings_read_anew")


@pytest.fixture(scope="module")
def asset_ids():
    """The ids of assets in Airflow's database, by name."""
    AssetModel.__table__.create(settings.engine, checkfirst=True)
    names = (ORDERS.name, "orders_daily", "orders")
    with create_session() as session:
        session.add_all(
            AssetModel(name=name, uri=f"s3://{number}", group="asset") for number, name in enumerate(names)
        )
    with create_session() as session:
        yield {asset.name: asset.id for asset in session.query(AssetModel)}
    settings.engine.dispose()


@pytest.mark.asyncio
@pytest.mark.parametrize("asset", [ORDERS, Asset.ref(name=ORDERS.name), ORDERS.name, OurScope(ORDERS.name)])
async def test_an_asset_has_one_state_by_id_by_name_and_for_asset_state(backend, asset_ids, asset, dsn):
    by_id, by_name = AssetScope(asset_id=asset_ids[ORDERS.name]), sdk.AssetScope(name=ORDERS.name)
    backend.set(by_id, "watermark", '"2026-01-01"')
    assert await backend.aget(by_name, "watermark") == '"2026-01-01"'
    async with asset_state(asset, store=dsn) as state:
        assert await state.get("watermark") == "2026-01-01"
        await state.set("watermark", "2026-01-02")
        await backend.aset(by_name, "rows", "7")
        await state.refresh()
        assert await state.get("rows") == 7
    assert backend.get(by_id, "watermark") == '"2026-01-02"'
    backend.clear(by_name)
    assert backend.get(by_id, "rows") is None


def test_each_id_has_a_state_of_its_own(backend, asset_ids):
    for name, asset_id in asset_ids.items():
        assert backend.get(AssetScope(asset_id=asset_id), "name") is None
        backend.set(AssetScope(asset_id=asset_id), "name", name)
    for name, asset_id in asset_ids.items():
        assert backend.get(AssetScope(asset_id=asset_id), "name") == name
        assert backend.get(AssetScope(name=name), "name") == name


def test_the_name_comes_before_the_uri_and_a_uri_alone_stands_for_itself(backend):
    backend.set(AssetScope(name="orders", uri="s3://orders"), "key", "1")
    assert backend.get(AssetScope(name="orders"), "key") == "1"
    assert backend.get(AssetScope(uri="s3://orders"), "key") is None


@pytest.mark.parametrize("dsn", ["memory"], indirect=True)
def test_a_session_that_is_given_is_asked(backend, asset_ids):
    with create_session() as session:
        session.add(AssetModel(id=77, name="not committed", uri="s3://77", group="asset"))
        session.flush()
        backend.set(AssetScope(asset_id=77), "key", "1", session=session)
        assert backend.get(AssetScope(asset_id=77), "key", session=session) == "1"
        session.rollback()
    assert backend.get(AssetScope(name="not committed"), "key") == "1"


@pytest.mark.asyncio
@pytest.mark.parametrize("dsn", ["memory"], indirect=True)
async def test_an_async_session_that_is_given_is_asked(backend, asset_ids):
    async with create_session_async() as session:
        session.add(AssetModel(id=78, name="not committed", uri="s3://78", group="asset"))
        await session.flush()
        await backend.aset(AssetScope(asset_id=78), "key", "1", session=session)
        assert await backend.aget(AssetScope(asset_id=78), "key", session=session) == "1"
        await session.rollback()
    await settings.async_engine.dispose()
    assert await backend.aget(AssetScope(name="not committed"), "key") == "1"


@pytest.mark.anyio
@pytest.mark.parametrize("dsn", ["memory"], indirect=True)
async def test_a_name_is_looked_up_off_the_loop_and_once(backend, asset_ids, monkeypatch):
    threads = []
    look_up = module.asset_name

    def noting(asset_id):
        threads.append(threading.get_ident())
        return look_up(asset_id)

    monkeypatch.setattr(module, "asset_name", noting)
    scope = AssetScope(asset_id=asset_ids[ORDERS.name])
    await backend.aset(scope, "key", "1")
    assert await backend.aget(scope, "key") == "1"
    await backend.adelete(scope, "key")
    await backend.aclear(scope)
    assert backend.get(scope, "key") is None
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


@pytest.mark.asyncio
@pytest.mark.parametrize("dsn", ["memory"], indirect=True)
async def test_g8_an_id_that_airflow_does_not_have_is_named(backend, asset_ids):
    scope = AssetScope(asset_id=NOWHERE)
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match=f"Airflow has no asset with the id {NOWHERE}"):
            backend.set(scope, "key", "1")
        with pytest.raises(InvalidArgumentError, match=f"Airflow has no asset with the id {NOWHERE}"):
            await backend.aget(scope, "key")
