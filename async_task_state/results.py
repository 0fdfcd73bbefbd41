"""What a state and its work sets tell of themselves: plain data, which a task may return as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from async_task_state.text import sendable

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Failure", "Stats", "WorkCounts", "WorkSummary"]


class _Result(dict[str, Any]):
    """A dict that cannot be changed and whose entries are attributes as well.

    Airflow's XCom keeps a dict as one, and gives an object of any other class to the next task only where the class is
    on `[core] allowed_deserialization_classes`.
    """

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(f"a {type(self).__name__} has no {name!r}") from None

    def __setattr__(self, name: str, value: object) -> NoReturn:
        self._refuse()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be changed: dict() of it can")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made whole, because entries cannot be set one by one."""
        return _restored, (type(self), dict(self))


def _restored(kind: type[_Result], entries: dict[str, Any]) -> _Result:
    result = kind.__new__(kind)
    dict.__init__(result, entries)
    return result


class Stats(_Result):
    """What a state has cost since it was opened; a dict, whose entries are attributes as well.

    Attributes:
        recorded: Calls that changed something.
        coalesced: Those of them that cost no commit, because a later one was saved with them.
        commits: Transactions that saved changes of this state.
        bytes: JSON bytes saved.
        last_lag: Seconds from the oldest change of the last commit to its being durable.
    """

    recorded: int
    coalesced: int
    commits: int
    bytes: int
    last_lag: float

    __slots__ = ()

    def __init__(
        self,
        recorded: int = 0,
        coalesced: int = 0,
        commits: int = 0,
        bytes: int = 0,  # noqa: A002 - the name of the entry
        last_lag: float = 0.0,
    ) -> None:
        super().__init__(
            recorded=recorded, coalesced=coalesced, commits=commits, bytes=bytes, last_lag=last_lag
        )


class Failure(_Result):
    """An item that failed; a dict, whose entries are attributes as well.

    Attributes:
        item: Its key; bytes of a file's name that are no text are escaped as in a Python literal, and so they are in `error`.
        error: The error's type and message, at most 1,000 characters.
        tries: How often it was tried, over all attempts of the task.
        attempt: The last attempt of the task that tried it.
        attempt_tries: How often that one did.
    """

    item: str
    error: str
    tries: int
    attempt: int
    attempt_tries: int

    __slots__ = ()

    def __init__(
        self, item: str, error: str, tries: int = 1, attempt: int = 0, attempt_tries: int = 1
    ) -> None:
        super().__init__(
            item=sendable(item),
            error=sendable(error),
            tries=tries,
            attempt=attempt,
            attempt_tries=attempt_tries,
        )


class WorkCounts(_Result):
    """How many items are done, and how many are recorded as failed and not done since; a dict as well."""

    done: int
    failed: int

    __slots__ = ()

    def __init__(self, done: int, failed: int) -> None:
        super().__init__(done=done, failed=failed)


class WorkSummary(_Result):
    """What one call of `WorkSet.process` did; a dict, whose entries are attributes as well.

    Attributes:
        status: "failed" if an item failed, else "success".
        total: Items that it was given: done, skipped and failed.
        done: Items finished by this call.
        skipped: Items that were done before.
        failed: Items that failed, by this call or so that this attempt did not try them again.
        done_in_all: Items of the work set that are done, over all calls and attempts.
        failures: The first ten that failed.
        elapsed: Seconds it took.
    """

    status: str
    total: int
    done: int
    skipped: int
    failed: int
    done_in_all: int
    failures: list[Failure]
    elapsed: float

    __slots__ = ()

    def __init__(
        self,
        done: int,
        skipped: int,
        failed: int,
        failures: Iterable[Failure],
        elapsed: float,
        done_in_all: int,
    ) -> None:
        super().__init__(
            status="failed" if failed else "success",
            total=done + skipped + failed,
            done=done,
            skipped=skipped,
            failed=failed,
            done_in_all=done_in_all,
            failures=list(failures),
            elapsed=elapsed,
        )

    def as_event(self) -> dict[str, Any]:
        """A payload for a `TriggerEvent`: the same, with the first failures by item and error only."""
        return {
            **self,
            "failures": [{"item": failure.item, "error": failure.error} for failure in self.failures],
            "elapsed": round(self.elapsed, 3),
        }
