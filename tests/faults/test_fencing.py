"""Holders that fight over a scope: no stale write is ever accepted, no live writer is ever refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rivals import CHOICES, RIVALS, Arena

INTERLEAVINGS = 5000
ARENAS = 10
"""They play at the same time, for most of it is waiting."""
MOVES = 5

PHASES = (Phase.generate,)
"""Whatever fails is short as it is."""

SAVES = ["save"] * 5
OPENINGS = ["open"] * 4
FAULTS = ["clear", "lock_rows", "unlock", "release", "cut", "cancel", "kill"]
DELAYS = ["hold save", "hold open", "hold_clear", "save lock_rows save other_opens"]
RETRIES = ["hold save cut save", "hold open cancel open save"]
LOSSES = ["hold save cancel", "hold save kill", "hold open cut", "hold_clear cancel_clear"]
LOCKS = ["lock_rows save kill", "lock_rows save cut unlock", "lock_rows save cancel"]

steps = st.sampled_from([*SAVES, *OPENINGS, *FAULTS, *DELAYS, *RETRIES, *LOSSES, *LOCKS])
moves = st.tuples(steps, st.integers(0, RIVALS - 1), st.integers(0, CHOICES - 1))
interleavings = st.lists(moves, min_size=MOVES, max_size=MOVES)
games = st.tuples(*[interleavings] * ARENAS)


@pytest.mark.timeout(600)
def test_g4_in_thousands_of_interleavings_only_the_newest_holder_writes_and_it_always_can(postgres):
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()
    dsn = postgres.dsn(sslmode="disable")

    async def enter():
        return [await stack.enter_async_context(Arena.entered(postgres, dsn)) for _ in range(ARENAS)]

    async def play_at_once(game):
        ends = [arena.play(moves) for arena, moves in zip(arenas, game, strict=True)]
        for error in await asyncio.gather(*ends, return_exceptions=True):
            if error is not None:
                raise error

    @settings(
        max_examples=INTERLEAVINGS // ARENAS,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )
    @given(games)
    def play(game):
        loop.run_until_complete(play_at_once(game))

    arenas = loop.run_until_complete(enter())
    try:
        play()
    finally:
        loop.run_until_complete(stack.aclose())
        loop.close()
    counts = sum((arena.counts for arena in arenas), Counter())
    assert counts["interleavings"] >= INTERLEAVINGS
    # What is to be proven has been tried.
    for what in (
        "late requests",
        "cut in a call",
        "killed in a call",
        "cancelled",
        "unknown outcomes",
        "refused",
    ):
        assert counts[what] >= INTERLEAVINGS / 20, counts
    assert counts["accepted for certain"] >= INTERLEAVINGS, counts
