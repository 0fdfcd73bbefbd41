"""A record that is damaged, or of a newer version: every reader works or names the state and the record."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sqlite3
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from async_task_state import (
    AssetScope,
    AssetState,
    DamagedRecordError,
    Settings,
    TaskScope,
    TaskState,
    claims,
    cli,
)
from async_task_state.arrivals import REPORTED, UNCONFIRMED, WATERMARK, Watch
from async_task_state.claims import claim_note, held_values, notes_of, private_state, wait_for_note
from async_task_state.cli_progress import WatchedMany
from async_task_state.cli_views import Screen, state_document, state_view, what_is_stored
from async_task_state.cli_watch import watch_document
from async_task_state.kills import TRIGGER
from async_task_state.lifetime import shutdown
from async_task_state.runs import Run
from async_task_state.stores.memory import MemoryStore
from async_task_state.testing.runs import run_made

SCOPE = TaskScope("dag", "run", "task")
ASSET = AssetScope("lake")
SETTINGS = Settings(dsn="memory:")
CLEAR = "async-task-state clear dag run task"
DEEP = "[" * 100_000 + "]" * 100_000
BAD_TEXTS = [
    "", "{", "nul", DEEP, '"\\ud8"', "1e", b"\xff", 7, None, "[]", "{}", "7", "null", "true", '"x"', '"AgAA"', '"AQ="',
    '"AQAA"', '"é"', "[1]", '{"item": 1}', '{"trigger": "t", "attempt": "1", "claim": null}', "9" * 5000,
    "NaN", "-Infinity", "1e999", "-1e400", "[1,[NaN]]", '{"a":{"b":Infinity}}', "9" * 400 + ".0",
    json.dumps("AQ" + "A" * 4098 + "=="),
    '{"item":"i","error":"e","tries":1,"attempt":1,"attempt_tries":1,"since":2}',
    '{"item":"i","error":"e","tries":"1","attempt":1,"attempt_tries":1}',
    '{"trigger":"t","attempt":1,"claim":null,"values":{"a":1}}',
    '{"files":"1","modified":null}', '{"event_id":null}',
]  # fmt: skip
names = itertools.count()


@pytest.fixture(autouse=True)
def _no_wait_for_a_note(monkeypatch):
    monkeypatch.setattr(claims, "NOTE_SECONDS", 0.0)


def run(coroutine):
    try:
        return asyncio.run(coroutine)
    finally:
        shutdown()


def state_on(store, **options):
    return TaskState(SCOPE, store=store, settings=SETTINGS, **options)


async def real_entries():
    """A state that has everything in it that one can have."""
    store = MemoryStore()
    async with state_on(store, attempt=1, max_tries=3, trigger="a.Trigger", run=run_made(1, 1)) as state:
        await state.checkpoint(n=1, deep={"a": [1]})
    async with state_on(
        store, attempt=2, max_tries=4, trigger="a.Trigger", run=run_made(1, 2), on_clear="restart"
    ) as state:
        await state.checkpoint(n=1, deep={"a": [1]})
        for number in range(300):
            await state.work("files").done(number)
        await state.work("files").failed("x", ValueError("bad"))
    snapshot = await store.read(SCOPE)
    return snapshot.entries, snapshot.run


ENTRIES, RUN = run(real_entries())


def test_the_state_has_records_of_every_kind():
    kinds = {key.split(":")[1] if ":" in key else "value" for key in ENTRIES}
    assert kinds == {"value", "work", "fail", "kill", "max_tries", "cleared"}
    assert TRIGGER in ENTRIES
    assert any("after:" in key for key in ENTRIES)


async def use(state):
    """Read all that a state holds."""
    for key in ("n", "deep"):
        await state.get(key)
    await state.get_all()
    list(state.work("files").remaining(range(400)))


async def opens(store):
    async with state_on(store, attempt=2) as state:
        await use(state)
        await state.work("files").failed("x", "again")
        await state.work("files").done("y", n=2)


async def opens_read_only(store):
    async with state_on(store, read_only=True) as state:
        await use(state)


async def opens_of_a_run(store):
    async with state_on(store, attempt=3, run=run_made(1, 3), max_tries=4, trigger="a.Trigger"):
        pass
    async with state_on(store, attempt=3, run=run_made(1, 3), read_only=True):
        pass


async def opens_after_a_clear(store):
    async with state_on(store, attempt=3, max_tries=5, trigger="a.Trigger", on_clear=lambda _: {}):
        pass


async def makes_the_call_that_is_owed(store):
    async with state_on(store, attempt=3, trigger="a.Trigger") as state:
        for note in notes_of(state):
            await claim_note(state, note.key, "me")
            async with private_state(state, note.values) as private:
                await private.get_all()
        async with private_state(state, held_values(state)) as private:
            await private.get_all()


async def waits_for_the_note(store):
    earlier = state_on(store, attempt=2, trigger="a.Trigger")
    async with earlier:
        pass
    async with state_on(store, attempt=3, trigger="a.Trigger"):
        await wait_for_note(earlier)


async def shows(store):
    snapshot, (info,) = await store.read(SCOPE), await store.scopes()
    assert "key" in what_is_stored(snapshot)
    Screen().console.render_lines(state_view(info, snapshot, Screen()))
    state_document(info, snapshot)


async def watches(store):
    view = WatchedMany(SCOPE)
    view.take(await store.read(SCOPE))
    watch_document(view, view.states[SCOPE])


READERS = [
    opens,
    opens_read_only,
    opens_of_a_run,
    opens_after_a_clear,
    makes_the_call_that_is_owed,
    waits_for_the_note,
    shows,
    watches,
]


async def store_with(entries, held_run=RUN):
    store = MemoryStore()
    async with state_on(store, attempt=2):
        pass
    await store.write(SCOPE, {key: (text, None) for key, text in entries.items()})
    store._records[SCOPE].run = held_run
    return store


async def works_or_names(reader, store, *, key, clear=CLEAR):
    try:
        await reader(store)
    except DamagedRecordError as error:
        text = str(error)
        assert key in text
        assert clear in text
        assert "upgrade async-task-state" in text
        assert len(text) < 2000


@pytest.mark.parametrize("reader", READERS)
def test_a_sound_state_is_read(reader):
    async def read():
        await reader(await store_with(ENTRIES))

    run(read())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("key", ENTRIES)
def test_a_damaged_record_is_named_by_every_reader(reader, key):
    async def read():
        for text in BAD_TEXTS:
            store = await store_with({**ENTRIES, key: text})
            await works_or_names(reader, store, key=repr(key))

    run(read())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("value", ["1:", "", 1, "[" * 100_000])
def test_a_note_with_a_damaged_value_is_named(reader, value):
    """By its own key, because the value's is no key of the state any more."""
    key = next(key for key in ENTRIES if key.startswith("__ats:kill:after:"))
    note = json.loads(ENTRIES[key])
    damaged = json.dumps({**note, "values": dict.fromkeys(note["values"], value)})

    async def read():
        await works_or_names(reader, await store_with({**ENTRIES, key: damaged}), key=repr(key))

    run(read())


