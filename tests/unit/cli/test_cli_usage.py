"""The command line itself: usage, errors, terminals, processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from async_task_state import Settings, TaskScope, cli
from async_task_state.settings import load_settings

IDS = ("dag", "run", "task")
RUN_ID = "manual__2026-01-02T03:04:05.678901+00:00"
SCRIPT = Path(sys.executable).with_name("async-task-state")


# Airflow's own store


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["show", *IDS],
        ["watch", *IDS],
        ["clear", *IDS, "--yes"],
        ["purge"],
        ["init-db"],
        ["init-db", "--sql"],
    ],
    ids=" ".join,
)
def test_who_shows_what_is_kept_in_airflows_own_store_is_named(run, command, monkeypatch):
    monkeypatch.setattr(cli, "load_settings", lambda: Settings(dsn="airflow:"))
    code, out, err = run(*command, store="airflow:")
    assert (code, out) == (1, "")
    assert err.startswith("error: the dsn airflow: keeps state in Airflow's own store")
    assert "airflow state-store clean" in err


# wrong usage, errors


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["show"],
        ["show", "dag", "run"],
        ["show", *IDS, "--asset", "x"],
        ["show", "--asset", "x", "--asset-uri", "y"],
        ["show", "--asset", "x", "--map-index", "1"],
        ["watch", "dag"],
        ["clear"],
        ["clear", "dag"],
        ["clear", "dag", "run", "--map-index", "1"],
        ["clear", "dag", "run", "--all-map-indexes"],
        ["clear", *IDS, "--all-map-indexes", "--map-index", "1"],
        ["clear", "--asset", "x", "--all-map-indexes"],
        ["clear", "dag", "run", "--asset", "x"],
        ["list", "--assets", "--dag", "x"],
        ["show", *IDS, "--map-index", "first"],
        ["show", *IDS, "--region-id", "here"],
        ["watch", *IDS, "--interval", "0"],
        ["watch", *IDS, "--interval", "nan"],
        ["watch", *IDS, "--interval", "often"],
        ["watch", *IDS, "--until", "0"],
        ["watch", *IDS, "--until", "many"],
        ["list", "--limit", "0"],
        ["list", "--limit", "all"],
        ["list", "--after", "there"],
        ["list", "--after", "1.5"],
        ["list", "--after", "nan:1"],
        ["list", "--after", f"1.5:{2**63}"],
        ["list", "--limit", "9" * 20],
        ["list", "--dag", "\udcff"],
        ["watch", *IDS, "--total", "-5"],
        ["demo"],
        ["demo", "--json"],
    ],
)
def test_wrong_usage(argv, capsys, dsn):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--dsn", dsn, *argv])
    assert exit_.value.code == 2
    assert "usage: async-task-state" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "store", "said"),
    [
        (["list"], "mysql://me:hunter2@host/db", "[async_task_state] dsn takes"),
        (["show", "d" * 251, "run", "task"], None, "dag_id must be a string of 1 to 250 characters"),
        (["show", *IDS, "--map-index", "-2"], None, "map_index must be an integer from -1 to 2^31"),
        (["show", *IDS], "sqlite:///relative.db", "a sqlite dsn is"),
        (["watch", *IDS], "nonsense", "[async_task_state] dsn takes"),
    ],
)
def test_errors_are_one_line(run, argv, store, said):
    code, out, err = run(*argv, **({} if store is None else {"store": store}))
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert "hunter2" not in err


@pytest.mark.usefixtures("_settings_read_anew")
def test_the_store_is_the_configured_one(capsys, fill, dsn, monkeypatch):
    fill(rows=1)
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", dsn)
    load_settings.cache_clear()
    assert cli.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["keys"] == 1


@pytest.mark.parametrize("command", [["check"], ["list"]])
def test_an_interrupted_command_says_nothing(run, monkeypatch, command):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "lent_store", interrupt)
    monkeypatch.setattr(cli, "checks", interrupt)
    assert run(*command) == (130, "", "")


# terminals


def test_what_is_no_terminal_gets_whole_plain_lines(run, fill, monkeypatch):
    long = TaskScope("d" * 250, "r" * 250, "t" * 250)
    fill(long, failed=1, text="word " * 30)
    commands = [["list"], ["show", long.dag_id, long.run_id, long.task_id]]
    wide = [run(*command)[1] for command in commands]
    for name, value in {"COLUMNS": "20", "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}.items():
        monkeypatch.setenv(name, value)
    narrow = [run(*command)[1] for command in commands]
    assert narrow == wide
    for out in wide:
        assert "\x1b" not in out
        assert all(identifier in out for identifier in (long.dag_id, long.run_id, long.task_id))
        assert all(line == line.rstrip() for line in out.splitlines())


def test_a_narrow_terminal_folds_ids_and_cuts_none(run, fill, monkeypatch):
    fill(TaskScope("the_dag", RUN_ID, "the_task"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("NO_COLOR", "1")
    out = run("list")[1]
    assert "…" not in out
    assert RUN_ID in re.sub("\x1b.*?m|\n", "", out)


# processes


@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "async_task_state"]])
def test_as_a_program(command, fill, dsn):
    fill(rows=1)
    done = subprocess.run(
        [*command, "list", "--json", "--dsn", dsn], capture_output=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)[0]["keys"] == 1
    done = subprocess.run([*command, "--version"], capture_output=True, check=True, timeout=60, text=True)
    assert done.stdout.startswith("async-task-state ")
    assert subprocess.run([*command, "x"], capture_output=True, check=False, timeout=60).returncode == 2


@pytest.mark.parametrize("argv", [["--help"], ["list", "--dsn", "{dsn}"]])
def test_airflow_is_imported_for_its_settings_only(argv, dsn):
    program = (
        "import sys\nfrom async_task_state.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    assert 'airflow' not in sys.modules"
    )
    argv = [part.format(dsn=dsn) for part in argv]
    subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, check=True, timeout=60)


def test_demo_is_loaded_when_named(monkeypatch, capsys):
    demo = SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--files", type=int), run=lambda args: args.files
    )
    monkeypatch.setitem(sys.modules, "async_task_state.demo", demo)
    assert cli.main(["demo", "--files", "7"]) == 7
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    assert "--files" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_output_cannot_show_is_escaped(fill, dsn, encoding):
    fill(city="Łódź ☂")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [SCRIPT, "show", *IDS, "--dsn", dsn]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, env=environment)
    assert "\\u2602" in done.stdout.decode(encoding)


def test_the_help_of_clear_says_what_becomes_of_a_deferred_task(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["clear", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "The trigger of a deferred task begins again with an empty state, and its on_user_kill is not called"
        in told
    )
