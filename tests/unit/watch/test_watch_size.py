"""NewFilesTrigger where the asset's state holds as much as `max_state_bytes` allows."""

from __future__ import annotations

import pytest
from watchkit import put

from async_task_state import StateTooLargeError
from async_task_state.triggers import NewFilesTrigger

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("_settings_read_anew")]


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "with confirmations"])
async def test_g8_the_trigger_raises_it_and_the_files_are_reported_when_there_is_room(
    folder, dsn, monkeypatch, at_most, shared
):
    monkeypatch.setattr(NewFilesTrigger, "store", dsn)
    put(folder, "a", "b")
    trigger = NewFilesTrigger(str(folder), poll_interval=0.01, settle=0, sample=100, asset="orders")

    def first():
        events = (
            trigger.create_shared_stream_producer({}).open_stream()
            if shared and trigger.shared_stream_key()
            else trigger.run()
        )
        return anext(events)

    at_most(200)
    for _ in range(2):
        with pytest.raises(
            StateTooLargeError, match=r"asset orders#new_files.* max_state_bytes allows 200: delete keys"
        ):
            await first()
    at_most(100_000)
    event = await first()
    payload = event[0].payload if isinstance(event, tuple) else event.payload
    assert (payload["count"], len(payload["files"])) == (2, 2)
