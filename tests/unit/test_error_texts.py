"""What the library's errors say is one line without control characters, whatever ids, keys and servers have in them."""

from __future__ import annotations

import copy
import pickle
import sys
import traceback

import pytest

from async_task_state import (
    AssetScope,
    AsyncTaskStateError,
    EscapedError,
    JobFailedError,
    OutsideTaskError,
    StaleAttemptError,
    StateNotOpenError,
    StoreUnavailableError,
    TaskScope,
    WorkFailedError,
    WorkSummary,
    cli_scope,
    sandbox,
)
from async_task_state.processes import SandboxError
from async_task_state.records import damaged
from async_task_state.stores import Lease
from async_task_state.stores.admission import Held, admit
from async_task_state.takeover import stale_error, unsaved_text
from async_task_state.wire import carried

HOSTILE = "a\nERROR forged\r\x1b[31m\u202egnp\ud800\u2028\x85"
SHOWN = r"a\nERROR forged\r\x1b[31m\u202egnp\ud800\u2028\x85"
STORABLE = HOSTILE.replace("\ud800", "")
SUMMARY = WorkSummary(1, 0, 0, [], 0.5, 1)


def all_classes(root=AsyncTaskStateError):
    return [root, *(each for kind in root.__subclasses__() for each in all_classes(kind))]


def made(kind, text):
    if issubclass(kind, JobFailedError):
        return kind("j-1", text)
    return kind(text, SUMMARY) if issubclass(kind, WorkFailedError) else kind(text)


CLASSES = sorted(
    {kind for kind in all_classes() if kind.__module__.startswith("async_task_state")},
    key=lambda kind: kind.__qualname__,
)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__qualname__)
def test_an_error_says_what_it_says_on_one_line(kind):
    error = made(kind, HOSTILE)
    breaks = "\n" if issubclass(kind, (EscapedError, SandboxError)) else ""
    assert all(char.isprintable() or char in breaks for char in str(error))
    assert SHOWN.replace(r"\n", breaks or r"\n") in str(error)
    assert HOSTILE in error.args[0], "as it was given"
    shown = "".join(traceback.format_exception(error))
    assert not {"\x1b", "\r", "\u202e", "\u2028", "\x85", "\ud800"} & set(shown)
    assert repr(error).isprintable()


def test_every_class_is_looked_at():
    assert {cli_scope.NotFoundError, sandbox.NotFoundError, StaleAttemptError} < set(CLASSES)
    assert len(CLASSES) > 35


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__qualname__)
def test_an_error_is_copied_pickled_and_made_again_as_it_is(kind):
    error = made(kind, HOSTILE)
    for other in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (type(other), other.args, str(other)) == (kind, error.args, str(error))
        assert vars(other) == vars(error)
    if type(error).__init__ is Exception.__init__:
        assert str(type(error)(*error.args)) == str(error)


def test_what_an_error_quotes_is_not_escaped_twice():
    inner = StoreUnavailableError(HOSTILE)
    assert str(StaleAttemptError(f"not saved: {inner}")) == f"not saved: {SHOWN}"
    assert str(StaleAttemptError(str(StaleAttemptError(str(inner))))) == SHOWN
    assert str(AsyncTaskStateError(r"C:\new\x1b")) == r"C:\new\x1b"
    assert (str(AsyncTaskStateError()), str(AsyncTaskStateError("a", 1))) == ("", "('a', 1)")


def test_a_cause_and_a_group_are_kept():
    cause = ValueError("why")
    with pytest.raises(StoreUnavailableError) as raised:
        raise StoreUnavailableError(HOSTILE) from cause
    assert raised.value.__cause__ is cause
    if sys.version_info >= (3, 11):
        group = ExceptionGroup("several", [raised.value, OutsideTaskError(HOSTILE)])  # noqa: F821 - from 3.11 on
        shown = "".join(traceback.format_exception(group))
        assert "\x1b" not in shown
        assert shown.count(SHOWN) == 2
        assert group.split(StoreUnavailableError)[0].exceptions == (raised.value,)


def test_the_lines_of_a_traceback_that_is_carried_stay():
    with pytest.raises(ValueError, match="forged") as raised:
        raise ValueError(HOSTILE)
    text = str(carried(raised.value))
    assert text.startswith("Traceback (most recent call last):\n  File ")
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    "scope",
    [TaskScope(STORABLE, STORABLE, STORABLE), AssetScope(STORABLE), AssetScope(uri=STORABLE)],
    ids=["task", "asset", "uri"],
)
def test_a_message_about_a_state_is_one_line(scope):
    lease = Lease(scope, 1, 2, 0, 0)
    with pytest.raises(StaleAttemptError) as refused:
        admit(scope, 1, None, Held(2))
    for error in (
        refused.value,
        damaged(scope, f"key {STORABLE!r}", ValueError(STORABLE)),
        stale_error(lease, reopened_here=False),
        stale_error(lease, reopened_here=True),
        StateNotOpenError(unsaved_text(scope, [STORABLE])),
    ):
        assert str(error).isprintable()
        assert r"\x1b[31m" in str(error)
