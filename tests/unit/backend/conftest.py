"""Fixtures of the tests of Airflow's state backend."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from async_task_state.lifetime import writer_for
from async_task_state.settings import load_settings


class Door:
    """A backend by its sync methods, or by their async twins."""

    def __init__(self, backend, kind):
        self._backend = backend
        self._kind = kind

    def __getattr__(self, name):
        if self._kind == "sync":
            return getattr(self._backend, name)
        method = getattr(self._backend, f"a{name}")
        return lambda *args, **options: anyio.run(partial(method, *args, **options))


@pytest.fixture
def backend(dsn, monkeypatch):
    from async_task_state.backend import StateStoreBackend  # noqa: PLC0415 - Airflow has state backends since 3.3

    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", dsn)
    return StateStoreBackend()


@pytest.fixture(params=["sync", "async"])
def door(request, backend):
    return Door(backend, request.param)


@pytest.fixture
def of_store(backend, dsn):
    """Calls a method of the store itself."""

    def of_store(method, *args):
        writer = writer_for(dsn, load_settings())
        return writer.ask(getattr(writer.store, method), *args)

    return of_store
