"""The environment variables of a throw-away Airflow."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["environment_of"]

CONFIG: Final[Mapping[str, Mapping[str, object]]] = {
    "core": {
        "executor": "LocalExecutor",
        "load_examples": False,
        "simple_auth_manager_all_admins": True,
        "dags_are_paused_at_creation": False,
        # SQLite has one writer at a time: with more tasks at once, each only waits longer.
        "parallelism": 6,
    },
    "api": {"host": "127.0.0.1", "workers": 1},
    "scheduler": {
        "scheduler_heartbeat_sec": 2,
        "job_heartbeat_sec": 2,
        "scheduler_idle_sleep_time": 0.2,
        "trigger_timeout_check_interval": 2,
    },
    "dag_processor": {"refresh_interval": 2, "bundle_refresh_check_interval": 1},
    "triggerer": {"job_heartbeat_sec": 1, "triggerer_health_check_threshold": 5},
    "workers": {"execution_api_timeout": 30},
    "logging": {"colored_console_log": False},
}
"""What makes it small and quick."""


def environment_of(home: Path, dsn: str, config: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """This process's environment without what it says of the user's own Airflow, and with all of another one's.

    Args:
        home: AIRFLOW_HOME; its dags folder is put on the PYTHONPATH.
        dsn: Of `[async_task_state]`.
        config: Options by section, over those that make it small and quick.
    """
    environment = {name: value for name, value in os.environ.items() if "AIRFLOW" not in name}
    environment |= {
        "AIRFLOW_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(home / "dags"), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
    }
    own: dict[str, dict[str, object]] = {
        "api": {"secret_key": secrets.token_hex()},
        "api_auth": {"jwt_secret": secrets.token_hex()},
        # Seconds that a writer waits for SQLite's lock.
        "database": {"sql_alchemy_conn": f"sqlite:///{home / 'airflow.db'}?timeout=30"},
        "async_task_state": {"dsn": dsn},
    }
    for options_by_section in (CONFIG, own, config):
        for section, options in options_by_section.items():
            for option, value in options.items():
                environment[f"AIRFLOW__{section}__{option}".upper()] = str(value)
    return environment
