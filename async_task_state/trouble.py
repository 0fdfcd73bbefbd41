"""Why the thread that saves does not save: what an error is taken for, and what those who wait are told."""

from __future__ import annotations

from async_task_state.errors import (
    StateNotOpenError,
    StoreError,
    StoreUnavailableError,
    WriterEndedError,
)

__all__ = ["ended", "lasts", "stopped", "why_away"]


def lasts(error: Exception | None) -> bool:
    """Whether waiting does not mend it: an outage passes, and so may a lack of memory; a corrupt file stays corrupt."""
    return error is not None and not isinstance(error, (StoreUnavailableError, MemoryError))


def why_away(error: Exception | None, outage_timeout: float) -> str:
    """What is wrong with a store.

    Args:
        error: What its last call has raised; None where it does not answer.
        outage_timeout: The setting, in seconds.
    """
    if lasts(error):
        return str(error)
    cause = "it does not answer"
    if error is not None:
        cause = str(error) if isinstance(error, StoreError) else repr(error)
    return f"the store has been away for [async_task_state] outage_timeout = {outage_timeout:g} s ({cause})"


def stopped(what: str) -> StateNotOpenError:
    """The error for what this process has shut down."""
    return StateNotOpenError(f"{what} was opened before this process shut its stores down")


def ended(what: str, why: str) -> WriterEndedError:
    """The error for what a thread was to save that has ended."""
    return WriterEndedError(
        f"the thread that saves {what} has ended, so that it must be opened again ({why})"
    )
