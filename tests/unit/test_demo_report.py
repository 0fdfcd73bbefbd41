"""What the demo says about what it saw."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from async_task_state import demo
from async_task_state.demo_report import Findings
from async_task_state.demo_work import Ran, count_ran, read_journal, write_journal

KILLED, ANOTHER = 1, 2
SIZES = {"/a": 10, "/b": 20, "/c": 30}
GOOD = Findings(
    sizes=SIZES,
    ran=[Ran(1, KILLED, "/a"), Ran(9.5, KILLED, "/b"), Ran(20, ANOTHER, "/b"), Ran(21, ANOTHER, "/c")],
    result={"done": 2, "skipped": 1, "totals": {"files": 3, "bytes": 60, "commits": 2}},
    durable=1,
    killed_at=10,
    killed=[KILLED],
    max_delay=1,
    seconds=30,
)


def wrong(findings):
    return [row.what for row in findings.rows() if row.ok is False]


def test_all_is_as_promised():
    assert wrong(GOOD) == []
    figures = {row.what: row.figure for row in GOOD.rows()}
    assert figures == {
        "files": "3",
        "done before the kill": "1",
        "run again after it": "1",
        "checkpoints": "4",
        "bytes": "60",
        "time": "30 s",
    }


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ran": GOOD.ran[:3]}, ["files"]),
        ({"ran": [*GOOD.ran, Ran(22, ANOTHER, "/d")]}, ["files"]),
        ({"durable": 0}, ["done before the kill"]),
        ({"durable": 2}, ["done before the kill"]),
        ({"max_delay": 0.2}, ["run again after it"]),
        ({"ran": [*GOOD.ran, Ran(22, ANOTHER, "/c")]}, ["run again after it"]),
        ({"result": {**GOOD.result, "totals": {"files": 3, "bytes": 59, "commits": 2}}}, ["bytes"]),
        ({"result": {**GOOD.result, "totals": {"files": 2, "bytes": 60, "commits": 2}}}, ["files"]),
        ({"result": {**GOOD.result, "totals": {"files": 3, "bytes": 60, "commits": 9}}}, ["checkpoints"]),
    ],
)
def test_what_is_not_as_promised_is_named(changes, what):
    assert wrong(replace(GOOD, **changes)) == what


def test_the_exit_code_and_the_reason(monkeypatch, capsys):
    args = demo_arguments(["--files", "1000"])
    monkeypatch.setattr(demo, "_show", lambda *_, **__: GOOD)
    assert demo.run(args) == 0
    assert "nothing is lost" in capsys.readouterr().out
    monkeypatch.setattr(demo, "_show", lambda *_, **__: replace(GOOD, ran=GOOD.ran[:3]))
    assert demo.run(args) == 1
    shown = capsys.readouterr()
    assert (
        "failed: files: 2, compared with 3, by a journal that is kept apart from the state; wrong: /c"
        in shown.err
    )
    assert "nothing is lost" not in shown.out


@pytest.mark.parametrize("files", ["999", "-1", "many"])
def test_too_few_files_are_refused(files, capsys):
    with pytest.raises(SystemExit):
        demo_arguments(["--files", files])
    assert "must be a whole number of at least 1,000" in capsys.readouterr().err


def test_more_files_than_there_are(monkeypatch, tmp_path):
    (tmp_path / "only.py").touch()
    monkeypatch.setattr(demo, "_installed", lambda: tmp_path)
    with pytest.raises(demo.InvalidArgumentError, match="only 1 files"):
        demo.run(demo_arguments([]))


def test_the_journal(tmp_path):
    assert count_ran(tmp_path) == 0
    write_journal(tmp_path, tmp_path / "a file")
    write_journal(tmp_path, tmp_path / "b")
    assert count_ran(tmp_path) == 2
    assert [ran.path for ran in read_journal(tmp_path)] == [str(tmp_path / "a file"), str(tmp_path / "b")]


def demo_arguments(arguments):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(arguments)
