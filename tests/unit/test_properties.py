"""Random sequences of calls, faults and crashes, checked against models."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import faulty
import pytest
from anyio.from_thread import start_blocking_portal
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from async_task_state import Settings, StaleAttemptError, StaleWriterError, TaskScope, TaskState, writer
from async_task_state.codec import RESERVED_PREFIX, decode
from async_task_state.lifetime import shutdown, writer_for
from async_task_state.stores.memory import MemoryStore
from async_task_state.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from concurrent.futures import Future

NEVER = 3600.0
SCOPE = TaskScope("dag", "run", "task")
ITEMS = range(6)

numbers = st.integers(0, 9)
values = st.dictionaries(st.sampled_from("abc"), numbers, min_size=1)
items = st.sampled_from(ITEMS)


@pytest.fixture
def short_retries(monkeypatch):
    monkeypatch.setattr(writer, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(writer, "LAST_RETRY_SECONDS", 0.002)


class Machine(RuleBasedStateMachine):
    """Calls on an event loop in a thread of its own."""

    def __init__(self):
        super().__init__()
        self.portals = start_blocking_portal()
        self.portal = self.portals.__enter__()

    def teardown(self):
        shutdown()
        # What still waits is cancelled.
        self.portal.call(self.portal.stop, True)
        self.portals.__exit__(None, None, None)

    def begin(self, call, *args, **named) -> Future:
        """Begin a call that may have to wait; return when it has recorded what it records."""

        async def made():
            return await call(*args, **named)

        future = self.portal.start_task_soon(made)
        self.portal.call(checkpoint)
        return future

    def make(self, call, *args, **named):
        return self.begin(call, *args, **named).result(faulty.PATIENCE)


class Model:
    """What a state must be: its keys, what is done, what failed; how it was after each call."""

    def __init__(self):
        self.now = ({}, frozenset(), {})
        self.history = [self.now]
        self.durable = 0

    def step(self, keys, done=None, failed=None):
        self.now = (keys, self.now[1] if done is None else done, self.now[2] if failed is None else failed)
        self.history.append(self.now)

    def surviving(self):
        return self.history[self.durable :]

    def restart(self, state):
        self.now, self.history, self.durable = state, [state], 0


async def contents(state):
    work = state.work("items")
    done = frozenset(item for item in ITEMS if work.is_done(item))
    assert work.counts.done == len(done)
    return await state.get_all(), done, {failure.item: failure.error for failure in work.failures}


class OneWriter(Machine):
    """One holder after the other, each with whatever faults the store has."""

    def __init__(self):
        super().__init__()
        self.model = Model()
        self.store = faulty.FaultyStore()
        self.state = self.enter()
        self.waiting = []

    def teardown(self):
        self.store.mend()
        super().teardown()

    def enter(self, **options):
        settings = Settings(dsn="memory:", max_delay=NEVER, outage_timeout=NEVER)
        state = TaskState(SCOPE, store=self.store, settings=settings, **options)
        self.make(state.__aenter__)
        return state

    def durably(self, call, *args):
        """Make a call that returns when everything before it, and itself, is durable."""
        index = len(self.model.history) - 1
        future = self.begin(call, *args)
        self.waiting.append((index, future))
        if self.store.sound:
            self.settle()

    def settle(self):
        for _, future in self.waiting:
            future.result(faulty.PATIENCE)
        self.collect()

    def collect(self):
        """Hear which calls have returned."""
        for index, future in self.waiting:
            if future.done():
                future.result()
                self.model.durable = max(self.model.durable, index)
        self.waiting = [(index, future) for index, future in self.waiting if not future.done()]

    @rule(values=values)
    def checkpoint(self, values):
        self.model.step({**self.model.now[0], **values})
        self.make(self.state.checkpoint, values)

    @rule(key=st.sampled_from("abc"), value=numbers)
    def set(self, key, value):
        self.model.step({**self.model.now[0], key: value})
        self.durably(self.state.set, key, value)

    @rule(key=st.sampled_from("abc"))
    def delete(self, key):
        self.model.step({name: value for name, value in self.model.now[0].items() if name != key})
        self.durably(self.state.delete, key)

    @rule()
    def clear(self):
        self.model.step({}, frozenset(), {})
        self.durably(self.state.clear)

    @rule()
    def flush(self):
        self.durably(self.state.flush)

    @rule(item=items, values=values)
    def done(self, item, values):
        keys, done, failed = self.model.now
        failed = {name: error for name, error in failed.items() if name != str(item)}
        self.model.step({**keys, **values}, done | {item}, failed)
        self.make(self.state.work("items").done, item, **values)

    @rule(item=items, error=st.sampled_from(["x", "y"]))
    def failed(self, item, error):
        self.model.step(self.model.now[0], failed={**self.model.now[2], str(item): error})
        self.make(self.state.work("items").failed, item, error)

    @precondition(lambda self: self.store.sound)
    @rule(values=values)
    def hang(self, values):
        """A commit is on its way while the next calls are made."""
        self.checkpoint(values)
        self.store.hanging = True
        self.flush()
        self.make(faulty.until, lambda: self.store.calls_waiting)

    # One rule, so that several calls come between two of these.
    @rule(fate=st.sampled_from(["down", "lossy", "mend", "crash"]))
    def fate(self, fate):
        """What hung goes on, to succeed or to fail, as does what comes after it."""
        if fate == "crash":
            self.crash()
            return
        self.store.mend()
        if fate == "mend":
            self.settle()
        else:
            setattr(self.store, fate, True)

    def crash(self):
        """What the store holds is all that is left."""
        held = self.ask(lambda: copy.deepcopy(self.store.inner._records))
        self.store.mend()
        for _, future in self.waiting:
            future.result(faulty.PATIENCE)
        self.waiting.clear()
        self.store = faulty.FaultyStore()
        self.store.inner._records = held
        self.state = self.enter()
        left = self.make(contents, self.state)
        assert left in self.model.surviving()
        self.model.restart(left)

    def ask(self, question):
        """What the store holds between two commits."""

        async def answer():
            return question()

        return self.make(self.state._pending._writer.call, answer)

    @precondition(lambda self: self.store.sound)
    @rule()
    def successor(self):
        """Another handle in the same process: the earlier one was abandoned and its lease is taken over."""
        self.state = self.enter(attempt=self.state.attempt + 1)
        assert self.make(contents, self.state) == self.model.now
        self.model.durable = len(self.model.history) - 1

    @invariant()
    def reads_its_writes(self):
        assert self.make(contents, self.state) == self.model.now

    @invariant()
    def holds_what_may_survive(self):
        self.collect()
        held = self.ask(lambda: self.store.saved(SCOPE))
        keys = {key: value for key, value in held.items() if not key.startswith(RESERVED_PREFIX)}
        assert keys in [state[0] for state in self.model.surviving()]


def test_g1_g3_a_crash_leaves_the_state_after_a_call_not_older_than_the_last_durable_one(short_retries):
    run_state_machine_as_test(OneWriter, settings=limits(80))


class Holder:
    """A process that holds, or held, the scope: a store and a writer of its own."""

    def __init__(self, store):
        self.store = store
        self.state = TaskState(SCOPE, store=store, settings=Settings(dsn="memory:", max_delay=NEVER))
        self.recorded = {}
        self.saving = None


class Fencing(Machine):
    """Holders of one scope in processes of their own: they open, record, stall and come back."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.outside = writer_for(inner(), Settings(dsn="memory:"))
        self.holders: list[Holder | None] = [None, None, None]
        self.current = None
        self.attempt = 0
        self.saved = {}

    def teardown(self):
        for holder in self.holders:
            if holder is not None:
                holder.store.mend()
        super().teardown()

    slots = st.integers(0, 2)

    def awake(self, slot):
        holder = self.holders[slot]
        return None if holder is None or holder.store.hanging else holder

    @rule(slot=slots, older=st.integers(-1, 2))
    def open(self, slot, older):
        """A new process takes the place of whichever was there."""
        if self.holders[slot] is not None and self.awake(slot) is None:
            return
        store = faulty.FaultyStore()
        store.inner = self.inner()
        holder = Holder(store)
        wanted = None if older == 2 else max(1, self.attempt - older)
        holder.state._wanted_attempt = wanted
        if wanted is not None and wanted < self.attempt:
            with pytest.raises(StaleAttemptError):
                self.make(holder.state.__aenter__)
            return
        self.make(holder.state.__aenter__)
        assert self.make(holder.state.get_all) == self.saved
        holder.recorded = dict(self.saved)
        self.attempt = holder.state.attempt
        self.holders[slot], self.current = holder, holder

    @rule(slot=slots, values=values)
    def checkpoint(self, slot, values):
        holder = self.awake(slot)
        if holder is None or holder.state._pending.error is not None:
            return
        self.make(holder.state.checkpoint, values)
        holder.recorded.update(values)

    @rule(slot=slots)
    def save(self, slot):
        holder = self.awake(slot)
        if holder is not None:
            holder.saving = self.begin(holder.state.is_current)
            self.outcome(holder)

    @rule(slot=slots, key=st.sampled_from("abc"), value=numbers)
    def set(self, slot, key, value):
        holder = self.awake(slot)
        if holder is None:
            return
        if holder is self.current:
            self.make(holder.state.set, key, value)
            holder.recorded[key] = value
            self.saved = dict(holder.recorded)
        else:
            with pytest.raises(StaleWriterError):
                self.make(holder.state.set, key, value)

    @rule(slot=slots)
    def stall(self, slot):
        """A process is frozen with a commit on its way."""
        holder = self.awake(slot)
        if holder is not None and holder.state._pending.error is None:
            holder.store.hanging = True
            holder.saving = self.begin(holder.state.is_current)

    @rule(slot=slots)
    def come_back(self, slot):
        holder = self.holders[slot]
        if holder is not None and holder.store.hanging:
            holder.store.hanging = False
            self.outcome(holder)

    @rule()
    def clear(self):
        """An operator clears the scope from outside."""
        self.make(self.outside.call, self.outside.store.clear, SCOPE)
        self.saved, self.current, self.attempt = {}, None, min(self.attempt, 1)

    @invariant()
    def holds_what_the_live_one_saved(self):
        snapshot = self.make(self.outside.call, self.outside.store.read, SCOPE)
        held = {} if snapshot is None else {key: decode(text) for key, text in snapshot.entries.items()}
        assert held == self.saved

    def outcome(self, holder):
        """A live writer is never refused, a stale one always."""
        live = holder.saving.result(faulty.PATIENCE)
        assert live == (holder is self.current)
        if live:
            self.saved = dict(holder.recorded)
        holder.saving = None


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_g4_only_the_newest_holder_can_write_and_it_always_can(kind, tmp_path):
    made = iter(range(10**6))

    def machine():
        path, memory = tmp_path / f"{next(made)}.db", MemoryStore()
        return Fencing((lambda: memory) if kind == "memory" else (lambda: SQLiteStore(path)))

    run_state_machine_as_test(machine, settings=limits(20))


def limits(examples):
    return settings(
        max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
