"""A source that leaves its base is refused, by whatever way it leaves it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from placekit import names, read
from upath import UPath

from async_task_state import InvalidArgumentError, SourceNotAllowedError
from async_task_state.files import FileWork
from async_task_state.operators import ProcessFilesOperator
from async_task_state.places import check_base, open_place
from async_task_state.triggers import NewFilesTrigger, ProcessFilesTrigger

IN_BASE = (
    (".", ["a.csv", "b.csv", "c.txt"]),
    ("*.csv", ["a.csv"]),
    ("**/*.csv", ["a.csv", "b.csv"]),
    ("deep", ["b.csv", "c.txt"]),
    ("./deep//*", ["b.csv", "c.txt"]),
    ("within", ["b.csv", "c.txt"]),
    ("{base}", ["a.csv", "b.csv", "c.txt"]),
    ("{base}/", ["a.csv", "b.csv", "c.txt"]),
    ("{base}/deep/*.csv", ["b.csv"]),
    ("file://{base}/a.csv", ["a.csv"]),
    ("~", []),
    ("nowhere/*", []),
    (["a.csv", "{base}/deep/b.csv"], ["a.csv", "b.csv"]),
)


@pytest.mark.parametrize(("source", "expected"), IN_BASE, ids=str)
@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/", "{}/."])
def test_a_source_within_its_base_is_listed(folder, source, expected, form):
    def filled(text):
        return text.replace("{base}", str(folder))

    source = filled(source) if isinstance(source, str) else [filled(place) for place in source]
    assert names(source, form.format(folder)) == (expected, [])


OUT_OF_BASE = (
    "..",
    "../secret.csv",
    "deep/../../secret.csv",
    "{base}/../secret.csv",
    "{parent}/secret.csv",
    "{parent}",
    "{parent}/input",
    "{base}put/d.csv",
    "/",
    "/etc/passwd",
    "file:///etc/passwd",
    "file://{parent}/secret.csv",
    "//etc/passwd",
    "%2e%2e/secret.csv",
    "..%2fsecret.csv",
    "%252e%252e/secret.csv",
    "..\\secret.csv",
    "link.csv",
    "out/secret.csv",
    "out",
    "out/*.csv",
    "out/**",
    "**/../../secret.csv",
    "s3://bucket/x",
    "~/../../secret.csv",
)


@pytest.mark.parametrize("source", OUT_OF_BASE)
def test_a_source_that_leaves_its_base_is_refused(folder, source):
    source = source.replace("{base}", str(folder)).replace("{parent}", str(folder.parent))
    for places in (source, ["a.csv", source]):
        with pytest.raises(SourceNotAllowedError, match=r"outside of base|lead out of base"):
            names(places, str(folder))


@pytest.mark.parametrize(
    "source", ["*", "**", ".", "*/*.csv", "?ink.csv", "[l]ink.csv", "l*", "o*/*", "o*/**"]
)
def test_links_that_lead_out_are_not_followed(folder, source):
    handed, refused = names(source, str(folder))
    assert "secret.csv" not in handed
    assert "link.csv" not in handed
    assert refused == []


def test_a_file_that_has_become_a_link_is_not_handed_over(folder):
    place = open_place("deep", str(folder))
    name = str(folder / "deep" / "b.csv")
    assert place.path_of(name) == folder / "deep" / "b.csv"
    (folder / "deep" / "b.csv").unlink()
    (folder / "deep" / "b.csv").symlink_to(folder.parent / "secret.csv")
    with pytest.raises(SourceNotAllowedError, match=r"leads to .*secret\.csv'?, outside of base"):
        place.path_of(name)


@pytest.mark.anyio
async def test_a_folder_that_has_become_a_link_hands_nothing_over(make_state, folder):
    opened = []

    async def swapping(path):
        """The first file that is processed swaps the folder of the others."""
        opened.append(path.read_text())
        if len(opened) == 1:
            (folder / "deep").rename(folder / "moved")
            (folder / "deep").symlink_to(folder.parent / "input")
            (folder.parent / "input" / "c.txt").write_text("secret")

    work = FileWork(source="deep", base=str(folder), processor=swapping, concurrency=1, on_error="collect")
    async with make_state() as state:
        result = await work.run(state)
    assert (result["done"], result["failed"], opened) == (1, 1, ["in/deep/b.csv"])
    assert "outside of base" in result["failures"][0]["error"]


def test_a_base_that_is_a_link_is_where_it_leads(folder, tmp_path):
    (tmp_path / "base").symlink_to(folder)
    assert names("**/*.csv", str(tmp_path / "base")) == (["a.csv", "b.csv"], [])


def test_the_names_in_a_base_are_no_pattern(tmp_path):
    for name in ("[ab]*/x.csv", "a/x.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    assert names("*.csv", str(tmp_path / "[ab]*")) == (["x.csv"], [])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.csv", ["a.csv"]),
        ("*.csv", ["a.csv"]),
        ("deep", ["b.csv"]),
        ("memory://bucket/in/deep/*", ["b.csv"]),
        ("memory://bucket/in/", None),
    ],
)
def test_a_source_within_a_base_that_is_a_url(bucket, source, expected):
    handed, refused = names(source, bucket)
    if expected is not None:
        assert (handed, refused) == (expected, [])
    # A key may have dots in it, which a client that takes them for steps would follow.
    assert "secret.csv" not in handed


@pytest.mark.parametrize(
    "source",
    [
        "memory://bucket/secret.csv",
        "memory://bucket/input/d.csv",
        "memory://bucket",
        "memory://other/in",
        "memory://bucket/in/../secret.csv",
        "memory://bucket/in/%2e%2e/secret.csv",
        "../secret.csv",
        "/bucket/in/a.csv",
        "/etc/passwd",
        "file:///etc/passwd",
        "s3://bucket/in/a.csv",
    ],
)
def test_a_source_that_leaves_a_base_that_is_a_url_is_refused(bucket, source):
    with pytest.raises(SourceNotAllowedError, match=r"outside of base|lead out of base"):
        names(source, bucket)


@pytest.mark.parametrize(
    "base", ["in", "./in", "~/in", "/in/../x", "/in/%2e%2e", "a::b", "http://h/x", "s3://", "file://h/x"]
)
def test_g8_a_base_that_is_none_is_refused_in_the_dag(base):
    with pytest.raises(SourceNotAllowedError, match=r"^base"):
        check_base(base)
    for make in (
        lambda: ProcessFilesOperator(task_id="t", source="x", base=base, processor=read),
        lambda: ProcessFilesTrigger("x", "a.b", base=base),
    ):
        with pytest.raises(SourceNotAllowedError, match=r"^base"):
            make()


@pytest.mark.parametrize("base", ["", 7, b"/in", ["/in"]])
def test_g8_a_base_of_another_type_is_refused(base):
    with pytest.raises(InvalidArgumentError, match="base must be"):
        ProcessFilesOperator(task_id="t", source="x", base=base, processor=read)


def test_base_is_no_template_and_goes_with_the_trigger():
    assert ProcessFilesOperator.template_fields == ("source",)
    operator = ProcessFilesOperator(task_id="t", source="*", base=Path("/in"), processor=read)
    assert operator._arguments()["base"] == "/in"
    path, arguments = ProcessFilesTrigger("*", "a.b", base=UPath("/in")).serialize()
    assert arguments["base"] == "/in"
    assert ProcessFilesTrigger(**arguments).serialize() == (path, arguments)


@pytest.mark.anyio
async def test_what_a_triggerer_was_sent_is_checked_where_it_runs(make_state, allow):
    # An error where the triggerer makes a trigger would end all of them, so there it is made.
    trigger = ProcessFilesTrigger("sftp://host/x", "os.stat")
    assert NewFilesTrigger("sftp://host/x", asset="orders").serialize()[1]["source"] == "sftp://host/x"
    async with make_state() as state:
        with pytest.raises(SourceNotAllowedError, match="'sftp' is none of"):
            await anext(trigger.run_with_state(state))
        outside = replace(trigger._work, source="../x", base="/in")
        with pytest.raises(SourceNotAllowedError, match="lead out of base"):
            await outside.run(state)
