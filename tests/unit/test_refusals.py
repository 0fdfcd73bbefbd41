"""What a state refuses: it says why at the call, and changes nothing."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import partial

import pytest

from async_task_state import (
    InvalidArgumentError,
    InvalidKeyError,
    InvalidValueError,
    ReadOnlyStateError,
    Settings,
    StateNotOpenError,
    SyncTaskState,
    TaskState,
    ValueTooLargeError,
    WithNeededError,
    asset_state_sync,
)
from async_task_state.codec import RESERVED_PREFIX

pytestmark = pytest.mark.anyio


CALLS = {
    "get": lambda state: state.get("a"),
    "get_all": lambda state: state.get_all(),
    "set": lambda state: state.set("a", 1),
    "checkpoint": lambda state: state.checkpoint(a=1),
    "flush": lambda state: state.flush(),
    "delete": lambda state: state.delete("a"),
    "clear": lambda state: state.clear(),
}
WRITES = {name: call for name, call in CALLS.items() if not name.startswith("get")}

BAD_KEYS = ["", "k" * 513, f"{RESERVED_PREFIX}x", None, 1, ("k",), ["k"], "a\0b"]


async def unchanged(state, call, error, match=None):
    """A call raises and the state is as it was."""
    before = await state.get_all(), state.stats
    with pytest.raises(error, match=match):
        await call()
    await state.flush()
    assert (await state.get_all(), state.stats) == before


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
async def test_g8_a_bad_key_is_refused_and_changes_nothing(make_state, key):
    async with make_state() as state:
        await state.set("a", 1)
        refused = partial(unchanged, state, error=InvalidKeyError, match="^a key ")
        await refused(lambda: state.get(key))
        await refused(lambda: state.set(key, 1))
        await refused(lambda: state.delete(key))
        if not isinstance(key, list):
            await refused(lambda: state.checkpoint({"a": 2, key: 1, "b": 3}))


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {1: 2}, {1}, b"x"], ids=repr)
async def test_g8_a_bad_value_is_refused_and_changes_nothing(make_state, value):
    async with make_state() as state:
        await state.set("a", 1)
        await unchanged(state, lambda: state.set("bad", value), InvalidValueError, "^the value of 'bad' ")
        await unchanged(
            state, lambda: state.checkpoint(a=2, bad=value, c=3), InvalidValueError, "^the value of 'bad' "
        )


async def test_g8_too_large_a_value_is_refused_and_changes_nothing(make_state, dsn):
    async with make_state(settings=Settings(dsn=dsn, max_value_bytes=100)) as state:
        await state.set("a", "x" * 98)
        await unchanged(state, lambda: state.set("a", "x" * 99), ValueTooLargeError, "'a' is 101 bytes")
        await unchanged(state, lambda: state.checkpoint(b=1, a="x" * 99), ValueTooLargeError, "allows 100")


@pytest.mark.parametrize("retention", [timedelta(0), timedelta(days=-1), 5, "1d"], ids=repr)
async def test_g8_a_bad_retention_is_refused_and_changes_nothing(make_state, retention):
    async with make_state() as state:
        await unchanged(
            state, lambda: state.set("a", 1, retention=retention), InvalidArgumentError, "^retention must be"
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_delay": 0}, "max_delay must be a number of seconds above 0, not 0"),
        ({"max_delay": -1}, "max_delay must be a number of seconds above 0, not -1"),
        ({"max_delay": float("nan")}, "max_delay must be a number of seconds above 0, not nan"),
        ({"max_delay": "1"}, "max_delay must be a number of seconds above 0, not '1'"),
        ({"attempt": -1}, "attempt must be an integer from 0 to 1,000,000, not -1"),
        ({"attempt": 2**31 - 1}, "attempt must be an integer from 0 to 1,000,000, not 2147483647"),
        ({"attempt": 1.0}, "attempt must be an integer from 0 to 1,000,000, not 1.0"),
        ({"attempt": True}, "attempt must be an integer from 0 to 1,000,000, not True"),
        ({"of": ("dag", "run", "task")}, "scope must be a TaskScope, not tuple"),
    ],
    ids=str,
)
async def test_g8_a_bad_argument_is_named(make_state, options, said):
    with pytest.raises(InvalidArgumentError) as caught:
        make_state(**options)
    assert str(caught.value) == said


@pytest.mark.parametrize("name", CALLS)
async def test_g8_a_state_that_is_not_open_says_so(make_state, name):
    call = CALLS[name]
    state = make_state()
    with pytest.raises(StateNotOpenError, match=r"dag/run/task is not open: enter it with `async with`.$"):
        await call(state)
    async with state:
        await call(state)
    with pytest.raises(StateNotOpenError, match=r"is not open.* It was, and has been left.$"):
        await call(state)


async def test_g8_properties_of_a_state_that_is_not_open_say_so(make_state):
    state = make_state()
    for use in (lambda: state.attempt, lambda: state.resumed, lambda: state.work("files")):
        with pytest.raises(StateNotOpenError):
            use()
    with pytest.raises(StateNotOpenError):
        await state.is_current()
    assert state.stats.recorded == 0
    assert repr(state) == "<TaskState dag/run/task closed>"
    async with state:
        work = state.work("files")
        assert repr(state) == "<TaskState dag/run/task open>"
    for call in (lambda: work.done("x"), lambda: work.failed("x", "y"), lambda: work.process([], print)):
        with pytest.raises(StateNotOpenError):
            await call()
    with pytest.raises(StateNotOpenError):
        work.is_done("x")


@pytest.mark.parametrize("name", [*WRITES, "is_current", "done", "failed", "process"])
async def test_g8_read_only_cannot_write(make_state, saved, name):
    calls = WRITES | {
        "is_current": TaskState.is_current,
        "done": lambda state: state.work("files").done("x"),
        "failed": lambda state: state.work("files").failed("x", "y"),
        "process": lambda state: state.work("files").process(["x"], str),
    }
    async with make_state() as state:
        await state.set("a", 0)
    async with make_state(read_only=True) as state:
        with pytest.raises(ReadOnlyStateError, match="dag/run/task was opened with read_only=True"):
            await calls[name](state)
    assert await saved() == {"a": 0}


async def test_g8_with_instead_of_async_with_is_named(make_state):
    async def enter():
        with make_state():
            pass

    with pytest.raises(TypeError, match="entered with `async with`; task_state_sync"):
        await enter()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_g8_async_with_instead_of_with_is_named(make_state, scope, saved):
    for state in (SyncTaskState(make_state()), asset_state_sync("orders", store="memory:")):
        with pytest.raises(
            WithNeededError, match=r"does not await, and is entered with `with`; task_state\(\)"
        ):
            async with state:
                pass
        with pytest.raises(TypeError):
            await state.__aenter__()
    assert await saved() == {}


async def test_g8_a_datetime_is_refused_with_what_to_do(make_state):
    async with make_state() as state:
        with pytest.raises(
            InvalidValueError, match=r"'at' is a datetime, which is not JSON: save its isoformat\(\)"
        ):
            state.checkpoint(at=datetime(2026, 1, 1, tzinfo=timezone.utc))