@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_was_done_to_a_record_it_is_named(data):
    key = data.draw(st.sampled_from(sorted(ENTRIES)))
    text = ENTRIES[key]
    at = data.draw(st.integers(0, len(text)))
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
    damaged = data.draw(
        st.sampled_from(BAD_TEXTS)
        | st.just(text[:at])
        | st.builds(lambda put: text[:at] + put + text[at + len(put) :], st.text(min_size=1, max_size=3))
        | st.builds(lambda put: text[:at] + put + text[at:], st.text(min_size=1, max_size=3))
        | st.builds(json.dumps, json_values)
        | st.builds(lambda value: json.dumps({**json.loads(text), "more": value}), json_values)
        if text.startswith("{")
        else st.builds(json.dumps, json_values) | st.just(text[:at]) | st.sampled_from(BAD_TEXTS)
    )
    reader = data.draw(st.sampled_from(READERS))

    async def read():
        await works_or_names(reader, await store_with({**ENTRIES, key: damaged}), key=repr(key))

    run(read())


@pytest.mark.parametrize("key", ["__ats:work:files:x", "__ats:work:files:", "__ats:work:files:1", "__ats:fail:files:zz",
                                 "__ats:fail:files:00", "__ats:work:files:000000000²"])  # fmt: skip
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_key_is_named(reader, key):
    async def read():
        text = next(text for name, text in ENTRIES.items() if name.startswith(key[:10]))
        await works_or_names(reader, await store_with({**ENTRIES, key: text}), key=repr(key))

    run(read())


