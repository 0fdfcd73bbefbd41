"""What the author's `on_user_kill` does: it raises, hangs, or is of another class; and a unit test of it."""

from __future__ import annotations

import asyncio
import re

import pytest
from killkit import SCOPE, HasNoHook, KillFails, Running, Waits, WaitsForPages, calls

from async_task_state.lifetime import writer_for
from async_task_state.testing import run_trigger

pytestmark = pytest.mark.asyncio


async def test_a_call_that_raises_was_made(task, caplog):
    async with Running(await task.defer(KillFails)) as old:
        task.clear()
        await task.defer(KillFails)
        with pytest.raises(ConnectionError):
            await old.be_killed()
    async with Running(task.trigger(KillFails)):
        pass
    assert len(calls) == 1


async def test_an_error_of_a_call_that_was_owed_does_not_keep_the_next_trigger(task):
    async with Running(await task.defer(KillFails)) as old:
        await old.die()
    task.clear()
    async with Running(await task.defer(KillFails)) as new:
        assert await new.end() == [{"cleared": True}]
    assert len(calls) == 1


class ServiceError(Exception):
    """Says what a service answered, as it is."""

    def __repr__(self):
        return str(self)


@pytest.mark.parametrize("found_by", ["the trigger that is killed", "the next one"])
async def test_what_a_call_raises_is_logged_as_plain_text(task, monkeypatch, capsys, caplog, found_by):
    async def kill(self, state):
        raise ServiceError("a\nERROR forged\x1b[31mred\u202egnp\x9b2J")

    monkeypatch.setattr(Waits, "kill", kill)
    async with Running(await task.defer()) as old:
        if found_by == "the next one":
            await old.die()
        task.clear()
        new = await task.defer()
        if found_by != "the next one":
            with pytest.raises(ServiceError):
                await old.be_killed()
    async with Running(new):
        pass
    logged = capsys.readouterr().out + "".join(map(str, (record.msg for record in caplog.records)))
    assert "on_user_kill has failed" in logged
    assert r"\x1b[31mred\u202egnp\x9b2J" in logged
    for raw in ("\x1b[31mred", "\u202e", "\x9b"):
        assert raw not in logged


async def test_a_call_that_hangs_is_bounded(task, monkeypatch):
    monkeypatch.setattr(Waits, "_kill_seconds", 0.05)
    monkeypatch.setattr(Waits, "kill", lambda self, state: asyncio.sleep(3600))
    async with Running(await task.defer()) as old:
        await old.die()
    task.clear()
    async with Running(await task.defer()) as new:
        assert await new.end() == [{"cleared": True}]
    assert await task.owed() == []


async def test_a_trigger_of_another_class_leaves_the_call_and_says_so(task, capsys):
    async with Running(await task.defer()) as old:
        await old.die()
    task.clear()
    async with Running(await task.defer(WaitsForPages)) as other:
        await other.end()
    assert calls == []
    assert (
        "was deferred to killkit.Waits, whose on_user_kill is called when the task defers to that trigger again"
        in capsys.readouterr().out
    )
    assert len(await task.owed()) == 1
    task.retry()
    async with Running(await task.defer()):
        assert [call.values["job"] for call in calls] == ["j-1"]


async def test_a_trigger_without_the_hook_keeps_nothing(task):
    trigger = await task.defer(HasNoHook)
    async for _ in trigger.run():
        break
    writer = writer_for(task.dsn, task.settings)
    snapshot = await writer.call(writer.store.read, SCOPE)
    assert not [key for key in snapshot.entries if "kill" in key]


# In a unit test


async def test_run_trigger_clears(dsn):
    trigger = Waits()
    when = lambda state: "page" in state._pending.values  # noqa: E731 - one line
    cleared = await run_trigger(trigger, stop="clear", when=when)
    assert [call.values for call in calls] == [{"job": "j-1", "page": 1}]
    assert (cleared.events, cleared.values) == ([], {})
    again = await run_trigger(trigger, attempt=2, stop="clear", when=when)
    assert [call.values["job"] for call in calls] == ["j-1", "j-2"]
    assert again.values == {}


async def test_a_trigger_knows_that_its_attempt_began_with_a_clear(task):
    await task.defer()
    task.clear()
    await task.defer()
    for _ in range(2):
        async with task.trigger().task_state() as state:
            assert state.cleared
            await state.clear()
    task.retry()
    await task.defer()
    async with task.trigger().task_state() as state:
        assert not state.cleared


async def test_the_log_says_that_the_call_was_made_and_has_returned_and_nothing_resumes(task, capsys):
    await task.defer()
    async with Running(task.trigger()):
        pass
    task.clear()
    again = await task.defer()
    capsys.readouterr()
    async with Running(again):
        pass
    told = capsys.readouterr().out
    called, returned = [line for line in told.splitlines() if "on_user_kill" in line]
    assert "on_user_kill is called: a user has stopped attempt 1 " in called
    assert re.search(r"on_user_kill has returned after \d+\.\d s ", returned)
    assert "attempt 1 resumes" not in told


async def test_g4_a_trigger_that_has_lost_its_state_says_to_whom(task, capsys):
    async with Running(await task.defer()) as old:
        task.clear()
        await task.defer()
        assert await old.end() == []
    [line] = [line for line in capsys.readouterr().out.splitlines() if "ending without an event" in line]
    assert re.search(r"no longer its holder: taken over by attempt 2 on host \S+, process \d+, since ", line)
    assert "purge" not in line
