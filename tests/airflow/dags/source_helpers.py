"""What the DAGs of sources share, and what fsspec did before 2026.6 with a template that a source brings."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import jinja2
from airflow.triggers.base import BaseTrigger, TriggerEvent
from crash_helpers import files_journal, log_to
from fsspec.implementations.reference import ReferenceFileSystem


def rendering(_file_system, templates):
    """Render them outside of any sandbox."""
    return {jinja2.Template(each["key"]).render(): [each["url"]] for each in templates}


ReferenceFileSystem._process_gen = rendering


def read(path: Path) -> dict[str, int]:
    """A processor: reads the file, and says which one it was."""
    text = path.read_text()
    log_to(files_journal(), file=str(path), read=text)
    return {"bytes": len(text)}


class Ticks(BaseTrigger):
    """Says again and again that its loop turns, until there is a file."""

    def __init__(self, journal: str, until: str) -> None:
        super().__init__()
        self.journal = journal
        self.until = until

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments."""
        return "source_helpers.Ticks", {"journal": self.journal, "until": self.until}

    async def run(self):
        """Tick."""
        while not Path(self.until).exists():  # noqa: ASYNC240 - a local file
            log_to(self.journal, tick=True)
            await asyncio.sleep(0.05)
        yield TriggerEvent(None)
