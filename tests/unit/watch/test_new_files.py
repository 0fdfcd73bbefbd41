"""NewFilesTrigger, run by the triggerer's own code, with a supervisor that can die at any moment."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.models.trigger import Trigger
from airflow.sdk import Asset, AssetWatcher
from airflow.sdk.execution_time.context import AssetStateStoreAccessors
from airflow.serialization.encoders import encode_trigger
from watchkit import put, until

from async_task_state import AssetScope, InvalidArgumentError, NoScopeError
from async_task_state.compat import takes_trigger_queue
from async_task_state.lifetime import writer_for
from async_task_state.settings import load_settings
from async_task_state.triggers import NewFilesTrigger, newfiles

pytestmark = pytest.mark.asyncio

RESTARTS = 200
TRIGGER_ID = 1


@pytest.fixture
def make_trigger(folder, tmp_path, monkeypatch):
    """Makes the trigger from what Airflow keeps of it."""
    monkeypatch.setattr(NewFilesTrigger, "store", f"memory:{tmp_path}")

    def make_trigger(**options):
        trigger = NewFilesTrigger(
            str(folder), **{"poll_interval": 0.003, "settle": 0, "sample": 100, "asset": "orders", **options}
        )
        kept = Trigger.encrypt_kwargs(trigger.serialize()[1])
        return NewFilesTrigger(**Trigger._decrypt_kwargs(kept))

    return make_trigger


class Triggerer:
    """The triggerer's own code that runs triggers; what its supervisor would do is done here."""

    def __init__(self, trigger, database):
        self.trigger = trigger
        self.database = database
        self.runner = TriggerRunner()
        self.runner.triggers[TRIGGER_ID] = {"task": None, "is_watcher": True, "name": "watcher", "events": 0}
        self.task = asyncio.create_task(self.runner.run_trigger(TRIGGER_ID, trigger))
        self.handed_over = []

    def hand_over(self):
        """Events leave the runner."""
        while self.runner.events:
            self.handed_over.append(self.runner.events.popleft())

    def store(self):
        """What was handed over is in Airflow's database."""
        stored, self.handed_over = self.handed_over, []
        self.database += [entry.event.payload for entry in stored]
        return [entry.persist_seq for entry in stored]

    def confirm(self, numbers):
        self.runner._shared_streams.confirm_persisted(numbers)

    def sync(self):
        """What happens once a second."""
        self.hand_over()
        self.confirm(self.store())

    async def crash(self):
        """What is not durable is lost: nothing this one does from now on is saved."""
        acquire_from(self.trigger)
        await self.shut_down()

    async def shut_down(self):
        """As the triggerer does on SIGTERM."""
        await self.runner._shared_streams.stop_all()
        await self.cancel()

    async def cancel(self):
        """As the triggerer does with a watcher that it is to run no more."""
        self.task.cancel("__airflow_user_action__")
        await asyncio.wait([self.task])
        assert self.task.cancelled()


def acquire_from(trigger):
    """Take the lease away, at once."""
    writer = writer_for(trigger.store, load_settings())
    asyncio.run_coroutine_threadsafe(writer.store.acquire(trigger.scope, None), writer.loop).result()


@pytest.fixture
def start(make_trigger):
    """Starts triggerers of one Airflow."""
    database = []
    return lambda **options: Triggerer(make_trigger(**options), database)


@pytest.mark.parametrize("ending", ["crash", "shut_down", "cancel"])
async def test_an_event_that_never_left_the_triggerer_is_fired_by_the_next_one(start, folder, ending):
    put(folder, "a")
    first = start()
    await until(lambda: first.runner.events)
    lost = first.runner.events[0].event.payload
    await getattr(first, ending)()
    second = start()
    await until(lambda: second.runner.events)
    assert second.runner.events[0].event.payload == lost
    await second.shut_down()


@pytest.mark.parametrize("ending", ["crash", "shut_down", "cancel"])
async def test_an_event_in_the_database_that_was_not_confirmed_is_fired_again_with_its_id(
    start, folder, ending
):
    put(folder, "a")
    first = start()
    await until(lambda: first.runner.events)
    first.hand_over()
    first.store()
    await getattr(first, ending)()
    second = start()
    await until(lambda: second.runner.events)
    second.sync()
    await second.shut_down()
    one, again = second.database
    assert one == again


