"""A watch at work, and files for it."""

from __future__ import annotations

import os
from contextlib import aclosing

import anyio

from async_task_state import StaleWriterError


class Watching:
    """A watch at work in a task of its own, and the events that it has fired."""

    def __init__(self, looks):
        self.fired = []
        self.error = None
        self.looks = looks

    async def run(self, opened, watch):
        try:
            async with opened as state, aclosing(watch.events(state)) as events:
                async for event in events:
                    self.fired.append(event)
        except StaleWriterError as error:
            self.error = error

    async def next(self):
        await until(lambda: self.fired)
        return self.fired.pop(0)

    async def files(self):
        """The names in the next event."""
        event = await self.next()
        assert event["count"] == len(event["files"])
        return sorted(os.path.basename(file) for file in event["files"])  # noqa: PTH119

    async def stays_quiet(self):
        seen = len(self.looks)
        await until(lambda: len(self.looks) > seen + 4)
        assert self.fired == []


async def until(condition):
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - conditions are of all kinds
            await anyio.sleep(0.001)


def put(folder, *names, text="text", modified=None):
    """Files that are there at once: one that is seen while it is being written is another version."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = folder.parent / "being written"
        begun.write_text(text)
        if modified is not None:
            os.utime(begun, (modified, modified))
        begun.replace(path)
