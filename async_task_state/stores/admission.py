"""Who may open a state: what every store decides of the attempt and the run that come, in the transaction of the lease."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from async_task_state.commands import clear_command
from async_task_state.errors import StaleAttemptError
from async_task_state.records import damaged
from async_task_state.runs import Relation, Run, relation
from async_task_state.scopes import MAX_ATTEMPT, check_attempt

if TYPE_CHECKING:
    from async_task_state.scopes import Scope
    from async_task_state.stores import Snapshot

__all__ = ["Admission", "Held", "admit", "admit_write", "of_run"]


@dataclass(frozen=True, slots=True)
class Held:
    """What a store knows of who has held a scope last.

    Args:
        attempt: The attempt.
        run: The run as `Run.text` gave it; empty where it is not known.
    """

    attempt: int
    run: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a store keeps of who has been let in.

    Args:
        attempt: The attempt that holds the scope now.
        run: The run, as text.
        fresh: Whether every key has to be deleted first, because another run has left them.
    """

    attempt: int
    run: str
    fresh: bool = False


def admit(scope: Scope, attempt: int | None, run: Run | None, held: Held | None) -> Admission:
    """Decide whether a holder goes on with a state, starts over, or is refused.

    Args:
        scope: Whose state.
        attempt: The attempt that wants it; None goes on with the stored one (1 where there is none).
        run: The run that the attempt is of, where that is known. Without an attempt only one that names its task instance
            is looked at: then the state is one that several task instances hold in turn, each of which counts as a further
            attempt, and the one that Airflow made last is the newest.
        held: Who has held it last; None where nobody has.

    Raises:
        InvalidArgumentError: `attempt` is out of its range.
        StaleAttemptError: A later attempt of the same run has held the scope, or a newer run has.
        DamagedRecordError: Which run has held it last cannot be read.
    """
    check_attempt(attempt)
    if attempt is None and run is not None and run.instance is not None:
        return _admit_in_turn(scope, run, held)
    text = "" if run is None or attempt is None else run.text
    if held is None:
        return Admission(1 if attempt is None else attempt, text)
    if attempt is None:
        return Admission(held.attempt, held.run)
    left_by = _run_that_left(scope, held.run)
    how = relation(run, attempt, left_by, held.attempt)
    if how is Relation.NEWER:
        return Admission(attempt, text, fresh=True)
    if how is Relation.OLDER:
        raise StaleAttemptError(
            f"attempt {attempt} of {scope} may not open its state: it is of a run that was deleted, or an attempt that"
            f" was replaced, before attempt {held.attempt} opened it"
        )
    if attempt < held.attempt:
        raise StaleAttemptError(
            f"attempt {attempt} of {scope} may not open its state: attempt {held.attempt} has. To let any attempt open"
            f" it, remove it: {clear_command(scope)}"
        )
    return Admission(attempt, held.run if run is None else run.completed_by(left_by).text)


def _admit_in_turn(scope: Scope, run: Run, held: Held | None) -> Admission:
    if held is None:
        return Admission(1, run.text)
    left_by = _run_that_left(scope, held.run)
    how = relation(run, None, left_by, held.attempt)
    if how is Relation.NEWER:
        return Admission(1, run.text, fresh=True)
    last = None if left_by is None else left_by.instance
    if how is Relation.OLDER or (last is not None and run.instance is not None and run.instance < last):
        raise StaleAttemptError(
            f"the state of {scope} is not opened: a task instance that Airflow has made later has opened it, of another"
            f" iteration or a later attempt of this one. To let any open it, remove it: {clear_command(scope)}"
        )
    attempt = held.attempt if run.instance == last else min(held.attempt + 1, MAX_ATTEMPT)
    return Admission(attempt, run.completed_by(left_by).text)


def admit_write(scope: Scope, run: Run | None, held: Held | None) -> Admission:
    """Decide the same of what is written without a lease; where nobody has held the scope, any attempt may open it next.

    Args:
        scope: Whose state.
        run: The run that writes, where that is known.
        held: As for `admit`.

    Raises:
        StaleAttemptError: A newer run has held the scope.
        DamagedRecordError: Which run has held it last cannot be read.
    """
    how = (
        Relation.SAME if held is None else relation(run, None, _run_that_left(scope, held.run), held.attempt)
    )
    if how is Relation.OLDER:
        raise StaleAttemptError(
            f"nothing more is written to the state of {scope}: the run that wants it was deleted and made again"
        )
    if held is not None and how is Relation.SAME:
        return Admission(held.attempt, held.run)
    # Without its instance: that belongs to one attempt.
    text = "" if run is None else replace(run, instance=None).text
    return Admission(1, text, fresh=held is not None)


def of_run(snapshot: Snapshot | None, attempt: int | None, run: Run | None) -> Snapshot | None:
    """What was read, if the run that reads has left it; what another run under the same id has left is not its own."""
    if snapshot is None:
        return None
    left_by, held = _run_that_left(snapshot.lease.scope, snapshot.run), snapshot.lease.attempt
    return snapshot if relation(run, attempt, left_by, held) is Relation.SAME else None


def _run_that_left(scope: Scope, text: str) -> Run | None:
    if text == "":
        return None
    run = Run.parse(text) if isinstance(text, str) else None
    if run is None:
        raise damaged(scope, "which run has held it last", f"it says {text!r:.200}")
    return run
