"""Runs are told apart by what a task knows of its own."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from uuid import UUID

import pytest

from async_task_state import AssetScope, DamagedRecordError, StaleAttemptError, TaskScope
from async_task_state.runs import Relation, Run, relation, run_of
from async_task_state.stores.admission import Admission, Held, admit
from async_task_state.testing.runs import run_made

SCOPE = TaskScope("dag", "run", "task")

T1 = datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc)
T2 = T1 + timedelta(minutes=5)

SAME, NEWER, OLDER = Relation.SAME, Relation.NEWER, Relation.OLDER


def known(number, attempt, started=None, clears=0):
    return run_made(number, attempt, started, clears)


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        # One attempt, whoever works for it.
        pytest.param((1, known(1, 1, T1)), (1, known(1, 1, T1)), SAME, id="the same attempt"),
        pytest.param((1, known(1, 1, T1)), (1, known(1, 1)), SAME, id="its trigger"),
        pytest.param((1, known(1, 1)), (1, known(1, 1, T1)), SAME, id="its worker, after the trigger"),
        # Later attempts of one run.
        pytest.param((1, known(1, 1, T1)), (2, known(1, 2, T1)), SAME, id="a retry"),
        pytest.param((1, known(1, 1, T1)), (2, known(1, 2, T1, 1)), SAME, id="a clear while the run runs"),
        pytest.param(
            (1, known(1, 1, T1)), (2, known(1, 2, T2, 1)), SAME, id="a clear of a run that has ended"
        ),
        pytest.param((1, known(1, 1, T1)), (2, known(1, 2)), SAME, id="a retry that starts in the triggerer"),
        pytest.param((1, known(1, 1)), (2, known(1, 2, T1)), SAME, id="a worker after such a trigger"),
        pytest.param(
            (2, known(1, 2, T1)), (3, known(0, 3, T1)), SAME, id="a retry whose id is earlier by a clock"
        ),
        # A run that was made again.
        pytest.param((1, known(1, 1, T1)), (1, known(2, 1, T2)), NEWER, id="made again"),
        pytest.param(
            (5, known(1, 5, T1)), (1, known(2, 1, T2)), NEWER, id="made again, after a later attempt"
        ),
        pytest.param((1, known(1, 1, T1)), (2, known(2, 2, T2)), NEWER, id="made again, in its retry"),
        pytest.param((3, known(1, 3, T1)), (2, known(2, 2, T2, 1)), NEWER, id="made again and cleared"),
        pytest.param(
            (3, known(1, 3, T1, 4)), (4, known(2, 4, T2)), NEWER, id="made again, the first was cleared"
        ),
        pytest.param((1, known(1, 1)), (1, known(2, 1)), NEWER, id="made again, triggers only"),
        pytest.param((4, known(1, 4)), (2, known(2, 2)), NEWER, id="made again, triggers only, in its retry"),
        pytest.param(
            (1, known(1, 1)), (1, known(2, 1, T2)), NEWER, id="made again, in dag.test() and then not"
        ),
        # One that was deleted, or an attempt that was replaced.
        pytest.param((1, known(2, 1, T2)), (1, known(1, 1, T1)), OLDER, id="deleted"),
        pytest.param((1, known(2, 1, T2)), (5, known(1, 5, T1)), OLDER, id="deleted, of a later attempt"),
        pytest.param((1, known(2, 1, T2)), (5, known(1, 5)), OLDER, id="the trigger of a deleted one"),
        pytest.param((2, known(1, 2, T2, 1)), (1, known(1, 1, T1)), OLDER, id="before a clear"),
        pytest.param((2, known(1, 2, T1)), (1, known(1, 1)), OLDER, id="the trigger of an earlier attempt"),
        # Attempts decide.
        pytest.param((2, known(1, 2, T1)), (1, known(1, 1, T1)), SAME, id="an earlier attempt"),
        pytest.param((2, known(1, 2, T1)), (1, known(2, 1, T1)), SAME, id="one whose id is later by a clock"),
        pytest.param((2, None), (1, known(2, 1, T2)), SAME, id="nothing is stored of the run"),
        pytest.param((2, known(1, 2, T1)), (1, None), SAME, id="nothing is known of the run that comes"),
        pytest.param((2, Run(started=T1)), (1, known(2, 1)), SAME, id="each knows what the other does not"),
        # Who knows no attempt: Airflow's accessors.
        pytest.param((3, known(1, 3, T1)), (None, Run(started=T1)), SAME, id="writes in its run"),
        pytest.param((3, known(1, 3, T1)), (None, Run(started=T2)), NEWER, id="writes in one made again"),
        pytest.param(
            (3, known(1, 3, T1)), (None, Run(started=T2, clears=1)), SAME, id="writes in a cleared one"
        ),
        pytest.param((3, known(1, 3, T2)), (None, Run(started=T1)), OLDER, id="writes in a deleted one"),
        pytest.param((3, known(1, 3)), (None, known(2, 1)), SAME, id="writes, and knows its instance only"),
    ],
)
def test_one_run_is_told_from_another(stored, wanted, expected):
    (held, left_by), (attempt, run) = stored, wanted
    assert relation(run, attempt, left_by, held) is expected


@pytest.mark.parametrize(
    ("held", "attempt", "run", "admitted"),
    [
        (None, None, None, Admission(1, "")),
        (None, 3, None, Admission(3, "")),
        (None, 3, known(1, 3, T1), Admission(3, known(1, 3, T1).text)),
        (Held(2), None, None, Admission(2, "")),
        (Held(2), 3, known(1, 3), Admission(3, known(1, 3).text)),
        (Held(2, known(1, 2, T1).text), None, None, Admission(2, known(1, 2, T1).text)),
        (Held(2, known(1, 2, T1).text), 9, None, Admission(9, known(1, 2, T1).text)),
        (Held(2, known(1, 2, T1, 1).text), 3, known(1, 3), Admission(3, known(1, 3, T1, 1).text)),
        (Held(2, known(1, 2, T1).text), 3, known(1, 3, T2, 1), Admission(3, known(1, 3, T2, 1).text)),
        (Held(2, known(1, 2, T1).text), 1, known(2, 1, T2), Admission(1, known(2, 1, T2).text, fresh=True)),
        (Held(2, known(1, 2, T1).text), 1, known(2, 1), Admission(1, known(2, 1).text, fresh=True)),
    ],
)
def test_what_is_kept_of_who_was_let_in(held, attempt, run, admitted):
    assert admit(SCOPE, attempt, run, held) == admitted


def test_a_run_that_cannot_be_read_is_not_overwritten():
    with pytest.raises(DamagedRecordError, match="which run has held it last in the state of dag/run/task"):
        admit(SCOPE, 2, known(1, 2, T1), Held(2, "of a later version"))


@pytest.mark.parametrize(
    ("held", "attempt", "run", "said"),
    [
        (
            Held(3),
            2,
            None,
            "attempt 2 of dag/run/task may not open its state: attempt 3 has. To let any attempt",
        ),
        (Held(3, known(1, 3, T1).text), 2, known(1, 2, T1), "async-task-state clear dag run task$"),
        (
            Held(1, known(2, 1, T2).text),
            5,
            known(1, 5, T1),
            "it is of a run that was deleted, or an attempt that was replaced, before attempt 1 opened it$",
        ),
    ],
    ids=["attempt", "command", "deleted"],
)
def test_g4_who_is_not_let_in_is_told_why(held, attempt, run, said):
    with pytest.raises(StaleAttemptError, match=said):
        admit(SCOPE, attempt, run, held)


@pytest.mark.parametrize(
    ("scope", "named"),
    [
        (TaskScope("dag", "a run; rm *", "task", 3), "--map-index 3 dag 'a run; rm *' task"),
        (TaskScope("dag", "run", "task", region_id=UUID(int=7)), f"--region-id {UUID(int=7)} dag run task"),
        (AssetScope("an asset"), "'--asset=an asset'"),
        (AssetScope(uri="s3://a"), "--asset-uri=s3://a"),
    ],
    ids=str,
)
def test_g8_the_command_that_lets_one_in_can_be_pasted(scope, named):
    with pytest.raises(StaleAttemptError) as caught:
        admit(scope, 1, None, Held(2))
    assert str(caught.value).endswith(f"remove it: async-task-state clear {named}")


@pytest.mark.parametrize(
    "run",
    [
        Run(),
        Run(UUID(int=7)),
        Run(started=T1),
        Run(started=T1.replace(microsecond=0)),
        known(1, 2, T1, 3),
    ],
    ids=lambda run: run.text,
)
def test_a_run_comes_back_from_its_text(run):
    assert Run.parse(run.text) == run


@pytest.mark.parametrize("text", ["", " ", "x y 1", "  ", f"{UUID(int=7)} {T1.isoformat()} x", "a b c d"])
def test_a_text_that_names_no_run_is_none(text):
    assert Run.parse(text) is None


# what Airflow says


ID = known(1, 1).instance


def dag_run(start_date=T1, clear_number=2, logical_date=None, run_after=T1 - timedelta(seconds=1)):
    return SimpleNamespace(
        start_date=start_date, clear_number=clear_number, logical_date=logical_date, run_after=run_after
    )


@pytest.mark.parametrize(
    ("task_instance", "of", "run"),
    [
        pytest.param({"id": ID}, dag_run(), Run(ID, T1, 2), id="all of it"),
        pytest.param({"id": str(ID)}, dag_run(clear_number=None), Run(ID, T1, 0), id="a string for an id"),
        pytest.param({"id": ID}, None, Run(ID), id="no run"),
        pytest.param({"id": ID}, dag_run(start_date=None), Run(ID), id="no start"),
        pytest.param({"id": ID}, dag_run(logical_date=T1), Run(ID), id="the start of dag.test()"),
        pytest.param({"id": ID}, dag_run(run_after=T1), Run(ID), id="the same without a logical date"),
        pytest.param(
            {"id": ID, "get_template_context": lambda: {"dag_run": dag_run()}},
            None,
            Run(ID, T1, 2),
            id="its context",
        ),
        pytest.param({"id": ID, "get_template_context": dict}, None, Run(ID), id="an empty context"),
        pytest.param({"id": UUID(int=ID.int, version=4)}, dag_run(), Run(None, T1, 2), id="an id by chance"),
        pytest.param({}, dag_run(), Run(None, T1, 2), id="no id"),
        pytest.param({"id": "ti-1"}, None, None, id="an id of another kind"),
        pytest.param({}, None, None, id="nothing"),
    ],
)
def test_a_run_is_known_by_what_airflow_says(task_instance, of, run):
    assert run_of(SimpleNamespace(**task_instance), of) == run


def test_a_start_is_the_same_in_airflows_own_kind_of_time():
    import pendulum  # noqa: PLC0415 - takes a while

    elsewhere = pendulum.instance(T1).in_timezone("Asia/Tokyo")
    run = run_of(SimpleNamespace(id=ID), dag_run(elsewhere))
    assert (run.started, type(run.started), run.text) == (T1, datetime, Run(ID, T1, 2).text)
