"""Log lines of the library: each is one line, and none can do harm."""

from __future__ import annotations

import logging

import pytest

from async_task_state.logs import Log
from async_task_state.text import plain

HOSTILE = "a\nERROR forged\r\x1b[2J\u202egnp\ud800\u2028\x85"


class Raises(logging.Filter):
    def filter(self, record):
        raise ZeroDivisionError("the filter's\nown")


@pytest.mark.parametrize("text", ["", "plain", "Zürich \N{ROCKET} 東京", "a b"])
def test_text_that_can_be_printed_stays(text):
    assert plain(text) is text


def test_what_cannot_be_printed_is_escaped_as_in_python():
    assert plain(HOSTILE) == r"a\nERROR forged\r\x1b[2J\u202egnp\ud800\u2028\x85"
    assert plain(plain(HOSTILE)) == plain(HOSTILE)


def test_a_log_line_is_one_line_whatever_it_is_about(caplog):
    caplog.set_level(logging.INFO)
    log = Log("async_task_state.test")
    log.info("%s, %r, %d of %.1f", HOSTILE, HOSTILE, 1, 2.5)
    log.warning("%s: %r", ValueError(HOSTILE), ValueError(HOSTILE))
    assert all(message.isprintable() for message in caplog.messages)
    assert caplog.messages[0] == f"{plain(HOSTILE)}, {HOSTILE!r}, 1 of 2.5"
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_a_traceback_that_no_stream_of_utf_8_takes_is_escaped(caplog):
    Log("async_task_state.test").warning("failed", exc_info=ValueError(HOSTILE))
    assert "ud800" in caplog.text
    assert caplog.text.encode()


def test_a_log_line_says_where_it_was_written(caplog):
    Log("async_task_state.test").error("failed", exc_info=ValueError("why"))
    (record,) = caplog.records
    assert (record.name, record.filename, record.funcName) == (
        "async_task_state.test",
        "test_logs.py",
        "test_a_log_line_says_where_it_was_written",
    )
    assert record.exc_info[1].args == ("why",)


def test_a_filter_that_raises_does_no_harm_and_the_line_is_not_lost(capsys):
    logger = logging.getLogger("async_task_state.test")
    raises = Raises()
    logger.addFilter(raises)
    try:
        Log(logger.name).error("not saved: %s", HOSTILE)
    finally:
        logger.removeFilter(raises)
    assert capsys.readouterr().err == (
        f"ERROR async_task_state.test: not saved: {plain(HOSTILE)}"
        ' (not logged, because logging has raised ZeroDivisionError("the filter\'s\\nown"))\n'
    )
