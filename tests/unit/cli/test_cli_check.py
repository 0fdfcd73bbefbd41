"""`check`: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import sqlite3

import pytest

import async_task_state
from async_task_state import cli
from async_task_state.lifetime import shutdown
from async_task_state.stores import open_store

NOBODY = 65534


@pytest.fixture
def check(run, _settings_read_anew):
    """Runs `check --json`: the exit code, and the answers by name."""

    def check(**options):
        code, out, _ = run("check", "--json", **options)
        document = json.loads(out)
        assert document.keys() == {"ok", "checks"}
        assert document["ok"] is (code == 0)
        answers = {answer.pop("check"): answer for answer in document["checks"]}
        assert all(answer.keys() == {"ok", "warning", "detail"} for answer in answers.values())
        return code, {name: (answer["ok"], answer["detail"]) for name, answer in answers.items()}

    return check


@pytest.mark.parametrize("exists", [True, False])
def test_check_is_content_and_leaves_nothing(check, fill, epoch_of, tmp_path, exists):
    if exists:
        fill(rows=1)
    before = set(tmp_path.iterdir())
    code, answers = check()
    assert code == 0, answers
    file = ["file"] if exists else []
    assert list(answers) == ["settings", "dsn", "executor", "directory", "store", *file]
    assert answers["store"][1].endswith("1 state" if exists else "it is made on first use")
    assert set(tmp_path.iterdir()) == before
    if exists:
        assert epoch_of() == 1


@pytest.mark.usefixtures("_settings_read_anew")
def test_check_as_table(run, tmp_path):
    code, out, err = run("check")
    lines = out.splitlines()
    assert (code, err, lines[-1]) == (0, "", "all is well")
    assert lines[0].split() == ["check", "result", "found"]
    assert lines[2].split() == ["dsn", "ok", f"sqlite:///{tmp_path}/state.db"]
    code, out, _ = run("check", store=f"sqlite:///{tmp_path}/missing/state.db")
    assert (code, out.splitlines()[-1]) == (1, "1 of 4 failed")


@pytest.mark.usefixtures("_settings_read_anew")
def test_check_takes_the_configured_store(capsys, monkeypatch, dsn):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", dsn)
    assert cli.main(["check"]) == 0
    assert dsn in capsys.readouterr().out


def test_check_shows_every_setting(check):
    _, answers = check()
    shown = dict(setting.split(" ") for setting in answers["settings"][1].split(", "))
    assert (shown["max_delay"], shown["max_value_bytes"]) == ("1", "1,048,576")
    assert (shown["on_clear"], shown["clear_on_success"]) == ("restart", "False")


def test_check_leaves_airflows_own_store_to_airflow(check):
    code, answers = check(store="airflow:")
    assert (code, list(answers)) == (0, ["settings", "dsn"])
    assert answers["dsn"][1].startswith("the dsn airflow: keeps state in Airflow's own store")


def test_check_finds_an_executor_that_runs_tasks_elsewhere(check, monkeypatch, dsn):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    code, answers = check()
    assert code == 1
    assert not answers["executor"][0]
    assert "CeleryExecutor runs tasks on other machines" in answers["executor"][1]
    assert check(store=f"{dsn}?single_machine=true")[0] == 0


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("MAX_DELAY", "soon", "max_delay must be a number"), ("MAX_DEALY", "2", "max_dealy: no such option")],
)
def test_check_finds_wrong_settings(check, monkeypatch, option, value, said):
    monkeypatch.setenv(f"AIRFLOW__ASYNC_TASK_STATE__{option}", value)
    code, answers = check()
    assert code == 1
    assert not answers["settings"][0]
    assert said in answers["settings"][1]
    assert answers["store"][0]


@pytest.mark.usefixtures("_settings_read_anew")
def test_check_goes_on_after_a_misspelt_setting(capsys, monkeypatch, dsn):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", dsn)
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__MAX_DEALY", "2")
    assert cli.main(["check", "--json"]) == 1
    answers = {each["check"]: each["ok"] for each in json.loads(capsys.readouterr().out)["checks"]}
    assert answers == {"settings": False, "dsn": True, "executor": True, "directory": True, "store": True}


@pytest.mark.usefixtures("_settings_read_anew")
def test_check_stops_at_settings_that_name_no_store(capsys, monkeypatch):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__MAX_DELAY", "-1")
    assert cli.main(["check", "--json"]) == 1
    assert [answer["check"] for answer in json.loads(capsys.readouterr().out)["checks"]] == ["settings"]


@pytest.mark.parametrize(
    ("store", "failed", "said"),
    [
        ("oracle://me:hunter2@host/db", "dsn", "takes sqlite:///path"),
        ("memory:", "dsn", "is for tests"),
        ("sqlite:///{path}/missing/state.db", "directory", "make that directory"),
        ("sqlite:///{path}/text/state.db", "directory", "make that directory"),
        ("sqlite:///{path}/text", "store", "is not an SQLite database"),
        ("sqlite:///{path}/newer.db", "store", "upgrade async-task-state"),
        ("sqlite:///{path}/foreign.db", "store", "belongs to another application"),
        ("sqlite:///{path}", "store", "cannot be opened for writing"),
    ],
)
def test_check_finds_a_store_that_cannot_be_used(check, tmp_path, make_state, store, failed, said):
    (tmp_path / "text").write_text("no database" * 100)
    for name, statement in (("newer", "PRAGMA user_version = 999"), ("foreign", "CREATE TABLE t (a)")):
        database = sqlite3.connect(tmp_path / f"{name}.db")
        if name == "newer":
            database.execute(f"PRAGMA application_id = {0x41545301}")
        database.execute(statement)
        database.commit()
        database.close()
    before = set(tmp_path.iterdir())
    code, answers = check(store=store.format(path=tmp_path))
    assert code == 1
    assert [name for name, (ok, _) in answers.items() if not ok] == [failed]
    assert said in answers[failed][1]
    assert "hunter2" not in str(answers)
    assert set(tmp_path.iterdir()) == before


def test_check_closes_a_file_of_ours_to_others(check, fill, tmp_path):
    fill(rows=1)
    shutdown()
    path = tmp_path / "state.db"
    path.chmod(0o644)
    code, answers = check()
    assert (code, answers["file"]) == (0, (True, "its owner's alone"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_check_finds_a_file_of_another_user_that_others_may_read(check, fill, tmp_path, monkeypatch):
    fill(rows=1)
    shutdown()
    path = tmp_path / "state.db"
    path.chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    code, answers = check()
    assert (code, answers["file"][0], answers["store"][0]) == (1, False, True)
    assert f"{path} 0644" in answers["file"][1]
    assert f"as the user with the id {path.stat().st_uid} run chmod 600 {path}" in answers["file"][1]
    assert path.stat().st_mode & 0o777 == 0o644


def test_check_finds_a_second_name_of_the_file(check, fill, tmp_path):
    fill(rows=1)
    path = tmp_path / "state.db"
    path.with_name("other.db").hardlink_to(path)
    code, answers = check()
    assert (code, answers["file"][0]) == (1, False)
    assert f"{path} has 2 names (hard links)" in answers["file"][1]


def test_check_finds_a_full_disk(check, monkeypatch):
    class Full:
        async def acquire(self, scope, attempt):
            raise async_task_state.StoreError("database or disk is full")

        async def close(self):
            pass

    monkeypatch.setattr(
        "async_task_state.cli_check.open_store", lambda dsn: Full() if "check" in dsn else open_store(dsn)
    )
    code, answers = check()
    assert code == 1
    assert answers["directory"][1].endswith("database or disk is full")
