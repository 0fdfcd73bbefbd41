"""A call is refused exactly when a plain sum says so, whatever was called before: against a model."""

from __future__ import annotations

import copy
import json
from base64 import b64encode
from functools import partial
from uuid import uuid4

import anyio
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sizekit import size, with_limit

from async_task_state import StateTooLargeError, SyncTaskState, TaskScope, TaskState, handle, room
from async_task_state.digests import digest_of

pytestmark = pytest.mark.anyio


KEYS = st.sampled_from(["a", "b", "ü", "long-key"])
VALUES = st.one_of(st.none(), st.integers(0, 10**6), st.text("xé", max_size=20))
CHANGES = st.dictionaries(KEYS, VALUES, max_size=3)
MANY = st.lists(VALUES, min_size=9, max_size=12).map(
    lambda values: {f"m{n}": v for n, v in enumerate(values)}
)
ITEMS = st.sampled_from([f"item{number}" for number in range(8)])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("checkpoint"), st.one_of(CHANGES, MANY)),
        st.tuples(st.just("done"), ITEMS, CHANGES),
        st.tuples(st.just("failed"), ITEMS, st.text("e", max_size=50)),
        st.tuples(st.sampled_from(["flush", "refresh", "clear", "reopen"])),
    ),
    max_size=60,
)


class Model:
    """What a state holds, counted anew each time: its keys in UTF-8 and their JSON."""

    def __init__(self):
        self.values = {}
        self.done = []
        self.failed = {}

    @property
    def size(self):
        done = {"__ats:work:w:0000000000": b64encode(b"." * (1 + 12 * len(self.done))).decode()}
        failed = {f"__ats:fail:w:{digest_of(item).hex()}": record for item, record in self.failed.items()}
        entries = {**self.values, **(done if self.done else {}), **failed}
        return size({key: json.dumps(value, separators=(",", ":")) for key, value in entries.items()})

    def after(self, name, *args):
        """What it is after a call."""
        model = copy.deepcopy(self)
        if name == "clear":
            return Model()
        if name == "failed":
            item, error = args
            tries = model.failed.get(item, {"tries": 0})["tries"] + 1
            model.failed[item] = {
                "item": item,
                "error": error,
                "tries": tries,
                "attempt": 1,
                "attempt_tries": tries,
            }
        elif name in ("checkpoint", "done"):
            model.values.update(args[-1])
            model.values = {key: value for key, value in model.values.items() if value is not None}
            if name == "done":
                model.failed.pop(args[0], None)
                model.done += [] if args[0] in model.done else [args[0]]
        return model


class Compared:
    """Makes each call on a state, and expects it to be refused exactly where the model says so."""

    def __init__(self, limit):
        self.limit = limit
        self.model = Model()

    def call(self, state, name, *args):
        before, after = self.model.size, self.model.after(name, *args)
        on = state.work("w") if name in ("done", "failed") else state
        named = args[-1] if name == "done" else {}
        call = partial(getattr(on, name), *(args[:1] if name == "done" else args), **named)
        if after.size > self.limit and after.size > before:
            with pytest.raises(StateTooLargeError, match=f"holds {before:,} .* would hold {after.size:,} "):
                call()
            return None
        self.model = after
        return call()


def parts(steps):
    """The steps between two openings."""
    found = [[]]
    for step in steps:
        found.append([]) if step == ("reopen",) else found[-1].append(step)
    return found


async def make_calls(compared, opened, steps):
    for part in parts(steps):
        async with opened() as state:
            for step in part:
                called = compared.call(state, *step)
                if called is not None:
                    await called


async def stored_by(opened):
    async with opened(read_only=True) as state:
        return state._values()


@pytest.fixture
def room_of_few(monkeypatch):
    """So little is kept free for what is not counted that small states can be far from their limit."""
    monkeypatch.setattr(room, "MAX_KEY_CHARS", 8)
    monkeypatch.setattr(room, "TAIL_BYTES", 400)
    monkeypatch.setattr(handle, "TAIL_BYTES", 400)


@pytest.mark.parametrize("door", ["asyncio", "trio", "sync"])
@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
@hypothesis_settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, limit=st.integers(150, 1500))
def test_g8_a_call_is_refused_exactly_when_the_sum_says_so(dsn, room_of_few, door, far, steps, limit):
    limit = limit * 4 if far else limit
    settings = with_limit(dsn, limit, max_value_bytes=130)
    scope = TaskScope("dag", uuid4().hex, "task")
    compared = Compared(limit)

    def opened(**options):
        return TaskState(scope, store=dsn, settings=settings, max_delay=60, **options)

    if door == "sync":
        for part in parts(steps):
            with SyncTaskState(opened()) as state:
                for step in part:
                    compared.call(state, *step)
    else:
        anyio.run(make_calls, compared, opened, steps, backend=door)
    assert size(anyio.run(stored_by, opened)) == compared.model.size
