"""A task's deadline, and the longest that it may take: what waits fails at once, what runs is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.commands import answer, intervene
from orchestrator.core.bounds import Bound
from orchestrator.core.errors import Conflict
from orchestrator.db import bounds, claims, transitions
from orchestrator.db.claims import Beat, Claimed, Refusal, Why
from orchestrator.tasks.entry import TaskFailed
from tests.integration.ledger import LEASE, TENANT, Ledger, step
from tests.integration.stack import PATIENCE_SECONDS, Stack, until, worker

GRACE = timedelta(seconds=20)
AGO = timedelta(seconds=1)


def say(ledger: Ledger, verb: Any, *subject: Any) -> Any:
    return ledger.do(lambda c: verb(c, TENANT, *(subject or ("t",)), by="me"))


def meets_deadline(ledger: Ledger, ago: timedelta = AGO, task: str = "t") -> None:
    ledger.run(
        "UPDATE tasks SET created_at = now() - interval '1 day', deadline = now() - :ago WHERE id = :task",
        ago=ago,
        task=task,
    )


def sweep(ledger: Ledger) -> int:
    """As the sweep does: each step in a transaction of its own; how many it ended."""
    late = ledger.do(lambda c: bounds.late_steps(c, GRACE))
    return sum(ledger.do(lambda c, one=one: bounds.end_late(c, one.step)) is not None for one in late)  # type: ignore[misc]


def outcome(ledger: Ledger) -> tuple[str, str, bool]:
    row = ledger.row()
    return row["status"], row["outcome"]["reason"], row["outcome"]["recoverable"]


# --- what doesn't run ---------------------------------------------------------------------------------------


def test_what_waits_fails_at_once_and_with_it_the_workflow(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"), step("c", "a"))
    ledger.ask(ledger.take(refs["a"]))
    assert sweep(ledger) == 0, "no bound, no end"
    meets_deadline(ledger)
    assert sweep(ledger) == 1
    assert ledger.statuses() == {"a": "failed", "b": "cancelled", "c": "cancelled"}
    assert outcome(ledger) == ("failed", "deadline-exceeded", False)
    assert ledger.rows("SELECT phase FROM workflows") == [{"phase": "failed"}]
    assert ledger.names(refs["a"]) == ["claim", "ask", "fail"], "an ordinary event of the table"
    assert ledger.rows("SELECT outcome FROM attempts WHERE ended_at IS NOT NULL") == [{"outcome": "failed"}]
    with pytest.raises(Conflict, match="needs no answer any more"):
        say(ledger, answer.answer, ledger.question(refs["a"])["id"], "left")
    assert sweep(ledger) == 0
    ledger.assert_consistent()


@pytest.mark.parametrize("start", [True, False])
def test_a_task_that_is_paused_or_was_never_started_has_a_deadline_too(ledger: Ledger, start: bool) -> None:
    ledger.task("t", step("a"), step("b", "a"), start=start)
    if start:
        say(ledger, intervene.pause)
    meets_deadline(ledger)
    assert sweep(ledger) == 1
    assert outcome(ledger) == ("failed", "deadline-exceeded", False)
    ledger.assert_consistent()


def test_after_the_deadline_nothing_is_claimed_even_before_a_sweep(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    meets_deadline(ledger)
    refused = ledger.claim(ref)
    assert isinstance(refused, Refusal)
    assert refused.why is Why.LATER
    ledger.run("UPDATE tasks SET deadline = now() + interval '1 hour'")
    ledger.take(ref)


def test_a_deadline_that_had_passed_when_the_task_was_created_does_not_bind(ledger: Ledger) -> None:
    ref = ledger.task("t", deadline="2024-12-31T23:59:59Z")["work"]
    assert [one["code"] for one in ledger.row()["warnings"]] == ["deadline-in-past", "repository-defaulted"]
    assert sweep(ledger) == 0
    claimed = ledger.take(ref)
    beat = ledger.do(lambda c: claims.heartbeat(c, ref, claimed.fence, LEASE, moved=True))
    assert beat is not None
    assert beat.exceeded is None
    ledger.succeed(claimed)
    assert ledger.row()["status"] == "completed"


def test_a_task_that_is_being_cancelled_ends_cancelled(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"))
    ledger.take(refs["a"])
    say(ledger, intervene.cancel)
    meets_deadline(ledger, GRACE * 2)
    assert sweep(ledger) == 0
    assert ledger.statuses() == {"a": "running", "b": "cancelled"}


# --- what runs ----------------------------------------------------------------------------------------------


def test_what_runs_is_told_by_its_heartbeat_and_ended_without_its_word_after_the_grace(
    ledger: Ledger,
) -> None:
    refs = ledger.task("t", step("a"), step("b"), step("c", "a"))
    claimed = ledger.take(refs["a"])
    meets_deadline(ledger)
    beat = ledger.do(lambda c: claims.heartbeat(c, refs["a"], claimed.fence, LEASE, moved=True))
    assert isinstance(beat, Beat)
    assert beat.exceeded is Bound.DEADLINE
    assert sweep(ledger) == 1
    assert ledger.statuses() == {"a": "running", "b": "failed", "c": "cancelled"}
    assert sweep(ledger) == 0, "the worker has its grace"
    meets_deadline(ledger, GRACE)
    assert sweep(ledger) == 1
    assert ledger.statuses()["a"] == "failed"
    assert ledger.succeed(claimed) is None, "its fence is worth nothing any more"
    assert outcome(ledger) == ("failed", "deadline-exceeded", False)
    assert not ledger.rows("SELECT 1 FROM attempts WHERE ended_at IS NULL")
    ledger.assert_consistent()


def test_what_is_done_before_it_was_told_counts(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task()["work"])
    meets_deadline(ledger)
    ledger.succeed(claimed)
    assert ledger.row()["status"] == "completed"


def test_a_step_that_gives_back_after_the_deadline_fails_in_the_next_sweep(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task()["work"])
    meets_deadline(ledger)
    ledger.do(lambda c: transitions.give_back(c, claimed.step, claimed.fence, "slice"))
    assert not isinstance(ledger.claim(claimed.step), Claimed)
    assert sweep(ledger) == 1
    ledger.assert_consistent()


def test_a_task_that_goes_on_after_failures_does_not_go_on_after_its_deadline(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"), step("c"), step("d", "c"), on_step_failure="continue")
    ledger.succeed(ledger.take(refs["a"]))
    ledger.fail(ledger.take(refs["b"]))
    meets_deadline(ledger)
    assert sweep(ledger) == 1
    assert ledger.statuses() == {"a": "completed", "b": "failed", "c": "failed", "d": "cancelled"}
    assert outcome(ledger) == ("failed", "deadline-exceeded", False), "not completed in part, not no-luck"
    ledger.assert_consistent()


# --- how long it takes --------------------------------------------------------------------------------------


def test_the_duration_counts_from_the_first_claim_and_waiting_is_part_of_it(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b", "a"), budget={"max_duration": "30m"})
    assert ledger.row()["max_duration"] == timedelta(minutes=30)
    ledger.run("UPDATE tasks SET created_at = now() - interval '1 day'")
    assert sweep(ledger) == 0, "it has not started"
    ledger.ask(ledger.take(refs["a"]))
    ledger.run("UPDATE tasks SET started_at = now() - interval '29 minutes'")
    assert sweep(ledger) == 0
    ledger.run("UPDATE tasks SET started_at = now() - interval '30 minutes'")
    assert sweep(ledger) == 1
    assert outcome(ledger) == ("failed", "duration-exceeded", True)


def test_a_retry_has_a_duration_of_its_own_and_none_after_the_deadline(ledger: Ledger) -> None:
    ref = ledger.task("t", budget={"max_duration": 60})["work"]
    ledger.ask(ledger.take(ref))
    ledger.run("UPDATE tasks SET started_at = now() - interval '1 hour'")
    assert sweep(ledger) == 1
    say(ledger, intervene.retry)
    again = ledger.take(ledger.steps()["work"])
    assert sweep(ledger) == 0
    ledger.fail(again)
    meets_deadline(ledger)
    with pytest.raises(Conflict) as refused:
        say(ledger, intervene.retry)
    assert refused.value.code == "deadline-passed"
    ledger.assert_consistent()


def test_among_a_hundred_thousand_bounded_tasks_the_late_one_is_found_by_the_indexes(ledger: Ledger) -> None:
    ledger.task("t")
    ledger.run(
        "INSERT INTO tasks (id, root_id, title, description, status, started_at, deadline, max_duration)"
        " SELECT 'x' || i, 'x' || i, 'a', 'a', 'running', now(), now() + interval '1 day', interval '1 day'"
        " FROM generate_series(1, 100000) AS i"
    )
    meets_deadline(ledger)
    ledger.run("ANALYZE tasks")
    with ledger.engine.connect() as connection:
        (late,) = bounds.late_steps(connection, GRACE)
        plan = "\n".join(
            connection.execute(
                text(f"EXPLAIN {bounds._LATE.text}"), {"grace": GRACE.total_seconds()}
            ).scalars()
        )
    assert late.step.task_id == "t"
    assert "ix_tasks_deadline" in plan
    assert "ix_tasks_duration" in plan
    assert "Seq Scan on tasks" not in plan


def test_a_bound_that_ended_a_step_fails_the_task_whatever_the_clock_says_at_its_end(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b", "a"), on_step_failure="continue")
    claimed = ledger.take(refs["a"])
    meets_deadline(ledger)
    for late in ledger.do(lambda c: bounds.late_steps(c, timedelta(hours=1))):
        assert ledger.do(lambda c, late=late: bounds.end_late(c, late.step)) is not None  # type: ignore[misc]
    ledger.run("UPDATE tasks SET deadline = NULL WHERE id = 't'")
    assert ledger.succeed(claimed)
    assert ledger.row()["status"] == "failed"
    ledger.assert_consistent()


# --- with workers -------------------------------------------------------------------------------------------


def test_a_running_agent_stops_and_its_caller_hears_the_code(stack: Stack) -> None:
    steps = [{"id": "a", "description": "a", "spec": {"do": "edit"}}, {"id": "b", "description": "b"}]
    stack.notes.hold("t.a.1")
    with worker(stack):
        result = stack.call({"description": "Something", "steps": steps}, task_id="t")
        stack.began("t.a.1")
        meets_deadline(stack.ledger)
        until(lambda: stack.ledger.statuses("t")["a"] == "failed", "the heartbeat's word")
        with pytest.raises(TaskFailed) as failed:
            result.get(timeout=PATIENCE_SECONDS)
        assert failed.value.args[0] == "deadline-exceeded"
        (ref, _) = stack.ledger.steps("t").values()
        assert stack.ledger.names(ref) == ["claim", "fail"]
        kept = stack.ledger.rows("SELECT name FROM artifacts WHERE step_id = :step", step=ref.step_id)
        assert kept == [{"name": "a.partial.patch"}], "what it had changed by then"
        stack.ledger.assert_consistent("t")


def test_an_agent_that_does_not_listen_is_ended_by_the_sweep_and_its_late_word_is_lost(stack: Stack) -> None:
    steps = [{"id": "a", "description": "a", "spec": {"do": "deaf", "seconds": 6}}]
    budget = {"max_duration": 1}
    with worker(stack):
        result = stack.call({"description": "Something", "steps": steps, "budget": budget}, task_id="t")
        stack.began("t.a")
        stack.healed(lambda: stack.ledger.row("t")["finished_at"], "the end")
        with pytest.raises(TaskFailed) as failed:
            result.get(timeout=PATIENCE_SECONDS)
        assert failed.value.args[0] == "duration-exceeded"
        until(lambda: stack.notes.read("done"), "the agent's own end")
    (ref,) = stack.ledger.steps("t").values()
    assert stack.ledger.names(ref) == ["claim", "fail"]
    took = stack.ledger.row("t")
    assert took["finished_at"] - took["started_at"] >= timedelta(seconds=2), "the duration and the grace"
    stack.ledger.assert_consistent("t")
