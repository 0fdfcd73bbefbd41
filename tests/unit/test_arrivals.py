"""Which files are new: the algorithm alone, on a clock and a file system that are made up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from async_task_state.arrivals import FORGET_SECONDS, Arrivals
from async_task_state.digests import DIGEST_BYTES, SEGMENT_ITEMS, digest_of
from async_task_state.listing import Version

SETTLE = 10.0


def version(path, size=1, modified=0.0):
    return Version(digest_of(f"{path}#{size},{modified}"), path, size, modified)


def paths(versions):
    return [version.path for version in versions]


class Watcher:
    """Looks, reports at once, and can be restarted."""

    def __init__(self, settle=0.0):
        self.settle = settle
        self.now = 0.0
        self.saved = {}
        self.restart()

    def restart(self):
        self.arrivals = Arrivals(self.saved, clock=lambda: self.now)

    def look(self, *versions, missed=()):
        settled = self.arrivals.see(versions, missed, self.settle)
        self.saved |= self.arrivals.report(settled) if settled else {}
        return paths(settled)


@pytest.fixture
def watcher():
    return Watcher()


def test_files_of_one_moment_are_all_reported_whichever_is_seen_first(watcher):
    assert watcher.look(version("a", modified=5.0)) == ["a"]
    assert watcher.look(version("a", modified=5.0), version("b", modified=5.0)) == ["b"]


def test_a_late_file_is_reported(watcher):
    assert watcher.look(version("new", modified=1000.0)) == ["new"]
    assert watcher.look(version("new", modified=1000.0), version("copied", modified=1.0)) == ["copied"]


def test_the_clock_of_the_file_server_does_not_matter(watcher):
    for modified in (-1e9, 0.0, 1e9, 1e12, None):
        assert watcher.look(version("a", modified=modified)) == ["a"]
        assert watcher.look(version("a", modified=modified)) == []


def test_a_file_that_is_being_written_is_reported_once_when_it_has_stopped():
    watcher = Watcher(SETTLE)
    for size in range(5):
        assert watcher.look(version("a", size)) == []
        watcher.now += SETTLE - 1
    assert watcher.look(version("a", 4)) == []
    watcher.now += 1
    assert watcher.look(version("a", 4)) == ["a"]
    assert watcher.look(version("a", 4)) == []


def test_a_file_settles_from_when_a_look_at_it_ended_to_when_the_next_began():
    watcher = Watcher(SETTLE)

    def slow(*versions):
        yield from versions
        watcher.now += SETTLE

    assert watcher.arrivals.see(slow(version("a")), (), SETTLE) == []
    assert watcher.arrivals.see(slow(version("a")), (), SETTLE) == []
    assert paths(watcher.arrivals.see([version("a")], (), SETTLE)) == ["a"]


def test_a_file_that_changes_back_and_forth_starts_to_settle_anew():
    watcher = Watcher(SETTLE)
    watcher.look(version("a", 1))
    watcher.now += SETTLE
    watcher.look(version("a", 2))
    watcher.now += 1
    assert watcher.look(version("a", 1)) == []


def test_a_change_is_reported_again_and_a_new_name_is_a_new_file(watcher):
    assert watcher.look(version("a", 1)) == ["a"]
    assert watcher.look(version("a", 2)) == ["a"]
    assert watcher.look(version("a", 2, modified=3.0)) == ["a"]
    assert watcher.look(version("b", 2, modified=3.0)) == ["b"]


def test_a_file_that_is_listed_twice_is_one(watcher):
    assert watcher.look(version("a"), version("a")) == ["a"]


def test_the_oldest_come_first(watcher):
    found = watcher.look(version("b", modified=2.0), version("c", modified=1.0), version("a", modified=2.0))
    assert found == ["c", "a", "b"]


def test_a_restart_forgets_nothing_that_was_reported(watcher):
    many = [version(str(number)) for number in range(3 * SEGMENT_ITEMS)]
    for end in (0, 1, SEGMENT_ITEMS - 1, SEGMENT_ITEMS, SEGMENT_ITEMS + 1, 3 * SEGMENT_ITEMS):
        watcher.look(*many[:end])
        watcher.restart()
        assert watcher.look(*many[:end]) == []
    assert len(watcher.arrivals) == len(many)


def test_the_state_grows_with_16_bytes_a_file_and_an_event_writes_its_own(watcher):
    many = [version(str(number)) for number in range(10_000)]
    watcher.look(*many)
    assert sum(map(len, watcher.saved.values())) <= 10_000 * 17
    changes = watcher.arrivals.report([version("one more")])
    assert sum(map(len, changes.values())) <= SEGMENT_ITEMS * DIGEST_BYTES * 4 // 3
    assert watcher.arrivals.report([]) == {}


def gone(watcher, *versions, files=1000):
    """Let that many files be reported and then be gone for longer than files are remembered."""
    watcher.look(*[version(f"gone {number}") for number in range(files)])
    watcher.look(*versions)
    watcher.now += FORGET_SECONDS
    watcher.look(*versions)


def test_files_that_are_gone_are_forgotten_and_the_state_shrinks(watcher):
    for number in range(20):
        gone(watcher, version(f"stays {number}"))
        watcher.look(version(f"stays {number}"), version("new", number))
    assert len(watcher.arrivals) <= 1010
    assert sum(map(len, watcher.saved.values())) <= 1020 * 17
    assert len(watcher.saved) <= 3 * 1000 / SEGMENT_ITEMS
    known = len(watcher.arrivals)
    watcher.restart()
    assert len(watcher.arrivals) == known
    assert watcher.look(version("stays 19"), version("new", 19)) == []


def test_what_is_still_there_is_never_forgotten(watcher):
    stays = [version(f"stays {number}") for number in range(700)]
    watcher.look(*stays)
    gone(watcher, *stays)
    assert watcher.look(*stays, version("new")) == ["new"]
    assert len(watcher.arrivals) == 701
    watcher.restart()
    assert watcher.look(*stays, version("new")) == []


def test_a_source_that_is_not_mounted_for_hours_forgets_nothing(watcher):
    files = [version(str(number)) for number in range(1000)]
    watcher.look(*files)
    for _ in range(3):
        watcher.look()
        watcher.now += FORGET_SECONDS
    assert watcher.look(version("first to come back")) == ["first to come back"]
    assert watcher.look(*files) == []


def test_folders_that_cannot_be_listed_for_hours_forget_nothing(watcher):
    files = [version(str(number)) for number in range(1000)]
    watcher.look(*files)
    for number in range(3):
        watcher.look(version("other", number), missed=[PermissionError()])
        watcher.now += FORGET_SECONDS
    assert watcher.look(*files) == []


def test_a_file_that_comes_back_within_the_hour_is_not_news(watcher):
    files = [version(str(number)) for number in range(1000)]
    watcher.look(*files)
    watcher.look(version("other"))
    watcher.now += FORGET_SECONDS - 1
    # Back, but in a look that may not show all.
    assert watcher.look(*files, missed=[OSError()]) == []
    watcher.now += 2
    assert watcher.look(version("other", 2), *files) == ["other"]
    assert watcher.look(version("other", 2), *files) == []


@dataclass
class File:
    size: int
    modified: float
    changed_at: float


names = st.sampled_from("abcdef")
moments = st.sampled_from([0.0, 1.0, 5.0, 5.0, 1e9])
sizes = st.integers(0, 3)


class Source(RuleBasedStateMachine):
    """Files come, change and go while a watcher looks, dies and starts again."""

    def __init__(self):
        super().__init__()
        self.watcher = Watcher(SETTLE)
        self.files = {}
        self.shown = {}
        self.reported = []

    @rule(name=names, size=sizes, modified=moments)
    def write(self, name, size, modified):
        self.put(name, size, modified)

    def put(self, name, size, modified):
        """What is as it was when the watcher last looked has not changed for it, whatever was there in between."""
        before = [self.files.get(name), self.shown.get(name)]
        same = [file for file in before if file and (file.size, file.modified) == (size, modified)]
        self.files[name] = same[0] if same else File(size, modified, self.watcher.now)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def delete(self, data):
        del self.files[data.draw(st.sampled_from(sorted(self.files)))]

    @precondition(lambda self: self.files)
    @rule(data=st.data(), to=names)
    def rename(self, data, to):
        file = self.files.pop(data.draw(st.sampled_from(sorted(self.files))))
        self.put(to, file.size, file.modified)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, SETTLE]))
    def pass_time(self, seconds):
        assert seconds < FORGET_SECONDS
        self.watcher.now += seconds

    @rule(hidden=st.sets(names))
    def look(self, hidden):
        """Some folders may not be listed this time."""
        shown = [self.as_version(name) for name in self.files if name not in hidden]
        settled = self.watcher.arrivals.see(shown, [OSError()] if hidden else [], SETTLE)
        self.shown.update(
            {name: self.files.get(name) for name in [*self.shown, *self.files] if name not in hidden}
        )
        for version in settled:
            file = self.files[version.path]
            assert self.watcher.now - file.changed_at >= SETTLE
        self.settled = settled
        self.save()

    def save(self):
        if self.settled:
            self.watcher.saved |= self.watcher.arrivals.report(self.settled)
            self.reported += self.settled

    @rule()
    def restart(self):
        self.watcher.restart()

    @rule()
    def die_before_saving(self):
        """What was seen and not made durable was not reported either."""
        self.watcher.arrivals.see([self.as_version(name) for name in self.files], [], 0)
        self.watcher.arrivals.report([self.as_version(name) for name in self.files])
        self.watcher.restart()

    @invariant()
    def nothing_is_reported_twice(self):
        assert len({version.digest for version in self.reported}) == len(self.reported)

    def teardown(self):
        for _ in range(2):
            self.look(set())
            self.watcher.now += SETTLE
        self.look(set())
        self.nothing_is_reported_twice()
        assert {self.as_version(name) for name in self.files} <= set(self.reported)

    def as_version(self, name):
        return version(name, self.files[name].size, self.files[name].modified)


TestEverySettledVersionIsReportedExactlyOnce = Source.TestCase
