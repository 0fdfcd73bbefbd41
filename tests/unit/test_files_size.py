"""Processing files where the task's state holds as much as `max_state_bytes` allows, in both doors."""

from __future__ import annotations

import pytest

from async_task_state import StateTooLargeError
from async_task_state.operators import ProcessFilesOperator
from async_task_state.settings import load_settings
from async_task_state.testing import run_trigger
from async_task_state.triggers import ProcessFilesTrigger

FILES = 100

seen: list[str] = []


def count(path):
    """A processor; its totals grow with every file."""
    seen.append(path.name)
    return {f"rows of {path.name}, of which there are so many": 1}


async def save(path, state):
    """A processor that saves values of its own."""
    seen.append(path.name)
    await state.checkpoint({path.name: "x" * 100})


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:03}").touch()
    return folder


@pytest.fixture(autouse=True)
def _fresh(_settings_read_anew):
    seen.clear()


@pytest.fixture
def make_operator(make_state, monkeypatch):
    def state_of(**options):
        return make_state(settings=load_settings(), attempt=1, **options)

    monkeypatch.setattr("async_task_state.operators.task_state", state_of)

    def make_operator(*arguments, **options):
        source, processor = arguments
        return ProcessFilesOperator(
            task_id="t", deferrable=False, source=source, processor=processor, **options
        )

    return make_operator


@pytest.mark.asyncio
@pytest.mark.parametrize("processor", ["count", "save"])
@pytest.mark.parametrize("on_error", ["raise", "collect"])
async def test_g8_the_trigger_raises_it_and_no_file_is_lost(at_most, folder, on_error, processor):
    trigger = ProcessFilesTrigger(
        str(folder), f"{__name__}.{processor}", on_error=on_error, concurrency=1, max_attempts=2
    )
    at_most(2000)
    with pytest.raises(
        StateTooLargeError,
        match=r"the state of dag/run/task holds .* with (key|work set) '.*max_state_bytes allows 2,000: delete",
    ):
        await run_trigger(trigger)
    done = len(seen) - 1
    assert 5 < done < 60
    at_most(1_000_000)
    [event] = (await run_trigger(trigger)).events
    assert (event.payload["done"], event.payload["skipped"], event.payload["failed"]) == (
        FILES - done,
        done,
        0,
    )
    # The one that had no room was processed again.
    assert len(seen) == FILES + 1


@pytest.mark.parametrize("processor", [count, save])
@pytest.mark.parametrize("on_error", ["raise", "collect"])
def test_g8_the_operator_raises_it_and_no_file_is_lost(at_most, folder, make_operator, on_error, processor):
    operator = make_operator(str(folder), processor, on_error=on_error, concurrency=1, max_attempts=2)
    at_most(2000)
    with pytest.raises(StateTooLargeError, match=r"max_state_bytes allows 2,000: delete"):
        operator.execute({})
    done = len(seen) - 1
    assert 5 < done < 60
    at_most(1_000_000)
    result = operator.execute({})
    assert (result["done"], result["skipped"], result["failed"]) == (FILES - done, done, 0)
    assert len(seen) == FILES + 1
