"""A channel to what is in the place of Airflow: it counts its requests, and can be made to fail."""

from __future__ import annotations

import copy

import anyio
import anyio.lowlevel

from async_task_state import (
    TaskScope,
)

SCOPE = TaskScope("dag", "run", "task")
NOT_SOON = 3600.0


class ProcessDiesError(BaseException):
    """What nobody handles."""


class Airflow:
    """What Airflow has, and a way to it that can be made to fail."""

    def __init__(self):
        self.values = {}
        self.kept = {}
        self.requests = []
        self.broken = None
        self.fail_after = None

    async def _request(self, what, key=None):
        await anyio.lowlevel.checkpoint()
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise ProcessDiesError
        if self.broken is not None:
            raise self.broken
        self.requests.append((what, key))

    async def get(self, key):
        await self._request("get", key)
        return copy.deepcopy(self.values.get(key))

    async def set(self, key, value, retention):
        await self._request("set", key)
        self.values[key] = copy.deepcopy(value)
        self.kept[key] = retention

    async def delete(self, key):
        await self._request("delete", key)
        self.values.pop(key, None)

    async def clear(self):
        await self._request("clear")
        self.values.clear()

    @property
    def users(self):
        return {key: value for key, value in self.values.items() if not key.startswith("__")}
