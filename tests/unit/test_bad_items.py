"""One bad item among good ones: with "collect" it fails by name and the others are done, with "raise" its error is raised."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from async_task_state import InvalidItemError, InvalidValueError, UnstableItemError, WorkFailedError
from async_task_state.files import FileWork

pytestmark = pytest.mark.anyio

BAD = {
    "nan": float("nan"),
    "infinite": float("inf"),
    "overflow": 1e308,
    "decimal": Decimal("NaN"),
    "huge": Decimal("1e999999"),
    "signalling": Decimal("sNaN"),
}


class WordlessError(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


def count(path):
    """A processor: what the file's name says of one that is bad."""
    text = path.read_text()
    if text == "key":
        return {"rows": 1, 7: 1}
    if text == "wordless":
        raise WordlessError
    return {"rows": 1, "size": BAD.get(text, 1e308 if text == "first" else 1.0)}


@pytest.fixture
def dsn(tmp_path):
    """What an item is does not depend on the store."""
    return f"memory:{tmp_path}"


@pytest.fixture
def run(make_state, tmp_path):
    """Processes a good file, a bad one and a good one."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, text in (("a", "first"), ("c", "good")):
        (folder / name).write_text(text)

    async def run(text, on_error):
        (folder / "b").write_text(text)
        work = FileWork(source=str(folder), processor=count, on_error=on_error, concurrency=1)
        async with make_state() as state:
            return await work.run(state)

    return run


@pytest.mark.parametrize("text", [*BAD, "key", "wordless"])
async def test_g8_a_bad_number_is_the_failure_of_its_file(run, text):
    result = await run(text, "collect")
    assert (result["done"], result["failed"]) == (2, 1)
    [failure] = result["failures"]
    assert failure["file"].endswith("/in/b")
    # Of the bad one there is nothing in them.
    assert result["totals"] == {"rows": 2, "size": 1e308}
    # Nor is it done.
    assert (await run("good", "collect"))["totals"] == {"rows": 3, "size": 1e308}


@pytest.mark.parametrize("text", [*BAD, "key"])
async def test_g8_the_error_of_a_bad_number_names_its_file(run, text):
    with pytest.raises(InvalidValueError, match=r"/in/b: the processor returned"):
        await run(text, "raise")


async def test_g8_an_error_without_words_is_a_failure(run, make_state):
    result = await run("wordless", "raise")
    [failure] = result["failures"]
    assert failure["error"] == "WordlessError: <str() of this WordlessError raises RuntimeError>"
    async with make_state() as state:
        work = state.work("w")
        await work.failed("x", WordlessError())
        assert work.failures[0].error.startswith("WordlessError: <str()")


async def nothing(item):
    return item


async def fail(item):
    raise ValueError("no")


@pytest.mark.parametrize("max_bytes", [300, 5000, 1024 * 1024])
@pytest.mark.parametrize("char", ["x", "é", "🎉", "\0", "\udce9"])
async def test_g8_an_item_longer_than_a_value_fails_by_name(make_state, settings, max_bytes, char):
    settings = dataclasses.replace(settings, max_value_bytes=max_bytes)
    long = char * (max_bytes + 1)
    async with make_state(attempt=1, settings=settings) as state:
        work = state.work("w")
        summary = await work.process([long, "b"], fail, on_error="collect")
        assert summary.failed == 2
        # The same attempt does not try it again.
        again = await work.process([long, "b"], nothing, on_error="collect")
        assert (again.failed, again.done) == (2, 0)
        assert long.startswith(work.failures[0].item) or "\\" in work.failures[0].item
    async with make_state(attempt=9, settings=settings) as state:
        summary = await state.work("w").process([long, "b"], nothing)
        assert summary.done == 2


async def test_g8_what_cannot_be_recorded_is_the_failure_of_its_item(make_state):
    async with make_state() as state:
        work = state.work("w")

        def record(item, result):
            if item == "raises":
                raise ZeroDivisionError
            return {"value": float("nan") if item == "nan" else 1}

        summary = await work.process(
            ["a", "nan", "raises", "b"], nothing, record=record, on_error="collect", concurrency=1
        )
        assert (summary.done, summary.failed) == (2, 2)
        assert [failure.item for failure in summary.failures] == ["nan", "raises"]
        assert work.is_done("a")
        assert not work.is_done("nan")
        # Where the first failure ends the run it is the error itself.
        with pytest.raises(ZeroDivisionError):
            await work.process(["raises too"], nothing, record=lambda *_: 1 / 0)


async def test_g8_an_item_without_a_key_fails_by_what_it_is(make_state):
    items = [{"name": "a"}, {"nom": "b"}, {"name": 3}, {"name": "d"}]
    async with make_state() as state:
        work = state.work("w")
        summary = await work.process(
            items, nothing, key=lambda item: item["name"], on_error="collect", concurrency=1
        )
        assert (summary.done, summary.failed) == (2, 2)
        assert [failure.item for failure in summary.failures] == [
            "an item without a key: {'nom': 'b'}",
            "an item without a key: {'name': 3}",
        ]
        assert "KeyError" in summary.failures[0].error
        with pytest.raises(KeyError):
            await work.process(items, nothing, key=lambda item: item["name"])


@dataclasses.dataclass
class Named:
    value: object


def a_function():
    pass


UNSTABLE = {
    "function": a_function,
    "lambda": lambda: 1,
    "partial": functools.partial(print, 1),
    "method": Path("x").exists,
    "builtin": len,
    "set": {"a", "b"},
    "frozenset": frozenset("ab"),
    "set in list": [1, ("a", {"b": {"c", "d"}})],
    "objects in list": [object(), 1],
    "functions in tuple": (1, a_function),
    "partial in dict": {"a": functools.partial(a_function)},
    "set in dataclass": Named({"a", "b"}),
    "object in dataclass": Named(object()),
    "generator": (n for n in [1]),
}


@pytest.mark.parametrize("item", UNSTABLE.values(), ids=UNSTABLE)
async def test_g8_an_item_whose_text_differs_in_each_process_is_refused(make_state, item):
    async with make_state() as state:
        work = state.work("w")
        for call in (
            lambda: work.done(item),
            lambda: work.failed(item, "why"),
            lambda: work.process([item], nothing),
            lambda: work.process([item], nothing, on_error="collect"),
            lambda: work.process(
                [item], nothing, key=lambda item: repr([item, a_function]), on_error="collect"
            ),
        ):
            with pytest.raises(UnstableItemError, match="give key= to name items"):
                await call()
        with pytest.raises(InvalidItemError):
            work.is_done(item)
        assert (await work.process([item], lambda _: None, key=lambda _: "named")).done == 1


STABLE = """[
    "plain <function f at 0x7f0000000000>", 1, 1.5, None, b"x", ("a", 1), ["a", {"b": [1]}], Decimal("1"), Path("a/b"),
    UUID(int=1), date(2026, 1, 1), int, Color.RED, Point(1, 2)
]"""


def test_an_item_whose_text_stays_the_same_is_known_to_the_next_process():
    code = f"""
