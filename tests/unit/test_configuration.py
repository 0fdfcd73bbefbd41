"""Airflow's config is read without Airflow, where that gives the same."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest
from airflow import configuration

from async_task_state import Settings, SettingsError, TaskScope, TaskState, compat
from async_task_state.configuration import plain_config
from async_task_state.settings import SECTION, settings_in

pytestmark = pytest.mark.usefixtures("_airflow_imported")

IDS = ("dag", "run", "task")

PROGRAM = """
import json, sys
from async_task_state.cli import main
assert main(sys.argv[1:]) == 0
loaded = {name.partition(".")[0] for name in sys.modules}
assert "async_task_state" in loaded
print(json.dumps("airflow" in loaded))
"""


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Sets variables as the only ones of Airflow's, and writes its file."""
    for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))

    def environment(file="", **variables):
        (tmp_path / "home").mkdir(exist_ok=True)
        (tmp_path / "home" / "airflow.cfg").write_text(file)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return environment


@pytest.fixture
def airflows(monkeypatch):
    """The settings as Airflow reads them in this environment."""

    def airflows():
        home = configuration.get_airflow_home()
        monkeypatch.setattr(configuration, "AIRFLOW_HOME", home)
        monkeypatch.setattr(configuration, "AIRFLOW_CONFIG", configuration.get_airflow_config(home))
        monkeypatch.setattr(configuration, "conf", configuration.initialize_config())
        return settings_in(compat.config_with(SECTION, "dsn"), home)

    return airflows


@pytest.fixture
def without_airflow(monkeypatch):
    """The settings as they are read where Airflow is not loaded; None where it would be asked."""

    def without_airflow():
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "airflow.configuration")
            plain = plain_config(SECTION)
        return None if plain is None else settings_in(plain, plain.home)

    return without_airflow


OPTIONS = {
    "default": {},
    "variable": {"AIRFLOW__ASYNC_TASK_STATE__DSN": "memory:x", "AIRFLOW__ASYNC_TASK_STATE__MAX_DELAY": "2"},
    "variable, doubled percent": {"AIRFLOW__ASYNC_TASK_STATE__DSN": "postgresql://u:%%40%20@h/d"},
    "variables in it": {"AIRFLOW__ASYNC_TASK_STATE__DSN": "memory:$THIS", "THIS": "~/$THAT", "THAT": "x"},
    "empty variable": {"file": "[async_task_state]\ndsn = memory:y", "AIRFLOW__ASYNC_TASK_STATE__DSN": ""},
    "file": {
        "file": "[async_task_state]\ndsn = memory:file\nmax_delay = 0.5\nclear_on_success = True # yes\n"
    },
    "file, percent": {"file": "[async_task_state]\ndsn = postgresql://u:p%%40@h/d\n"},
    "file, interpolated": {"file": "[async_task_state]\nhost = h\ndsn = postgresql://u@%(host)s/d\n"},
    "file, from default": {"file": "[DEFAULT]\ndsn = memory:d\n[async_task_state]\nmax_delay = 3\n"},
    "file, default alone": {"file": "[DEFAULT]\ndsn = memory:d\n"},
    "file, variable in it": {"file": "[async_task_state]\ndsn = sqlite:///$THIS/x\n", "THIS": "/y"},
    "file, case": {"file": "[async_task_state]\nDSN = memory:upper\n"},
    "file, lines": {"file": "[async_task_state]\ndsn =\n  memory:x\n"},
    "both": {"file": "[async_task_state]\ndsn = memory:f\n", "AIRFLOW__ASYNC_TASK_STATE__DSN": "memory:v"},
    "connection": {"file": "[async_task_state]\nconn_id = state_db\n"},
    "not a test": {"AIRFLOW__CORE__UNIT_TEST_MODE": "False"},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_the_settings_are_those_that_airflow_reads(environment, airflows, without_airflow, options):
    environment(**OPTIONS[options])
    plain = without_airflow()
    assert plain == airflows()
    assert plain is not None


@pytest.mark.parametrize("exists", [True, False])
def test_the_file_may_be_elsewhere(environment, airflows, without_airflow, tmp_path, exists):
    environment(
        "[async_task_state]\ndsn = memory:home\n", AIRFLOW_CONFIG="$PLACE/own.cfg", PLACE=str(tmp_path)
    )
    if exists:
        (tmp_path / "own.cfg").write_text("[async_task_state]\ndsn = memory:own\n")
    plain = without_airflow()
    assert (tmp_path / "own.cfg").exists() is exists
    assert plain.dsn == ("memory:own" if exists else f"sqlite:///{tmp_path}/home/async_task_state.db")
    assert plain == airflows()


ASKED = {
    "command": {"AIRFLOW__ASYNC_TASK_STATE__DSN_CMD": "echo memory:cmd"},
    "secret": {"AIRFLOW__ASYNC_TASK_STATE__DSN_SECRET": "state"},
    "command in the file": {"file": "[async_task_state]\ndsn_cmd = echo memory:cmd\n"},
    "secret in the file": {"file": "[async_task_state]\ndsn_secret = state\n"},
    "home in the file": {"file": "[core]\nairflow_home = /elsewhere\n"},
    "test": {"AIRFLOW__CORE__UNIT_TEST_MODE": "True"},
    "test in the file": {"file": "[core]\nunit_test_mode = True\n"},
    "no such interpolation": {"file": "[async_task_state]\ndsn = memory:%(nowhere)s\n"},
    "lone percent": {"file": "[async_task_state]\ndsn = memory:%\n"},
    "no config": {"file": "dsn\n"},
    "for ever": {"AIRFLOW__ASYNC_TASK_STATE__DSN": "$X", "X": "$X$X$X"},
}


@pytest.mark.parametrize("options", ASKED)
def test_airflow_is_asked_for_what_only_airflow_can_tell(environment, without_airflow, options):
    environment(**ASKED[options])
    assert without_airflow() is None


def test_airflow_is_asked_where_it_is_loaded(environment):
    environment()
    assert plain_config(SECTION) is None


def test_airflow_says_what_is_wrong_with_a_directory(environment, without_airflow, tmp_path):
    environment(AIRFLOW_CONFIG=str(tmp_path))
    assert without_airflow() is None


@pytest.mark.parametrize("text", ["perhaps", "", "2"])
def test_g8_what_is_neither_true_nor_false_is_named(environment, without_airflow, text):
    environment(AIRFLOW__ASYNC_TASK_STATE__CLEAR_ON_SUCCESS=text)
    with pytest.raises(SettingsError, match=rf"clear_on_success must be true or false, not '{text}'$"):
        without_airflow()


@pytest.mark.parametrize("way", ["variable", "file"])
@pytest.mark.parametrize("command", [["list"], ["show", *IDS]], ids=["list", "show"])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_looking_loads_no_airflow(environment, request, tmp_path, kind, command, way):
    dsn = f"sqlite:///{tmp_path}/state.db" if kind == "sqlite" else request.getfixturevalue("postgres").dsn()

    async def fill():
        async with TaskState(TaskScope(*IDS), store=dsn, settings=Settings(dsn=dsn)) as state:
            await state.set("rows", 1)

    asyncio.run(fill())
    if way == "variable":
        environment(AIRFLOW__ASYNC_TASK_STATE__DSN=dsn)
    else:
        environment(f"[async_task_state]\ndsn = {dsn.replace('%', '%%')}\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *_, is_loaded = done.stdout.splitlines()
    assert (json.loads(is_loaded), done.stderr) == (False, "")
    assert '"keys": 1' in done.stdout
