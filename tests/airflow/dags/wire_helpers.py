"""Jobs, processors and triggers that give what Airflow's wire does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from async_task_state.triggers import CheckpointTrigger

if TYPE_CHECKING:
    from pathlib import Path

HUGE = 2**70
NAME = "caf\udce9.csv"


def refuse(path: Path) -> None:
    """A processor."""
    raise ValueError(f"cannot read {path.name}")


def submit() -> str:
    """A job that ends at once."""
    return "j-1"


def poll(_job_id: str) -> str:
    """Its status."""
    return "success"


def result(_job_id: str) -> dict[str, Any]:
    """Its result."""
    return {"checksum": HUGE, "file": NAME}


class Fires(CheckpointTrigger):
    """An author's own: fires what does not fit, or fails with what does not."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments."""
        return "wire_helpers.Fires", {"what": self.what}

    async def run_with_state(self, state):
        """Fire."""
        if self.what == "error":
            raise ValueError(f"cannot read {NAME}\x00")
        yield TriggerEvent({"checksum": HUGE} if self.what == "number" else {"file": NAME})