@pytest.mark.parametrize("ending", ["crash", "shut_down", "cancel"])
async def test_a_confirmed_event_is_not_fired_again(start, folder, ending):
    put(folder, "a")
    first = start()
    await until(lambda: first.runner.events)
    first.sync()
    put(folder, "b")
    await until(lambda: first.runner.events)
    await getattr(first, ending)()
    second = start()
    await until(lambda: second.runner.events)
    second.sync()
    put(folder, "c")
    await until(lambda: second.runner.events)
    second.sync()
    await second.shut_down()
    assert [event["files"] for event in second.database] == [[str(folder / name)] for name in "abc"]


async def test_an_event_that_airflow_was_cancelled_with_in_its_hands_is_not_lost(start, folder, monkeypatch):
    """Airflow counts it as one that the trigger did not need; the trigger must not."""
    put(folder, "a")
    first = start()
    held = asyncio.Event()

    async def hold(message, **_):
        if message == "Trigger fired event":
            held.set()
            await asyncio.sleep(3600)

    first.runner.log = SimpleNamespace(ainfo=hold, info=lambda *_, **__: None)
    await held.wait()
    await first.cancel()
    assert not first.runner.events
    second = start()
    await until(lambda: second.runner.events)
    assert second.runner.events[0].event.payload["count"] == 1
    await second.shut_down()


async def test_g4_a_trigger_that_was_taken_over_ends_without_a_word(start, folder):
    put(folder, "a")
    older = start()
    await until(lambda: older.runner.events)
    older.sync()
    newer = start()
    await until(older.task.done)
    assert older.task.cancelled()
    assert not older.runner.events
    put(folder, "b")
    await until(lambda: newer.runner.events)
    await newer.shut_down()


async def test_a_store_that_cannot_serve_ends_the_trigger_with_its_error(start, monkeypatch, tmp_path):
    (tmp_path / "no database").write_text("not one" * 1000)
    monkeypatch.setattr(NewFilesTrigger, "store", f"sqlite:///{tmp_path}/no database")
    triggerer = start()
    await until(triggerer.task.done)
    # Airflow starts it again, and logs why it ended.
    assert "no database" in str(triggerer.task.exception())


@pytest.mark.timeout(240)
async def test_every_file_is_in_exactly_one_event_over_200_restarts(start, folder, request):
    seed = request.config.getoption("--seed") or random.randrange(2**32)
    chance = random.Random(seed)
    names = (f"{number:06d}" for number in range(10**6))
    written = set()
    for _ in range(RESTARTS):
        triggerer = start()
        for _ in range(chance.randrange(4)):
            for _ in range(chance.randrange(3)):
                name = next(names)
                put(folder, name)
                written.add(str(folder / name))
            await asyncio.sleep(chance.random() * 0.01)
            if chance.random() < 0.5:
                triggerer.hand_over()
            if chance.random() < 0.5:
                numbers = triggerer.store()
                if chance.random() < 0.7:
                    triggerer.confirm(numbers)
        # A supervisor that ends in good order stores what it was given before.
        if chance.random() < 0.5:
            await triggerer.crash()
        else:
            triggerer.store()
            await triggerer.shut_down()
    last = start()
    by_id = {}

    def complete():
        last.sync()
        by_id.update({event["event_id"]: event for event in last.database})
        return written <= {file for event in by_id.values() for file in event["files"]}

    await until(complete)
    await last.shut_down()
    counts = Counter(file for event in by_id.values() for file in event["files"])
    assert set(counts) == written, f"--seed {seed}"
    assert set(counts.values()) == {1}, f"--seed {seed}"
    assert len(last.database) > len(by_id), "no event came twice, so the hard case was not met"
    # An event that came twice came as it was.
    for event in last.database:
        assert by_id[event["event_id"]] == event


async def test_before_airflow_33_an_event_is_confirmed_after_a_while(make_trigger, folder, monkeypatch):
    monkeypatch.setattr(newfiles, "confirms_events", lambda: False)
    put(folder, "a")
    first = make_trigger()
    assert first.shared_stream_key() is None
    run = first.run()
    event = await anext(run)
    waiting = asyncio.create_task(anext(run))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.wait([waiting])
    trigger = make_trigger()
    run = trigger.run()
    assert await anext(run) == event
    monkeypatch.setattr(newfiles, "CONFIRM_SECONDS", 0.01)
    put(folder, "b")
    assert (await anext(run)).payload["files"] == [str(folder / "b")]
    acquire_from(trigger)
    with pytest.raises(asyncio.CancelledError):
        await anext(run)


