"""Which scopes a listing is of, for every store alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from async_task_state.scopes import AssetScope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_task_state.scopes import Scope

__all__ = ["EVERYTHING", "Position", "Wanted"]

COLUMNS: Final = ("dag_id", "run_id", "task_id", "map_index", "region_id")
"""Of a `Row`."""


class Position(NamedTuple):
    """Where a scope stands in a listing, so that the next page begins behind it.

    Args:
        updated_at: Of its `ScopeInfo`.
        scope_id: The same.
    """

    updated_at: float
    scope_id: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which scopes `Store.scopes` is to return: those that match all that is given, a page of them.

    Args:
        dag_id: Only this DAG's; no asset's is of one, nor of a run, a task or a map index.
        run_id: Only this run's.
        task_id: Only this task's.
        map_index: Only those with this map index, in whatever region.
        scope: Only this one.
        assets: Only those of assets, or none of them.
        limit: How many at most.
        after: Only those that stand behind this position. What is changed between two pages stands at the front by
            then, and is on none of those that follow.
    """

    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    scope: Scope | None = None
    assets: bool | None = None
    limit: int | None = None
    after: Position | None = None

    @property
    def matches_nothing(self) -> bool:
        """Whether no scope can be all that is asked for."""
        named = self._named
        of_assets = {self.assets} - {None}
        if named:
            of_assets.add(False)
        if self.scope is not None:
            if not named.items() <= _row(self.scope).items():
                return True
            of_assets.add(isinstance(self.scope, AssetScope))
        return len(of_assets) > 1

    @property
    def columns(self) -> Mapping[str, str | int]:
        """The columns that a row must have these values in."""
        return self._named if self.scope is None else _row(self.scope)

    def takes(self, scope: Scope) -> bool:
        """Whether a scope matches."""
        return (
            not self.matches_nothing
            and self._of_assets in (None, isinstance(scope, AssetScope))
            and self.columns.items() <= _row(scope).items()
        )

    def conditions(self, mark: str) -> str:
        """The same as SQL, of what can match.

        Args:
            mark: A parameter, with the number of it from 1 as {0}.
        """
        parts = [f"{name} = {mark.format(number)}" for number, name in enumerate(self.columns, 1)]
        if self._of_assets is not None:
            parts.append(f"dag_id {'=' if self._of_assets else '<>'} ''")
        return " AND ".join(parts) or "TRUE"

    @property
    def _named(self) -> dict[str, str | int]:
        ids = (self.dag_id, self.run_id, self.task_id, self.map_index)
        return {name: value for name, value in zip(COLUMNS, ids, strict=False) if value is not None}

    @property
    def _of_assets(self) -> bool | None:
        """Whether they are of assets, where that is asked for or follows."""
        if self.assets is not None:
            return self.assets
        if self.scope is not None:
            return isinstance(self.scope, AssetScope)
        return False if self._named else None


EVERYTHING: Final = Wanted()


def _row(scope: Scope) -> dict[str, str | int]:
    return dict(zip(COLUMNS, scope.row, strict=True))
