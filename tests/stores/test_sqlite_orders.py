"""What was saved in one SQLite file is there, in whatever order processes open, purge and close it."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from itertools import count, permutations

import pytest
from sqliteworker import started

STEPS = ("open", "purge", "close")
SAMPLES = {2: None, 3: 25, 10: 5}
"""How many of the orders are tried, of so many processes; None is all of them."""


@pytest.fixture(scope="module", params=sorted(SAMPLES))
def workers(request):
    with started(request.param) as workers:
        yield workers


def orders(processes):
    """Every order of the steps of so many processes, each of which takes its own in their order; or some at random."""
    if SAMPLES[processes] is None:
        yield from sorted(set(permutations(list(range(processes)) * len(STEPS))))
        return
    shuffle = random.Random(processes).shuffle
    for _ in range(SAMPLES[processes]):
        order = list(range(processes)) * len(STEPS)
        shuffle(order)
        yield tuple(order)


def saved(path):
    """What a process that comes and goes sees: the value of each state."""
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT map_index, value FROM scope JOIN entry ON scope_id = id"))


def test_g1_whatever_the_order_what_was_saved_is_there(workers, tmp_path):
    values = count()
    for number, order in enumerate(orders(len(workers))):
        path = tmp_path / f"{number}.db"
        dsn = f"sqlite:///{path}"
        steps = {index: iter(STEPS) for index in range(len(workers))}
        opened, expected = set(), {}
        for index in order:
            step = next(steps[index])
            workers[index].tell(step, *([] if step == "close" else [dsn]))
            (opened.discard if step == "close" else opened.add)(index)
            for holder in opened:
                value = next(values)
                assert workers[holder].tell("set", value) == "current True"
                expected[holder] = str(value)
            assert saved(path) == expected, order
