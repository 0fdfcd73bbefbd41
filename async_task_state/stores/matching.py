"""Which scopes a listing is of, for every store alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from async_task_state.scopes import AssetScope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_task_state.scopes import Scope

__all__ = ["Matching"]

COLUMNS: Final = ("dag_id", "run_id", "task_id", "map_index", "region_id")
"""Of a `Row`."""


@dataclass(frozen=True, slots=True)
class Matching:
    """What rows of scopes must be like.

    Args:
        columns: The columns that must have these values.
        assets: Whether they must be of assets; None where they may be.
    """

    columns: Mapping[str, str | int]
    assets: bool | None

    @classmethod
    def of(
        cls,
        dag_id: str | None = None,
        run_id: str | None = None,
        task_id: str | None = None,
        *,
        scope: Scope | None = None,
        assets: bool | None = None,
    ) -> Matching | None:
        """What the arguments of `Store.scopes` ask for; None where nothing can match."""
        ids = dict(zip(COLUMNS, (dag_id, run_id, task_id), strict=False))
        columns: dict[str, str | int] = {name: value for name, value in ids.items() if value is not None}
        of_assets = [] if assets is None else [assets]
        if columns:
            of_assets.append(False)
        if scope is not None:
            row: dict[str, str | int] = dict(zip(COLUMNS, scope.row, strict=True))
            if not columns.items() <= row.items():
                return None
            columns = row
            of_assets.append(isinstance(scope, AssetScope))
        if len(set(of_assets)) > 1:
            return None
        return cls(columns, of_assets[0] if of_assets else None)

    def takes(self, scope: Scope) -> bool:
        """Whether a scope matches."""
        row = dict(zip(COLUMNS, scope.row, strict=True))
        return self.assets in (None, isinstance(scope, AssetScope)) and self.columns.items() <= row.items()

    def conditions(self, mark: str) -> str:
        """The same as SQL.

        Args:
            mark: A parameter, with the number of it from 1 as {0}.
        """
        parts = [f"{name} = {mark.format(number)}" for number, name in enumerate(self.columns, 1)]
        if self.assets is not None:
            parts.append(f"dag_id {'=' if self.assets else '<>'} ''")
        return " AND ".join(parts) or "TRUE"
