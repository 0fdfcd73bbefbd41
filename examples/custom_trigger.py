"""A trigger of one's own that resumes, and the operator that defers to it.

Triggers are imported by the triggerer by their module's name, so this file must be importable there: put it in the
plugins folder, or in a package that is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from airflow.sdk import BaseOperator
from airflow.triggers.base import TriggerEvent

from async_task_state.triggers import CheckpointTrigger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from airflow.sdk import Context

    from async_task_state import TaskState


class CountPages(CheckpointTrigger):
    """Goes through the pages of a listing; knows after a crash which page was the last, and the sum so far.

    Args:
        pages: How many pages there are.
        seconds: How long a page takes.
    """

    def __init__(self, pages: int, seconds: float = 0.01) -> None:
        super().__init__()
        self.pages = pages
        self.seconds = seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments."""
        return "custom_trigger.CountPages", {"pages": self.pages, "seconds": self.seconds}

    async def run_with_state(self, state: TaskState) -> AsyncGenerator[TriggerEvent, None]:
        """Fetch page after page, and remember each."""
        items = await state.get("items", 0)
        for page in range(await state.get("next_page", 0), self.pages):
            items += await self.fetch(page)
            await state.checkpoint(next_page=page + 1, items=items)
        yield TriggerEvent({"items": items, "resumed": state.resumed})

    async def fetch(self, page: int) -> int:
        """Stand-in for a request: how many items a page has."""
        await anyio.sleep(self.seconds)
        return page % 10


class CountPagesOperator(BaseOperator):
    """Defers to `CountPages` and returns what it counted."""

    template_fields = ("pages",)

    def __init__(self, *, pages: int, seconds: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pages = pages
        self.seconds = seconds

    def execute(self, context: Context) -> None:
        """Defer."""
        self.defer(trigger=CountPages(int(self.pages), self.seconds), method_name="execute_complete")

    def execute_complete(self, context: Context, event: dict[str, Any]) -> int:
        """Take the event for the result."""
        return event["items"]
