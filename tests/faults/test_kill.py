"""The promises that a killed process leaves behind, killed at random moments over one growing database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from killing import Left, kill_once, take_over

KILLS_A_TEST = 25
LANES = 2


def pytest_generate_tests(metafunc):
    if "kills" in metafunc.fixturenames:
        total = metafunc.config.getoption("kills")
        batches = [range(first, min(first + KILLS_A_TEST, total)) for first in range(0, total, KILLS_A_TEST)]
        metafunc.parametrize("kills", batches, ids=lambda batch: f"{batch.start}-{batch.stop}")


@pytest.fixture(scope="module")
def history(new_dsn):
    """One database for all kills, and what each lane's scope holds at this point."""
    return new_dsn(), [Left() for _ in range(LANES)]


def test_g1_g2_g3_g4_hold_whenever_a_process_is_killed(kills, base_seed, history):
    dsn, left = history

    def lane(number):
        for kill in kills[number::LANES]:
            left[number] = kill_once(dsn, f"lane-{number}", base_seed + kill, left[number])

    print(f"reproduce with --seed {base_seed} --kills {kills.stop}")  # noqa: T201 - shown when it fails
    with ThreadPoolExecutor(LANES) as lanes:
        list(lanes.map(lane, range(LANES)))


def test_g1_a_process_killed_while_it_makes_the_database_leaves_one_that_opens(base_seed, new_dsn):
    for kill in range(10):
        dsn = new_dsn()
        kill_once(dsn, "new", base_seed + kill, Left(), "early")
        take_over(dsn, "new")
