"""What may be saved: keys, values, and what is said of those that may not."""

from __future__ import annotations

import enum
import json
import math
from collections import OrderedDict, UserDict, deque
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_state import InvalidKeyError, InvalidValueError, ValueTooLargeError
from async_task_state.codec import MAX_KEY_CHARS, RESERVED_PREFIX, check_key, decode, encode

MIB = 1024 * 1024
NAN, INF = math.nan, math.inf

# JSON has no upper bound for integers; Python has one for their text.
numbers = st.integers(-(10**400), 10**400) | st.floats(allow_nan=False, allow_infinity=False)
# Lone surrogates included: JSON text can hold them.
text = st.text(st.characters(exclude_categories=()))
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=20,
)


def same(left, right):
    """Equal, and of the same types: 1 is not True, nor 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return left == right and str(left) == str(right)


class Colour(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Unshown:
    def __repr__(self):
        raise AssertionError("a message must not need the repr of a value")


@given(values.filter(lambda value: value is not None))
def test_a_value_comes_back_as_it_was(value):
    assert same(decode(encode("k", value, 10 * MIB)), value)


@given(values.filter(lambda value: value is not None))
def test_what_is_stored_is_plain_text_on_one_line(value):
    stored = encode("k", value, 10 * MIB)
    assert stored.isascii()
    assert stored.isprintable()
    assert json.loads(stored) == value


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ((1, [2], (3,)), "[1,[2],[3]]"),
        (OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
        (Colour.RED, '"red"'),
        (Level.HIGH, "3"),
        ([Level.HIGH, Colour.RED], '[3,"red"]'),
        ([None], "[null]"),
        (False, "false"),
        (-0.0, "-0.0"),
        ("\0\ud800é", '"\\u0000\\ud800\\u00e9"'),
        ("", '""'),
        ({}, "{}"),
    ],
)
def test_what_json_can_say_is_stored(value, stored):
    assert encode("k", value, MIB) == stored


def test_g7_the_value_is_copied():
    value = {"list": [1]}
    stored = encode("k", value, MIB)
    value["list"].append(2)
    assert decode(stored) == {"list": [1]}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            None,
            "the value of 'k' is None: delete('k') removes a key, and so does a checkpoint or a done item with None",
        ),
        (NAN, "the value of 'k' is nan, which JSON does not have"),
        (-INF, "the value of 'k' is -inf, which JSON does not have"),
        ([1, INF], "the value of 'k' at [1] is inf, which JSON does not have"),
        ({"a": {"b": [0, {"c": NAN}]}}, "the value of 'k' at a.b[1].c is nan, which JSON does not have"),
        (b"bytes", "the value of 'k' is a bytes, which is not JSON"),
        ({1, 2}, "the value of 'k' is a set, which is not JSON"),
        (deque([1]), "the value of 'k' is a deque, which is not JSON"),
        (UserDict(a=1), "the value of 'k' is a UserDict, which is not JSON"),
        (1j, "the value of 'k' is a complex, which is not JSON"),
        (Unshown(), "the value of 'k' is a Unshown, which is not JSON"),
        (
            {"when": datetime.now(timezone.utc)},
            "the value of 'k' at when is a datetime, which is not JSON: save its isoformat()",
        ),
        ({"paths": [Path("a")]}, "the value of 'k' at paths[0] is a PosixPath, which is not JSON"),
        ([[Decimal(1)]], "the value of 'k' at [0][0] is a Decimal, which is not JSON"),
        (({"id": UUID(int=1)},), "the value of 'k' at [0].id is a UUID, which is not JSON"),
        ({1: 2}, "the value of 'k' has a key that is not a string but int: 1"),
        ({"a": [{None: 2}]}, "the value of 'k' at a[0] has a key that is not a string but NoneType: None"),
        ({"a": {True: 2}}, "the value of 'k' at a has a key that is not a string but bool: True"),
    ],
)
def test_g8_a_value_that_is_not_json_is_named_with_its_path(value, said):
    with pytest.raises(InvalidValueError) as caught:
        encode("k", value, MIB)
    assert str(caught.value) == said


def test_g8_a_value_that_holds_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(InvalidValueError, match="the value of 'k' is nested too deeply, or holds itself"):
        encode("k", value, MIB)


@pytest.mark.parametrize("value", [10**5000, [10**5000]], ids=["alone", "within"])
def test_g8_an_integer_too_long_for_text_is_refused(value):
    with pytest.raises(InvalidValueError, match=r"the value of 'k' .*4300"):
        encode("k", value, MIB)


@pytest.mark.parametrize("value", ["xxx", 12345, [1, 2], 1.25], ids=repr)
def test_g8_a_value_that_is_too_large_is_refused(value):
    assert encode("k", value, 5) == json.dumps(value, separators=(",", ":"))
    with pytest.raises(ValueTooLargeError) as caught:
        encode("k", value, len(encode("k", value, 5)) - 1)
    assert str(caught.value).startswith("the value of 'k' is")
    assert "bytes of JSON; [async_task_state] max_value_bytes allows" in str(caught.value)


def test_g8_the_size_is_that_of_the_text():
    with pytest.raises(
        ValueTooLargeError, match=r"the value of 'k' is 1,048,577 bytes of JSON; .* allows 1,048,576"
    ):
        encode("k", "x" * (MIB - 1), MIB)
    with pytest.raises(ValueTooLargeError, match="is 8 bytes"):
        encode("k", "é", 7)


@pytest.mark.parametrize(
    "key", ["a", "a/b", "a.b", " ", "é", "\N{ROCKET}" * MAX_KEY_CHARS, "a\nb", "__ats", "x__ats:"], ids=ascii
)
def test_a_key_is_any_text(key):
    check_key(key)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", "a key must not be empty"),
        ("k" * (MAX_KEY_CHARS + 1), "a key has at most 512 characters, this one 513: 'kkk"),
        (f"{RESERVED_PREFIX}x", "a key must not start with '__ats:', which is reserved: '__ats:x'"),
        (None, "a key must be a string, not NoneType: None"),
        (1, "a key must be a string, not int: 1"),
        (b"k", "a key must be a string, not bytes: b'k'"),
        (["k"], "a key must be a string, not list: ['k']"),
        ("a\0b", "a key must be text that UTF-8 can encode, without NUL: 'a\\x00b'"),
        ("\ud800", "a key must be text that UTF-8 can encode, without NUL: '\\ud800'"),
    ],
    ids=ascii,
)
def test_g8_what_cannot_be_a_key_is_named(key, said):
    with pytest.raises(InvalidKeyError) as caught:
        check_key(key)
    assert str(caught.value).startswith(said)
