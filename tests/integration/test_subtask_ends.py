"""Subtasks that are run again, and what becomes of them when their parent ends."""

from __future__ import annotations

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.commands import intervene
from orchestrator.commands.subtask import NotStarted
from orchestrator.core.states import Status
from orchestrator.db import bounds as time_bounds, journal, lineage
from orchestrator.db.claims import Claimed
from orchestrator.db.journal import Scope
from tests.integration.ledger import TENANT, Ledger, step
from tests.integration.subtask_rows import (
    asked,
    complete,
    ends,
    ids,
    parent_with,
    park,
    start,
    wake,
)

# --- a subtask that is run again ----------------------------------------------------------------------------


def finish_call(ledger: Ledger, claimed: Claimed, call: str) -> None:
    scope = Scope(claimed.step, claimed.fence, claimed.attempt, claimed.conflicts)

    def work(connection: Any) -> None:
        journal.begin_call(connection, scope, 1, call, "start_subtask", {})
        journal.finish_call(connection, scope, call, "told", False, None)

    ledger.do(work)


def test_a_subtask_that_is_retried_while_its_parent_waits_is_waited_for_again(ledger: Ledger) -> None:
    claimed, (one, two) = parent_with(ledger, "a", "b")
    ledger.fail(ledger.take(ledger.steps(one)["work"]))
    ledger.do(lambda c: intervene.retry(c, TENANT, one, by="me"))
    complete(ledger, two)
    assert wake(ledger, two) is None
    complete(ledger, one)
    assert wake(ledger, one) == claimed.step
    found = ends(ledger, claimed)["a"]
    assert found is not None
    assert found.status is Status.COMPLETED, "the run that counts is the latest"


def test_a_subtask_that_is_retried_before_its_parent_has_read_it_lives_again(ledger: Ledger) -> None:
    claimed, (child,) = parent_with(ledger, "a")
    ledger.fail(ledger.take(ledger.steps(child)["work"]))
    assert wake(ledger, child)
    ledger.do(lambda c: intervene.retry(c, TENANT, child, by="me"))
    again = ledger.take(claimed.step)
    assert ends(ledger, again) == {"a": None}
    assert park(ledger, again) is not None
    assert ledger.step(claimed.step)["waiting_on"] == "subtask"
    complete(ledger, child)
    assert wake(ledger, child) == claimed.step


def test_a_subtask_that_is_retried_after_its_parent_was_told_stands_alone(ledger: Ledger) -> None:
    claimed, (child,) = parent_with(ledger, "a")
    ledger.fail(ledger.take(ledger.steps(child)["work"]))
    wake(ledger, child)
    again = ledger.take(claimed.step)
    finish_call(ledger, again, "a")
    ledger.do(lambda c: intervene.retry(c, TENANT, child, by="me"))
    (later,) = ids(start(ledger, again, asked("b")))
    park(ledger, again)
    complete(ledger, later)
    assert wake(ledger, later) == claimed.step, "it doesn't wait for what it was told before"
    assert ledger.do(lineage.left_behind) == []
    ledger.succeed(ledger.take(claimed.step))
    assert ledger.do(lineage.left_behind) == []
    complete(ledger, child)
    assert wake(ledger, child) is None


# --- ends of a parent ---------------------------------------------------------------------------------------


def test_a_cancel_ends_what_is_below_in_the_same_transaction(ledger: Ledger) -> None:
    _, (one, two) = parent_with(ledger, "a", "b")
    running = ledger.take(ledger.steps(one)["work"])
    (deep,) = ids(start(ledger, running, asked("a")))
    done = ledger.do(lambda c: intervene.cancel(c, TENANT, "p", by="me", reason="enough"))
    assert "and 3 subtasks with it" in done.message
    assert {task: ledger.row(task)["status"] for task in ("p", two, deep)} == dict.fromkeys(
        ("p", two, deep), "cancelled"
    )
    assert ledger.row(one)["cancel_requested_at"] is not None, "it runs, and is told by its heartbeat"
    assert ledger.row(deep)["outcome"] == {"type": "cancelled", "reason": "enough"}
    assert ledger.row(deep)["finished_at"] < ledger.row("p")["finished_at"], "children first"
    assert {task.task_id for task in done.publish.awaited} == {two, deep}
    for task in ("p", one, two, deep):
        ledger.assert_consistent(task)


