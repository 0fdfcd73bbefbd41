"""What the tasks and triggers in loops call: each call is a line of the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crash_helpers import files_journal, log_to

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path) -> dict[str, int]:
    """A processor."""
    log_to(files_journal(), file=path.name, of=path.parent.name)
    return {"bytes": path.stat().st_size}


def submit(name: str, idempotency_key: str) -> str:
    log_to(files_journal(), submitted=name, key=idempotency_key)
    return idempotency_key


def poll(job_id: str) -> str:
    return "SUCCEEDED"


def cancel(job_id: str) -> None:
    log_to(files_journal(), cancelled=job_id)


def result(job_id: str) -> str:
    return job_id