@pytest.mark.parametrize("held", ["x", "a b c d", "x y 1", " 2026-01-01T00:00:00 0", f"{RUN} 1", b"\xff", 7])
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_note_of_the_run_is_named(reader, held):
    async def read():
        store = await store_with(ENTRIES, held)
        await works_or_names(reader, store, key="which run has held it last")
        with pytest.raises(DamagedRecordError, match="which run has held it last"):
            async with state_on(store, attempt=3, run=run_made(1, 3)):
                pass
        with pytest.raises(DamagedRecordError, match="which run has held it last"):
            await store.write(SCOPE, {"n": ("1", None)}, run=Run(run_made(1, 3).instance))
        assert await store.clear(SCOPE) == len(ENTRIES)
        async with state_on(store, attempt=3, run=run_made(1, 3)) as state:
            assert not state.resumed

    run(read())


@pytest.mark.parametrize("key", ENTRIES)
def test_a_refresh_that_meets_a_damaged_record_changes_nothing(key):
    async def read():
        for text in BAD_TEXTS:
            store = await store_with(ENTRIES)
            for options in ({"attempt": 2}, {"read_only": True}):
                async with state_on(store, **options) as state:
                    files = state.work("files")
                    counts, values = files.counts, await state.get_all()
                    await store.write(SCOPE, {key: (text, None)})
                    try:
                        await state.refresh()
                    except DamagedRecordError as error:
                        assert repr(key) in str(error)  # noqa: PT017 - either is right
                        assert (files.counts, await state.get_all()) == (counts, values)
                    with contextlib.suppress(DamagedRecordError):
                        await state.get_all()
                await store.write(SCOPE, {key: (ENTRIES[key], None)})

    run(read())


def test_an_opening_that_fails_is_not_half_an_opening():
    async def read():
        store = await store_with({**ENTRIES, TRIGGER: "{"})
        handle = state_on(store, attempt=3, max_tries=5)
        for _ in range(2):
            with pytest.raises(DamagedRecordError, match="trigger"):
                async with handle:
                    pass
        await store.clear(SCOPE)
        async with handle as state:
            assert await state.get_all() == {}

    run(read())


@pytest.mark.parametrize("key", [f"{REPORTED}0000000000", WATERMARK, UNCONFIRMED])
def test_a_watch_names_what_it_cannot_read(key, tmp_path):
    (tmp_path / "x").write_text("1")
    watch = Watch(source=str(tmp_path), poll_interval=0.01, settle=0)
    bad = [
        7,
        "é",
        "AQ=",
        [],
        {},
        {"files": "1", "modified": None},
        {"files": 1, "modified": "x"},
        {"event_id": 1},
    ]

    async def read(store):
        async with AssetState(ASSET, store=store, settings=SETTINGS) as state:
            async for _ in watch.events(state, "w:"):
                return

    async def all_of_them():
        for value in bad:
            store = MemoryStore()
            await store.write(ASSET, {f"w:{key}": (json.dumps(value), None)})
            with pytest.raises(DamagedRecordError, match=f"w:{key}.*clear --asset=lake"):
                await read(store)

    run(all_of_them())


@pytest.mark.parametrize("kind", ["value", "work", "fail"])
@pytest.mark.parametrize(
    ("bad", "as_"), [("{", "TEXT"), (DEEP, "TEXT"), (b"\xff\xfe", "TEXT"), (b"\xff\xfe", "BLOB")]
)
def test_commands_name_it_and_clear_removes_it(tmp_path, capsys, kind, bad, as_):
    dsn = f"sqlite:///{tmp_path}/state.db"

    async def fill():
        async with TaskState(SCOPE, store=dsn, settings=Settings(dsn=dsn)) as state:
            await state.checkpoint(n=1)
            await state.work("files").done(1)
            await state.work("files").failed(2, "bad")

    run(fill())
    key = {"value": "n"}.get(kind, f"__ats:{kind}:files")
    with closing(sqlite3.connect(tmp_path / "state.db")) as db, db:
        update = f"UPDATE entry SET value = CAST(? AS {as_}) WHERE key LIKE ?"
        assert db.execute(update, (bad, f"{key}%")).rowcount == 1
    for command in ("show", "watch"):
        assert cli.main([command, "dag", "run", "task", "--dsn", dsn]) == 1
        error = capsys.readouterr().err
        assert key in error
        assert CLEAR in error
    assert cli.main(["list", "--dsn", dsn]) == 0
    assert cli.main(["clear", "dag", "run", "task", "--yes", "--dsn", dsn]) == 0
    assert cli.main(["show", "dag", "run", "task", "--dsn", dsn]) == 0
