"""A process that opens a scope, writes it until it is fenced, and opens it again; it reports what it is told.

    contender.py RUN_ID SEED

The dsn is in its environment. Each value is the epoch of its writer and a number that goes up.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys

from child import BEGUN, DSN_VARIABLE, FENCED, OPENED, report, scope_of, settings_of

from async_task_state import StaleWriterError, TaskState
from async_task_state.stores import postgres

PATIENCE_MILLISECONDS = 300
"""What a frozen process may hold locks for; less than by default, for here one is frozen all the time."""


async def contend(dsn: str, run_id: str, rng: random.Random) -> None:
    report(BEGUN, 0)
    while True:
        state = TaskState(scope_of(run_id), store=dsn, settings=settings_of(dsn, 0.01))
        epoch = 0
        try:
            async with state:
                epoch = state._pending.lease.epoch
                report(OPENED, epoch)
                for number in itertools.count():
                    await state.checkpoint(v=[epoch, number])
                    await rng.choice((state.flush, lambda state=state: state.delete("w")))()
        except StaleWriterError:
            report(FENCED, epoch)
        await asyncio.sleep(rng.uniform(0, 0.05))


if __name__ == "__main__":
    postgres.BEGIN = postgres.BEGIN.replace("10000", str(PATIENCE_MILLISECONDS))
    asyncio.run(contend(os.environ[DSN_VARIABLE], sys.argv[1], random.Random(sys.argv[2])))
