"""A crowd of processes whose role may have fewer connections than there are of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
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


class Crowd:
    """The processes.

    Attributes:
        said: The lines that each has written.
    """

    def __init__(self, dsn: str, count: int) -> None:
        self.said: list[list[dict[str, object]]] = [[] for _ in range(count)]
        self._process = subprocess.Popen(
            [sys.executable, crowd.__file__, str(count), str(OUTAGE_SECONDS)],
            env={**os.environ, crowd.DSN_VARIABLE: dsn},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def have_opened(self) -> bool:
        """Whether all have opened their states; one that has ended can only have failed."""
        ended = [lines[-1] for lines in self.said if lines and "end" in lines[-1]]
        assert not ended, f"{len(ended)} of {len(self.said)} processes gave up, as in {ended[0]}"
        return all(self.said)

    def end(self) -> list[dict[str, object]]:
        """What each says last."""
        self._process.stdin.close()
        self._thread.join(PATIENCE)
        return [lines[-1] for lines in self.said]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._thread.join()
        self._process.stdin.close()
        self._process.stdout.close()

    def _listen(self) -> None:
        for line in self._process.stdout:
            what = json.loads(line)
            self.said[what["number"]].append(what)


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
def crowded(dsn, pytestconfig):
    crowded = Crowd(dsn, pytestconfig.getoption("crowd"))
    yield crowded
    crowded.kill()


@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_g5_every_process_saves_although_the_role_may_have_fewer_connections(
    postgres, dsn, limit, crowded
):
    count, outsider = len(crowded.said), Outsider(dsn)
    seen = f"({VALUES.format(schema=postgres.schemas[-1])}) AS seen (number, value)"
    async with control(postgres) as db:
        await outsider.come_until(crowded.have_opened)
        at_first = (outsider.refused, outsider.let_in)
        newest = await db.fetchval(f"SELECT coalesce(max(value), 0) FROM {seen}")
        further = f"SELECT count(*) FROM {seen} WHERE value > $1"
        while await db.fetchval(further, newest + 5) < count:
            await outsider.come_until(crowded.have_opened)
        said = await asyncio.to_thread(crowded.end)
    saved = sorted(last.get("worst", 0.0) for last in said)
    opened = sorted(lines[0].get("opened", 0.0) for lines in crowded.said)
    later = (outsider.refused - at_first[0], outsider.let_in - at_first[1])
    # Seen with -s.
    sys.stderr.write(
        f"{count} processes, {limit} connections: opened after {opened[count // 2]:.2f} s, at most {opened[-1]:.2f} s;"
        f" saved after {saved[count // 2]:.2f} s, at most {saved[-1]:.2f} s; another client: {at_first[0]} times refused"
        f" and {at_first[1]} times let in until all had opened, {later[0]} and {later[1]} from then on\n"
    )
    assert [last.get("end") for last in said] == ["well"] * count
    assert later[1]
