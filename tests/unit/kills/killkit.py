"""Triggers with a hook, the task that defers to them, and a triggerer that runs them and dies."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from airflow.triggers.base import TriggerEvent

from async_task_state import Settings, StoreUnavailableError, TaskScope, TaskState
from async_task_state.lifetime import writer_for
from async_task_state.scopes import RunningTask
from async_task_state.testing.runs import run_made
from async_task_state.triggers import CheckpointTrigger
from async_task_state.triggers import checkpoint as checkpoint_module

SCOPE = TaskScope("dag", "run", "task")

calls: list[SimpleNamespace] = []


class Waits(CheckpointTrigger):
    """Begins remote work, and waits for it."""

    begun = ended = None

    def serialize(self):
        return f"{__name__}.{type(self).__name__}", {}

    async def run_with_state(self, state):
        await state.set("job", f"j-{state.attempt}")
        await state.checkpoint(page=1)
        if self.begun is not None:
            self.begun.set()
        await (self.ended or asyncio.Event()).wait()
        yield TriggerEvent({"cleared": state.cleared})

    async def on_user_kill(self, state):
        values = await state.get_all()
        await self.kill(state)
        calls.append(SimpleNamespace(by=self, values=values, attempt=state.attempt))

    async def kill(self, state):
        await state.set("killed", True)


class WaitsForPages(Waits):
    """Another class."""


class KillFails(Waits):
    async def kill(self, state):
        calls.append(SimpleNamespace(by=self, values=await state.get_all(), attempt=state.attempt))
        raise ConnectionError("no answer")


class HasNoHook(CheckpointTrigger):
    def serialize(self):
        return f"{__name__}.HasNoHook", {}

    async def run_with_state(self, state):
        yield TriggerEvent(1)


class Task:
    """One task, its attempts and its clears, as Airflow's processes see them."""

    def __init__(self, dsn):
        self.dsn = dsn
        self.settings = Settings(dsn=dsn)
        self.attempt = 1
        self.max_tries = 0

    def clear(self):
        self.attempt += 1
        self.max_tries = self.attempt

    def retry(self):
        self.attempt += 1

    def trigger(self, kind=Waits):
        trigger = kind()
        trigger.store = self.dsn
        run = run_made(1, self.attempt)
        row = dict(zip(("dag_id", "run_id", "task_id", "map_index"), SCOPE.row, strict=False))
        trigger.task_instance = SimpleNamespace(id=run.instance, try_number=self.attempt, **row)
        return trigger

    def opened(self, **options):
        run = run_made(1, self.attempt)
        whose = {"attempt": self.attempt, "run": run, "max_tries": self.max_tries}
        return TaskState(SCOPE, store=self.dsn, settings=self.settings, **whose, **options)

    async def open_and_die(self):
        async with self.opened() as state:
            assert state.cleared
            state._pending.abandon(StoreUnavailableError("dead"))

    async def defer(self, kind=Waits, on_clear=None):
        """What the worker does; the trigger of the attempt."""
        trigger = self.trigger(kind)
        trigger.on_clear = on_clear
        task = RunningTask(SCOPE, self.attempt, self.max_tries, run_made(1, self.attempt))
        await asyncio.to_thread(trigger._begin, task, trigger.serialize()[0])
        return trigger

    async def owed(self):
        writer = writer_for(self.dsn, self.settings)
        snapshot = await writer.call(writer.store.read, SCOPE)
        return [key for key in snapshot.entries if "kill:after" in key]


class Running:
    """A trigger in a triggerer."""

    def __init__(self, trigger):
        self.trigger = trigger
        self.events = []
        self.task = None

    async def __aenter__(self):
        self.trigger.begun, self.trigger.ended = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self.drive())
        begun = asyncio.create_task(self.trigger.begun.wait())
        await asyncio.wait([self.task, begun], return_when=asyncio.FIRST_COMPLETED, timeout=30)
        begun.cancel()
        return self

    async def drive(self):
        async for event in self.trigger.run():
            self.events.append(event.payload)

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.wait([self.task])

    async def die(self):
        """What SIGKILL leaves."""
        self.trigger._state._pending.abandon(StoreUnavailableError("dead"))
        await self.__aexit__()

    async def be_killed(self):
        """What Airflow does when it learns of a user's action."""
        await self.__aexit__()
        await self.trigger.on_kill()

    async def end(self):
        self.trigger.ended.set()
        await asyncio.wait([self.task])
        return self.events


def says(monkeypatch, state):
    async def state_in_airflow(scope, *, patience):
        return state

    monkeypatch.setattr(checkpoint_module, "state_in_airflow", state_in_airflow)
    # Airflow 3.4 is not asked where its triggerer has been imported.
    monkeypatch.setattr(checkpoint_module, "releases_moved_triggers", lambda: False)
