"""What Airflow's database says of the task that is watched: the only one that knows when it has ended."""

from __future__ import annotations

import atexit
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Final

from async_task_state.configuration import plain_config
from async_task_state.instances import OVER
from async_task_state.metadata import loop_goes_on, task_states, what_is_missing
from async_task_state.text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_task_state.scopes import TaskScope

__all__ = ["Instances"]

LEAST_SECONDS: Final = 1.0
"""Between two questions."""


class Instances:
    """Asks Airflow's database again and again, in a thread that nobody has to wait for.

    Args:
        scope: Of a task.
        all_indexes: Whether all of its map indexes are asked for.
        interval: Seconds between two questions, a second at least.

    Attributes:
        has_begun: Whether anything is asked.
        unknown: Why nothing is known; None while that is not settled, and where the database answers.
        missing: What Airflow does not know, where the database has answered that there is no such task instance.
    """

    def __init__(self, scope: TaskScope, *, all_indexes: bool, interval: float) -> None:
        self.has_begun = False
        self.unknown: str | None = None
        self.missing: str | None = None
        self._scope = scope
        self._all_indexes = all_indexes
        self._interval = max(LEAST_SECONDS, interval)
        self._found: Sequence[tuple[int, str | None]] = ()
        self._was_there = False
        self._has_ended = False
        self._stopped = threading.Event()

    @property
    def found(self) -> Sequence[tuple[int, str | None]]:
        """The map index and the state of each task instance; empty where there is none, or that is not known."""
        return self._found

    @property
    def ended(self) -> bool:
        """Whether none of them can do anything more, until a user clears one, and none can follow."""
        return self._has_ended

    def begin(self) -> None:
        """Import what is needed, which takes two seconds, and ask from now on."""
        self.has_begun = True
        self.unknown = _why_not_here()
        if self.unknown is None:
            # What Airflow logs as it is imported goes where it is no part of the output.
            with redirect_stdout(sys.stderr):
                self.unknown = _import_airflow()
        if self.unknown is None:
            threading.Thread(target=self._go_on, name="airflow-instances", daemon=True).start()

    def stop(self) -> None:
        """Ask no more; an answer that is on its way is not waited for."""
        self._stopped.set()

    def _go_on(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - Airflow's and SQLAlchemy's, whatever it is
                # Not what it says, in which there may be an address with a password.
                self.unknown = f"Airflow's database does not answer ({type(error).__name__})"
            else:
                self.unknown = None
            self._stopped.wait(self._interval)

    def _look(self) -> None:
        self._found = task_states(self._scope, all_indexes=self._all_indexes)
        self._was_there = self._was_there or bool(self._found)
        self.missing = None if self._was_there else what_is_missing(self._scope)
        ended = self._was_there and all(state in OVER for _, state in self._found)
        # Of one iteration none follows.
        self._has_ended = ended and not (self._all_indexes and loop_goes_on(self._scope, OVER))


def _import_airflow() -> str | None:
    try:
        from airflow import settings  # noqa: PLC0415 - takes two seconds
        from airflow.configuration import conf  # noqa: PLC0415
        from airflow.models import taskinstance  # noqa: F401, PLC0415

        # It complains of a question that is not answered yet.
        atexit.unregister(settings.dispose_orm)
        return _missing(conf.get("database", "sql_alchemy_conn"))
    except Exception as error:  # noqa: BLE001 - Airflow's, whatever it is
        return f"Airflow cannot be imported ({type(error).__name__})"


def _why_not_here() -> str | None:
    """Why Airflow's database cannot be asked here, as far as that is known without importing Airflow."""
    config = plain_config("database")
    if config is None:
        return None
    default = f"sqlite:///{Path(config.home, 'airflow.db')}"
    return _missing(config.get("database", "sql_alchemy_conn", fallback="") or default)


def _missing(address: str) -> str | None:
    file = address.partition("?")[0].removeprefix("sqlite:///")
    # SQLite would make it.
    if address.startswith("sqlite:") and not Path(file).exists():
        return f"Airflow has no database at {plain(file)}"
    return None