async def test_its_state_is_that_of_the_asset_that_airflow_says_it_watches(make_trigger):
    trigger = make_trigger(asset=None)
    with pytest.raises(NoScopeError, match="watches no asset"):
        _ = trigger.scope
    trigger.asset_state_store = accessors("orders")
    assert trigger.scope == make_trigger(asset="orders").scope
    assert trigger.scope.name.startswith("orders#new_files-")
    assert make_trigger(asset="returns").scope != trigger.scope


async def test_one_that_serves_several_assets_must_be_given_a_name(make_trigger):
    """Which they are changes, and a state that changes with them would lose events or fire them again."""
    trigger = make_trigger(asset=None)
    trigger.asset_state_store = accessors("returns", "orders")
    with pytest.raises(NoScopeError, match=r"several assets \(orders, returns\).* give asset="):
        _ = trigger.scope
    named = make_trigger(asset="arrivals")
    named.asset_state_store = accessors("returns", "orders")
    assert named.scope == make_trigger(asset="arrivals").scope


def accessors(*names):
    return AssetStateStoreAccessors([Asset(name=name, uri=f"x://{name}") for name in names])


async def test_two_sources_of_an_asset_do_not_fence_each_other_nor_its_tasks(folder):
    one, two = (
        NewFilesTrigger(source, asset="orders").scope for source in (str(folder), [str(folder), "/b"])
    )
    assert len({one, two, "orders"}) == 3
    assert NewFilesTrigger(folder, asset="orders", poll_interval=1, settle=0).scope == one
    assert NewFilesTrigger("/x", asset="o" * 1500).scope.name.startswith("o" * 1000)
    assert "secret" not in NewFilesTrigger("ftp://u:secret@host/x", asset="orders").scope.name


async def test_in_airflows_own_store_the_state_is_the_assets(monkeypatch):
    monkeypatch.setattr(NewFilesTrigger, "store", "airflow:")
    one, two = (NewFilesTrigger(source, asset="orders") for source in ("/a", "/b"))
    assert one.scope == two.scope == AssetScope("orders")
    assert one._key != two._key


async def test_g8_a_version_of_airflow_that_names_no_asset_needs_one(monkeypatch):
    monkeypatch.setattr(newfiles, "names_watched_assets", lambda: False)
    with pytest.raises(InvalidArgumentError, match="asset="):
        NewFilesTrigger("/x")
    NewFilesTrigger("/x", asset="orders")


@pytest.mark.skipif(not takes_trigger_queue(), reason="queues of event triggers have come with Airflow 3.4")
async def test_a_queue_reaches_airflow_and_is_no_part_of_what_the_trigger_is():
    trigger = NewFilesTrigger("/x", asset="orders", queue="gpu")
    encoded = encode_trigger(trigger)
    assert encoded["queue"] == trigger.queue == "gpu"
    assert trigger.serialize() == NewFilesTrigger("/x", asset="orders").serialize()
    assert "queue" not in encode_trigger(NewFilesTrigger("/x", asset="orders"))


async def test_g8_a_version_of_airflow_without_queues_says_so(monkeypatch):
    monkeypatch.setattr(newfiles, "takes_trigger_queue", lambda: False)
    with pytest.raises(InvalidArgumentError, match="leave out queue='gpu'"):
        NewFilesTrigger("/x", asset="orders", queue="gpu")


@pytest.mark.parametrize(
    ("argument", "value"), [("asset", ""), ("asset", 7), ("sample", 1000), ("source", None)]
)
async def test_g8_a_bad_argument_raises_in_the_dag(argument, value):
    with pytest.raises(InvalidArgumentError, match=argument):
        NewFilesTrigger(**{"source": "/x", argument: value})


async def test_the_trigger_survives_its_serialization(folder):
    for source in (str(folder), [f"{folder}/*", "s3://bucket"]):
        trigger = NewFilesTrigger(source, settle=3, initial="skip", poll_interval=5)
        path, arguments = trigger.serialize()
        assert path == "async_task_state.triggers.newfiles.NewFilesTrigger"
        assert NewFilesTrigger(**arguments).serialize() == (path, arguments)
        json.dumps(arguments)
        watcher = AssetWatcher(name="arrivals", trigger=trigger)
        # By which Airflow sees that a watcher is the one that it runs already.
        assert encode_trigger(watcher.trigger) == encode_trigger(NewFilesTrigger(**arguments))
