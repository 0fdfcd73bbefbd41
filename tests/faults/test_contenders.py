"""Processes that fight over a scope while they are frozen, thawed and killed at random."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import ExitStack
from signal import SIGCONT

import contender
import pytest
from child import FENCED
from direct import control
from killing import PATIENCE, Child, spawned

CONTENDERS = 3
EVENTS = 150
SEEN = """
SELECT epoch, value FROM "{schema}".scope LEFT JOIN "{schema}".entry ON scope_id = id AND key = 'v' WHERE run_id = 'only'
"""


class Observer:
    """Looks at the scope, again and again.

    Attributes:
        writes: The different values it has seen.
    """

    def __init__(self, db, schema: str) -> None:
        self._db, self._statement = db, SEEN.format(schema=schema)
        self.epoch, self.value, self.writes = 0, (0, -1), 0

    async def look(self) -> None:
        rows = await self._db.fetch(self._statement)
        if not rows:
            return
        # Who opened the scope may be fenced before anybody has written.
        epoch, written = rows[0]["epoch"], rows[0]["value"]
        value = self.value if written is None else tuple(json.loads(written))
        if value != self.value:
            assert value > self.value, f"G4: after {self.value} came {value}"
            assert value[0] >= self.epoch, f"G4: {value} was written after epoch {self.epoch} had begun"
            self.writes += 1
        assert epoch >= self.epoch, f"G4: epoch {epoch} came after {self.epoch}"
        self.epoch, self.value = epoch, value


class Fight:
    """The processes, and which of them are frozen."""

    def __init__(self, stack: ExitStack, dsn: str, rng: random.Random) -> None:
        self._stack, self._dsn, self._rng = stack, dsn, rng
        self.fenced = 0
        self.frozen: list[Child] = []
        self.running = [self.spawn() for _ in range(CONTENDERS)]

    def spawn(self) -> Child:
        return self._stack.enter_context(spawned(self._dsn, contender.__file__, "only", self._rng.random()))

    def happen(self) -> None:
        """Freeze or thaw a process, or put another one in the place of one."""
        if self.frozen and (len(self.running) == 1 or self._rng.random() < 0.5):
            process = self.frozen.pop(self._rng.randrange(len(self.frozen)))
            process.send(SIGCONT)
            self.running.append(process)
            return
        process = self.running.pop(self._rng.randrange(len(self.running)))
        if self._rng.random() < 0.15:
            process.kill()
            self.running.append(self.spawn())
        else:
            process.freeze()
            self.frozen.append(process)

    async def listen(self, observer: Observer) -> None:
        """Who is told that it is fenced must be so."""
        for process in self.running:
            process.listen(0.001)
            told = [report.number for report in process.reports if report.what == FENCED]
            process.reports.clear()
            await observer.look()
            for epoch in told:
                assert epoch < observer.epoch, (
                    f"G4: the writer of epoch {epoch} was refused, and is the newest"
                )
            self.fenced += len(told)


@pytest.mark.asyncio
@pytest.mark.timeout(300)
async def test_g4_processes_that_fight_over_a_scope_write_one_after_the_other(postgres, base_seed):
    dsn = postgres.dsn()
    rng = random.Random(f"fight {base_seed}")
    async with control(postgres) as db:
        with ExitStack() as stack:
            fight = Fight(stack, dsn, rng)
            await asyncio.wait_for(first_write(db, dsn), PATIENCE)
            observer = Observer(db, dsn.partition("schema=")[2])
            # By its count alone it might end with one process that nobody is left to fence.
            happened = 0
            while happened < EVENTS or fight.fenced < EVENTS:
                fight.happen()
                happened += 1
                await asyncio.wait_for(several_writes(fight, observer, rng.randrange(20)), PATIENCE)


async def first_write(db, dsn):
    schema = dsn.partition("schema=")[2]
    while not await db.fetchval("SELECT to_regclass($1)::oid", f'"{schema}".entry'):
        pass


async def several_writes(fight, observer, number):
    until = observer.writes + number
    while observer.writes < until:
        await fight.listen(observer)