import sys
from collections import namedtuple
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID
from async_task_state.digests import digest_of
Color = Enum("Color", "RED")
Point = namedtuple("Point", "x y")
print(*(digest_of(item).hex() for item in {STABLE}))
"""
    command = [sys.executable, "-c", code]
    told = {subprocess.run(command, capture_output=True, check=True, timeout=60).stdout for _ in range(2)}
    assert len(told) == 1


async def test_a_failed_item_that_is_raised_is_named(make_state):
    async with make_state() as state:
        with pytest.raises(WorkFailedError, match="'b' failed: ValueError: no"):
            await state.work("w").process(["b"], fail)


@pytest.mark.parametrize("value", [float("nan"), "x" * 2_000_000, object()], ids=["nan", "large", "object"])
async def test_g8_a_result_that_cannot_be_recorded_is_raised_with_the_name_of_its_item(make_state, value):
    async with make_state() as state:
        work = state.work("w")
        with pytest.raises(
            InvalidValueError, match="'b' is not recorded as done: the value of 'rows' "
        ) as raised:
            await work.process(
                ["a", "b"],
                nothing,
                record=lambda item, _: {"rows": value if item == "b" else 1},
                concurrency=1,
            )
        assert raised.traceback[-1].name != "over", "where it was found"
        assert raised.value.__cause__ is None
        assert (work.is_done("a"), work.is_done("b"), work.failures) == (True, False, [])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have notes from 3.11 on")
async def test_g8_an_authors_error_while_recording_has_a_note_of_its_item(make_state):
    async with make_state() as state:
        with pytest.raises(ZeroDivisionError, match="division by zero") as raised:
            await state.work("w").process(["a\x1b"], nothing, record=lambda *_: 1 / 0)
    assert raised.value.__notes__ == ["'a\\x1b' is not recorded as done"]
