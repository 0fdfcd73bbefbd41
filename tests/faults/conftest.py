"""The stores whose promises outlive a process, and the seed of a run's random moments."""

from __future__ import annotations

import itertools
import os

import pytest


@pytest.fixture(scope="session")
def base_seed(pytestconfig):
    given = pytestconfig.getoption("seed")
    return int.from_bytes(os.urandom(4), "big") if given is None else given


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def new_dsn(request, tmp_path_factory):
    """Makes dsns of databases that are not there yet."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres").dsn
    folder = tmp_path_factory.mktemp("databases")
    numbers = itertools.count()
    return lambda: f"sqlite:///{folder}/{next(numbers)}.db"


@pytest.fixture
def dsn(new_dsn):
    return new_dsn()
