"""What is added up of the results of a processor, and what is said of the rest."""

from __future__ import annotations

import logging
from collections import OrderedDict
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType

import pytest

from async_task_state import InvalidValueError
from async_task_state.files import FileWork
from async_task_state.totals import Totals


def added(*results):
    totals, sums = Totals(), {}
    for result in results:
        sums = totals.plus(sums, result, "f")
    return sums


def test_numbers_of_every_kind_are_added():
    assert added({"a": 1}, {"a": 2, "b": 0.5}, {"b": Decimal("0.25")}, {"c": Fraction(1, 2)}) == {
        "a": 3,
        "b": 0.75,
        "c": 0.5,
    }


def test_mappings_are_added_name_by_name():
    assert added(
        {"rows": {"good": 1, "by": {"x": 1}}},
        {"rows": OrderedDict(good=2, bad=1)},
        {"rows": MappingProxyType({"by": {"x": 4, "y": 1}})},
    ) == {"rows": {"good": 3, "bad": 1, "by": {"x": 5, "y": 1}}}


def test_what_is_no_number_is_left_out_and_told_once(caplog):
    with caplog.at_level(logging.WARNING):
        sums = added(
            *[{"ok": True, "name": "a", "rows": 1, "deep": {"ok": False, "list": [1]}, "none": None}] * 3,
            {"rows": {"x": 1}, "deep": 7},
        )
    assert sums == {"rows": 3, "deep": {}}
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(",")[0] for line in told] == [
        "totals leave out 'ok'",
        "totals leave out 'name'",
        "totals leave out 'deep.ok'",
        "totals leave out 'deep.list'",
        "totals leave out 'rows'",
        "totals leave out 'deep'",
    ]
    assert "returned a bool" in told[0]


@pytest.mark.parametrize("result", [{1: 1}, {"a": {2: 1}}, {"a": float("nan")}, {"a": {"b": Decimal("inf")}}])
def test_g8_what_is_no_json_is_refused(result):
    sums = {"a": {"b": 1}} if isinstance(result.get("a"), dict) else {"a": 1}
    with pytest.raises(InvalidValueError, match=r"^f: the processor returned"):
        Totals().plus(sums, result, "f")
    assert sums in ({"a": 1}, {"a": {"b": 1}})


def one(path):
    return {"rows": {path.name: 1}, "ok": True}


@pytest.mark.anyio
async def test_a_retry_goes_on_with_them(make_state, tmp_path):
    (tmp_path / "in").mkdir()
    work = FileWork(source=str(tmp_path / "in"), processor=one)
    for name in "ab":
        (tmp_path / "in" / name).touch()
        async with make_state() as state:
            result = await work.run(state)
    assert result["totals"] == {"rows": {"a": 1, "b": 1}}
