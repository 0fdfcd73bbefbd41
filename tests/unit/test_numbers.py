"""Integers and truth values of other libraries, such as NumPy's, are saved as Python's own."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from async_task_state import InvalidValueError, TaskScope
from async_task_state.codec import encode


class Int64:
    """As NumPy has them: no `int`, but one for `operator.index`."""

    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number


def truth(name):
    """One of NumPy's, which has no `__index__`."""
    return type(name, (), {"__module__": "numpy", "__init__": _init, "__bool__": lambda it: it.value})


def _init(self, value):
    self.value = value


class Array:
    """More than one number has no index, and says so."""

    def __index__(self):
        raise TypeError("only integer scalar arrays can be converted to a scalar index")

    def tolist(self):
        return [1, 2]


@pytest.mark.parametrize("name", ["bool", "bool_"])
@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_of_numpy_is_one(name, value):
    assert encode("k", truth(name)(value), 100) == json.dumps(value)
    assert encode("k", {"a": [truth(name)(value)]}, 100) == json.dumps({"a": [value]}, separators=(",", ":"))


@pytest.mark.parametrize("number", [0, 7, -(2**63), 2**64 - 1])
def test_an_integer_of_another_library_is_one(number):
    assert encode("k", Int64(number), 100) == str(number)
    assert encode("k", {"a": [1, (Int64(number),)]}, 100) == f'{{"a":[1,[{number}]]}}'


def test_an_array_is_refused_with_what_to_save():
    with pytest.raises(InvalidValueError) as caught:
        encode("k", {"a": Array()}, 100)
    assert str(caught.value) == "the value of 'k' at a is a Array, which is not JSON: save its tolist()"


@pytest.mark.asyncio
async def test_a_state_gives_back_pythons_own(make_state):
    async with make_state(TaskScope("dag", "run", "task")) as state:
        await state.checkpoint(rows=Int64(5), late=truth("bool")(True))
        await state.work("files").done("a", n=Int64(6))
        assert (await state.get("rows"), await state.get("late")) == (5, True)
        assert type(await state.get("rows")) is int
    async with make_state(TaskScope("dag", "run", "task")) as state:
        assert (await state.get("rows"), await state.get("late")) == (5, True)


@pytest.mark.skipif(find_spec("numpy") is None, reason="NumPy is not installed")
def test_numpy_itself():
    import numpy as np  # noqa: PLC0415 - where it is there

    value = {"n": np.int64(3), "u": np.uint8(255), "b": np.bool_(True), "f": np.float64(0.5)}
    assert encode("k", value, 100) == '{"n":3,"u":255,"b":true,"f":0.5}'
    with pytest.raises(InvalidValueError, match=r"save its tolist\(\)$"):
        encode("k", np.float32(0.5), 100)
    with pytest.raises(InvalidValueError, match=r"save its tolist\(\)$"):
        encode("k", np.array([1, 2]), 100)
