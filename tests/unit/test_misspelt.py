"""A setting whose name is misspelt is told when settings are read."""

from __future__ import annotations

import logging

import pytest
from airflow.configuration import conf

from async_task_state.settings import load_settings

pytestmark = pytest.mark.usefixtures("_airflow_imported", "_settings_read_anew")


@pytest.fixture
def told(caplog):
    def told():
        caplog.clear()
        load_settings.cache_clear()
        with caplog.at_level(logging.WARNING):
            load_settings()
        return [record.getMessage() for record in caplog.records if "read by nothing" in record.getMessage()]

    return told


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        (
            "ASYNC_TASK_STATE__MAX_DELEY",
            "[async_task_state] max_deley is read by nothing: did you mean max_delay?",
        ),
        ("ASYNC_TASK_STATE__DNS_CMD", "[async_task_state] dns_cmd is read by nothing: did you mean dsn?"),
        (
            "ASYNC_TASK_SATE__DSN",
            "the section [async_task_sate] is read by nothing: did you mean [async_task_state]?",
        ),
        (
            "ASYNC_TASKS_STATE__X",
            "the section [async_tasks_state] is read by nothing: did you mean [async_task_state]?",
        ),
    ],
)
def test_a_misspelt_variable_is_told(monkeypatch, told, variable, line):
    monkeypatch.setenv(f"AIRFLOW__{variable}", "1")
    assert told() == [line]


def test_an_option_that_is_like_none_is_told_with_those_there_are(monkeypatch, told):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__COLOUR", "red")
    [line] = told()
    assert "colour is read by nothing: there are allowed_protocols, clear_on_success, conn_id" in line


def test_what_a_file_says_is_told(told):
    conf.add_section("async-task-state")
    try:
        conf.set("async-task-state", "dsn", "memory:")
        assert told() == [
            "the section [async-task-state] is read by nothing: did you mean [async_task_state]?"
        ]
    finally:
        conf.remove_section("async-task-state")


def test_what_is_right_is_not_told(monkeypatch, told):
    for name in ("MAX_DELAY", "MAX_VALUE_BYTES"):
        monkeypatch.setenv(f"AIRFLOW__ASYNC_TASK_STATE__{name}", "5")
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN_CMD", "echo memory:")
    monkeypatch.setenv("AIRFLOW__TASK_STATE__X", "5")
    monkeypatch.setenv("AIRFLOW__STATE_STORE__X", "5")
    assert told() == []
