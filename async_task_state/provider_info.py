"""What Airflow's provider manager is told: triggers, operators, and the options of `[async_task_state]`."""

from __future__ import annotations

from typing import Any

from async_task_state.settings import DEFAULTS, SECTION

__all__ = ["get_provider_info"]

_NAME = "Async task state"


def get_provider_info() -> dict[str, Any]:
    """Airflow's entry point `apache_airflow_provider`."""
    return {
        "package-name": "async-task-state",
        "name": _NAME,
        "description": "Durable async checkpoints for deferrable triggers and async tasks.",
        "integrations": [{"integration-name": _NAME, "external-doc-url": "", "tags": ["software"]}],
        "operators": [{"integration-name": _NAME, "python-modules": ["async_task_state.operators"]}],
        "triggers": [
            {
                "integration-name": _NAME,
                "python-modules": [
                    "async_task_state.triggers.checkpoint",
                    "async_task_state.triggers.files",
                    "async_task_state.triggers.jobs",
                    "async_task_state.triggers.newfiles",
                ],
            }
        ],
        "config": {
            SECTION: {
                "description": "Where the state of triggers and async tasks is kept, and how.",
                "options": {
                    "dsn": {
                        "description": (
                            "The store: postgresql://user:password@host/database for many machines, sqlite:/// and the"
                            " absolute path of a file for one. Empty means async_task_state.db under AIRFLOW_HOME. With"
                            " an executor that runs tasks on other machines SQLite is refused, unless the dsn ends with"
                            " ?single_machine=true."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "sensitive": True,
                        "example": "sqlite:////var/lib/airflow/state.db",
                        "default": "",
                    },
                    "conn_id": {
                        "description": "An Airflow connection of type postgres that says where the store is; instead of dsn.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "state_db",
                        "default": "",
                    },
                    **{name: _option(name, text) for name, text in _OPTIONS.items()},
                },
            }
        },
    }


_OPTIONS = {
    "max_delay": "Seconds until a checkpoint is durable, at most, while the store is reachable.",
    "outage_timeout": "Seconds that the store may be away before calls raise StoreUnavailableError.",
    "exit_timeout": "Seconds that leaving a state, or the process, may take to save what is pending.",
    "max_value_bytes": "The longest JSON of one value, in bytes.",
    "max_state_bytes": "How much one state may hold in all, in bytes: keys and their JSON, work sets included.",
    "default_retention_days": "Days that the state of a task is kept after it was last in use; 0 keeps it for ever.",
    "on_clear": "What a task finds that a user has cleared: restart (an empty state) or resume (the one it left).",
    "clear_on_success": "Whether a task's state is deleted when the task has succeeded.",
    "allowed_protocols": (
        "Of which protocols a source of files may be, besides a local path: names of fsspec's with commas between. Those that"
        " reach a host which a source names, as http and sftp, let users who choose a source reach any host."
    ),
}
_TYPES = {bool: "boolean", int: "integer", float: "float", str: "string"}


def _option(name: str, description: str) -> dict[str, Any]:
    default = DEFAULTS[name]
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": _TYPES[type(default)],
        "example": None,
        "default": str(default),
    }
