"""A value that is nested too deep to be read is refused at the call, with its key and the limit."""

from __future__ import annotations

import json

import pytest

from async_task_state import InvalidValueError, task_state_sync
from async_task_state.codec import MAX_DEPTH, check_text, decode, encode

MIB = 1024 * 1024
REFUSED = rf"the value of 'k' is nested too deeply.*{MAX_DEPTH}"


def nested(depth, kind="list"):
    value = 1
    for level in range(depth):
        is_list = kind == "list" or (kind == "mixed" and level % 2)
        value = [value] if is_list else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["list", "dict", "mixed"])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 400, 900, 5000])
def test_every_call_refuses_it_and_changes_nothing(make_state, scope, settings, depth, kind):
    import asyncio  # noqa: PLC0415 - both doors are used here

    value = nested(depth, kind)

    async def use():
        async with make_state() as state:
            await state.set("k", 0)
            for call in (
                lambda: state.set("k", value),
                lambda: state.checkpoint(k=value, a=1),
                lambda: state.work("files").done("x", k=value),
            ):
                with pytest.raises(InvalidValueError, match=REFUSED):
                    await call()
            assert await state.get_all() == {"k": 0}
            assert not state.work("files").is_done("x")

    asyncio.run(use())
    with task_state_sync(scope, store=settings.dsn) as state:
        with pytest.raises(InvalidValueError, match=REFUSED):
            state.checkpoint(k=value)
        assert state.get_all() == {"k": 0}


@pytest.mark.parametrize("kind", ["list", "dict", "mixed"])
def test_what_may_be_saved_can_be_read(kind):
    value = nested(MAX_DEPTH, kind)
    text = encode("k", value, MIB)
    assert decode(text) == value
    check_text("k", text)


@pytest.mark.parametrize("value", [[[]] * 1000, "[{" * 1000, {"a": ["["] * 500}, [{"a": [1]}] * 300])
def test_many_brackets_are_not_deep(value):
    check_text("k", encode("k", value, MIB))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_text_that_is_too_deep_is_refused(depth):
    with pytest.raises(InvalidValueError, match=REFUSED):
        check_text("k", "[" * depth + "]" * depth)


def test_text_that_is_no_json_is_not_looked_at():
    check_text("k", "[" * 150 + "{" * 150 + json.dumps("x"))


@pytest.mark.parametrize("text", ["NaN", '{"a":[Infinity]}', "-1e999"])
def test_g8_a_number_that_json_does_not_have_is_refused_where_text_is_given(text):
    with pytest.raises(InvalidValueError, match="the value of 'k' is not JSON: "):
        check_text("k", text)
    check_text("k", '"NaN 1e999"')
