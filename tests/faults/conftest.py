"""The seed of a run's random moments."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def base_seed(pytestconfig):
    given = pytestconfig.getoption("seed")
    return int.from_bytes(os.urandom(4), "big") if given is None else given
