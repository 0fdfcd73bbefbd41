"""What Airflow knows of us: the config section, the provider, the plugin and its listener."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(240)


DSN = "sqlite:////tmp/from-a-command.db"


def run(environment, *command):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_airflow_lists_the_config_section_without_its_secret(airflow):
    shown = run(
        airflow.environment,
        sys.executable,
        "-m",
        "airflow",
        "config",
        "list",
        "--section",
        "async_task_state",
    )
    assert "max_delay" in shown
    assert "outage_timeout" in shown
    assert airflow.dsn not in shown


def test_airflow_lists_the_provider_and_its_plugin(airflow):
    providers = json.loads(
        run(airflow.environment, sys.executable, "-m", "airflow", "providers", "list", "--output", "json")
    )
    assert "async-task-state" in [provider["package_name"] for provider in providers]
    plugins = json.loads(
        run(airflow.environment, sys.executable, "-m", "airflow", "plugins", "--output", "json")
    )
    [ours] = [plugin for plugin in plugins if plugin["name"] == "async_task_state"]
    assert "async_task_state.listener" in str(ours["listeners"])


@pytest.mark.parametrize(
    "given",
    [{"AIRFLOW__ASYNC_TASK_STATE__DSN": DSN}, {"AIRFLOW__ASYNC_TASK_STATE__DSN_CMD": f"echo {DSN}"}],
    ids=["itself", "command"],
)
def test_the_dsn_may_come_from_the_environment(airflow, given):
    environment = {**airflow.environment, **given}
    if "AIRFLOW__ASYNC_TASK_STATE__DSN" not in given:
        del environment["AIRFLOW__ASYNC_TASK_STATE__DSN"]
    code = "from async_task_state.settings import load_settings; print(str(load_settings().dsn))"
    assert run(environment, sys.executable, "-c", code).splitlines()[-1] == DSN
