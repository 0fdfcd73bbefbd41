"""Fixtures of the unit tests."""

from __future__ import annotations

import fsspec
import pytest
from faulty import FaultyStore
from remembers import Remembers


@pytest.fixture
def store():
    """A store that can be made to fail."""
    store = FaultyStore()
    yield store
    store.mend()


@pytest.fixture
def remembers():
    """Has one file; `sizes` and `modified` say which, and since when."""
    fsspec.register_implementation("remembers", Remembers, clobber=True)
    Remembers.sizes, Remembers.modified = {"/x": 1}, None
    return Remembers
