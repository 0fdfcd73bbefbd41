"""A crowd of processes whose role may have fewer connections than there are of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import asyncpg
import crowd
import pytest
from direct import control

if TYPE_CHECKING:
    from collections.abc import Callable

OUTAGE_SECONDS = 60.0
PATIENCE = 200.0
VALUES = 'SELECT map_index, value::integer FROM "{schema}".scope JOIN "{schema}".entry ON scope_id = id'


class Member:
    """A process of the crowd.

    Attributes:
        said: The lines it has written.
    """

    def __init__(self, dsn: str, number: int) -> None:
        self.said: list[dict[str, object]] = []
        self.process = subprocess.Popen(
            [sys.executable, crowd.__file__, str(number), str(OUTAGE_SECONDS)],
            env={**os.environ, crowd.DSN_VARIABLE: dsn},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    @property
    def last(self) -> dict[str, object]:
        return self.said[-1] if self.said else {}

    def end(self) -> dict[str, object]:
        self.process.stdin.close()
        self._thread.join(PATIENCE)
        return self.last

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        self.process.stdin.close()
        self.process.stdout.close()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said.append(json.loads(line))


class Outsider:
    """Another client of the role, which comes and goes.

    Attributes:
        refused: How often it was refused.
        let_in: How often it got in.
    """

    def __init__(self, dsn: str) -> None:
        self._address = dsn.partition("?")[0]
        self.refused = self.let_in = 0

    async def come_until(self, condition: Callable[[], bool]) -> None:
        """Come, and come again until something is so."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                db = await asyncpg.connect(self._address)
            except asyncpg.TooManyConnectionsError:
                self.refused += 1
            else:
                self.let_in += 1
                await db.close()
            await asyncio.sleep(0.05)
            if condition():
                return
            assert time.monotonic() < deadline, "it does not come about"


@pytest.fixture
def limit(pytestconfig):
    return pytestconfig.getoption("crowd_connections")


@pytest.fixture
def dsn(postgres, role, limit):
    """Of a role that may have so many connections."""
    dsn = role.dsn(postgres.dsn())
    postgres.query(f"ALTER ROLE {role.name} CONNECTION LIMIT {limit}")
    postgres.query(f'CREATE SCHEMA "{postgres.schemas[-1]}" AUTHORIZATION {role.name}')
    return dsn


@pytest.fixture
def members(dsn, pytestconfig):
    with ExitStack() as stack:
        members = []
        for number in range(pytestconfig.getoption("crowd")):
            member = Member(dsn, number)
            stack.callback(member.kill)
            members.append(member)
        yield members


@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_g5_every_process_saves_although_the_role_may_have_fewer_connections(
    postgres, dsn, limit, members
):
    count, outsider = len(members), Outsider(dsn)
    seen = f"({VALUES.format(schema=postgres.schemas[-1])}) AS seen (number, value)"
    async with control(postgres) as db:
        await outsider.come_until(lambda: have_spoken(members))
        at_first = (outsider.refused, outsider.let_in)
        newest = await db.fetchval(f"SELECT coalesce(max(value), 0) FROM {seen}")
        later = f"SELECT count(*) FROM {seen} WHERE value > $1"
        while await db.fetchval(later, newest + 20) < count:
            await outsider.come_until(lambda: have_spoken(members))
        said = await asyncio.gather(*(asyncio.to_thread(member.end) for member in members))
    sorted(float(last.get("worst", 0)) for last in said)
    sorted(float(member.said[0].get("opened", 0)) for member in members)
    assert [last.get("end") for last in said] == ["well"] * count
    assert outsider.let_in > at_first[1]


def have_spoken(members: list[Member]) -> bool:
    """Whether all have opened their states; one that has ended can only have failed."""
    ended = [member.last for member in members if "end" in member.last]
    assert not ended, f"{len(ended)} of {len(members)} processes gave up, as in {ended[0]}"
    return all(member.said for member in members)