def test_after_a_cancel_nothing_below_is_started(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    ledger.do(lambda c: intervene.cancel(c, TENANT, "p", by="me"))
    with pytest.raises(NotStarted, match="about to end"):
        start(ledger, claimed, asked("a"))


def test_a_cancel_that_races_the_start_leaves_no_live_subtask(ledger: Ledger) -> None:
    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            claimed = ledger.take(ledger.task(f"p{number}")["work"])

            def begin(claimed: Claimed = claimed) -> None:
                with contextlib.suppress(NotStarted):
                    start(ledger, claimed, asked("a", "b"))

            def cancel(task_id: str = f"p{number}") -> None:
                ledger.do(lambda c: intervene.cancel(c, TENANT, task_id, by="me"))

            for job in [pool.submit(work) for work in random.Random(number).sample([begin, cancel], 2)]:
                job.result()
    assert ledger.rows("SELECT id FROM tasks WHERE parent_id IS NOT NULL AND finished_at IS NULL") == []


def test_a_pause_and_a_resume_take_the_subtasks_along(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    (one,) = ids(start(ledger, claimed, asked("a")))
    ledger.do(lambda c: intervene.pause(c, TENANT, "p", by="me"))
    assert ledger.row(one)["waiting_on"] == "paused"
    assert start(ledger, claimed, asked("b")) == (), "nothing is to be published yet"
    assert [
        row["waiting_on"] for row in ledger.rows("SELECT waiting_on FROM tasks WHERE parent_id = 'p'")
    ] == [
        "paused",
        "paused",
    ]
    park(ledger, claimed)
    done = ledger.do(lambda c: intervene.resume(c, TENANT, "p", by="me"))
    assert len(done.publish.released) == 2
    assert {row["status"] for row in ledger.rows("SELECT status FROM tasks WHERE parent_id = 'p'")} == {
        "queued"
    }
    for row in ledger.rows("SELECT id FROM tasks"):
        ledger.assert_consistent(row["id"])


def test_a_step_that_fails_for_good_forsakes_its_live_subtasks(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("p")["work"])
    one, two = ids(start(ledger, claimed, asked("a", "b")))
    complete(ledger, two)
    failed = ledger.fail(claimed)
    assert failed is not None
    assert [task.task_id for task in failed.settled.forsaken] == [one]
    assert [task.task_id for task in ledger.do(lineage.left_behind)] == [one], "if that shell dies now"
    ledger.do(lambda c: intervene.cancel(c, TENANT, one, by="orchestrator"))
    assert ledger.do(lineage.left_behind) == []


def test_a_parent_that_waits_past_its_time_fails_and_forsakes_them(ledger: Ledger) -> None:
    claimed, (child,) = parent_with(ledger, "a", budget={"max_duration": "1h"})
    ledger.run("UPDATE tasks SET started_at = now() - interval '2 hours' WHERE id = 'p'")
    (late,) = ledger.do(lambda c: time_bounds.late_steps(c, timedelta(0)))
    ended = ledger.do(lambda c: time_bounds.end_late(c, late.step))
    assert ended is not None
    assert (late.step, [task.task_id for task in ended.settled.forsaken]) == (claimed.step, [child])


def test_of_two_steps_that_one_fails_ends_the_other_s_subtasks(ledger: Ledger) -> None:
    refs = ledger.task("p", step("a"), step("b"))
    waits, breaks = ledger.take(refs["a"]), ledger.take(refs["b"])
    (child,) = ids(start(ledger, waits, asked("a")))
    park(ledger, waits)
    failed = ledger.fail(breaks)
    assert failed is not None
    assert [task.task_id for task in failed.settled.forsaken] == [child]
    assert ledger.row("p")["status"] == "failed"
