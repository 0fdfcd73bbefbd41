"""No command shows a control character, whatever the ids, keys, items, values and errors are that it shows."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from async_task_state import AssetScope, TaskScope, cli
from async_task_state.state import AssetState

HOSTILE = "a\nERROR forged\r\x1b[31m\u202egnp\u2028\x85"
SHOWN = r"a\nERROR forged\r\x1b[31m\u202egnp\u2028\x85"
NAMES = {"task": [HOSTILE] * 3, "asset": ["--asset", HOSTILE]}
COMMANDS = [
    ["list"],
    ["show"],
    ["watch", "--until", "1"],
    ["clear", "--yes"],
    ["purge"],
    ["check"],
]


def is_clean(text):
    return all(char.isprintable() or char == "\n" for char in text)


@pytest.fixture
def _filled(make_state, settings):
    async def fill():
        for state in (
            make_state(TaskScope(HOSTILE, HOSTILE, HOSTILE)),
            AssetState(AssetScope(HOSTILE), store=settings.dsn, settings=settings),
        ):
            async with state:
                await state.set("k" + HOSTILE, [HOSTILE, {HOSTILE: HOSTILE}])
                await state.work("w" + HOSTILE).done("done")
                await state.work("w" + HOSTILE).failed("i" + HOSTILE, "e" + HOSTILE)

    asyncio.run(fill())


@pytest.mark.usefixtures("_filled")
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_what_a_command_shows_is_clean(run, command, kind, as_json):
    named = NAMES[kind] if command[0] in {"show", "watch", "clear"} else []
    code, out, err = run(command[0], *named, *command[1:], *(["--json"] if as_json else []))
    assert code == 0
    assert is_clean(out + err)
    if as_json:
        documents = (
            [json.loads(line) for line in out.splitlines()] if command[0] == "watch" else [json.loads(out)]
        )
        assert command[0] in {"purge", "check"} or json.dumps(HOSTILE) in json.dumps(documents)
    elif command[0] not in {"purge", "check"}:
        assert SHOWN in out


@pytest.mark.usefixtures("_filled")
@pytest.mark.parametrize("answer", ["y", "n"])
@pytest.mark.parametrize(
    "names", [NAMES["task"], NAMES["task"][:2], NAMES["asset"]], ids=["task", "run", "asset"]
)
def test_the_question_of_clear_is_clean(run, names, answer, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: answer)
    code, out, err = run("clear", *names)
    assert code == (answer == "n")
    assert is_clean(out + err)
    assert SHOWN in err


@pytest.mark.parametrize("names", [*NAMES.values(), NAMES["task"][:2]], ids=["task", "asset", "run"])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_what_is_not_found_is_named_cleanly(run, names, as_json):
    run("purge")
    for command in (["show", *names], ["clear", *names, "--yes"]):
        if len(names) == 2 and names[0] == HOSTILE and command[0] == "show":
            continue
        code, out, err = run(*command, *(["--json"] if as_json else []))
        assert (code, out) == (1, "")
        assert is_clean(err)


@pytest.mark.parametrize(
    "store", ["sqlite:////no/such\x1b/x.db", "no\x1bsuch:x", "postgresql://a\x1b@h/d"], ids=ascii
)
@pytest.mark.parametrize("command", [["list"], ["purge"], ["check"], ["show", "d", "r", "t"], ["init-db"]])
def test_a_dsn_is_named_cleanly(run, store, command):
    code, out, err = run(*command, store=store)
    assert is_clean(out + err)
    assert code in {0, 1}


@pytest.mark.parametrize(
    "argv",
    [["list", HOSTILE], [HOSTILE], ["watch", "d", "r", "t", "--interval", HOSTILE], ["show", HOSTILE]],
    ids=ascii,
)
def test_an_argument_that_is_wrong_is_named_cleanly(capsys, argv):
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert is_clean(capsys.readouterr().err)
