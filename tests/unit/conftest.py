"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest
from faulty import FaultyStore


@pytest.fixture
def store():
    """A store that can be made to fail."""
    store = FaultyStore()
    yield store
    store.mend()
