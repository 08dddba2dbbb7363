"""What is around an agent fails: the database, the broker's row, the disk, the artifact store."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from orchestrator.tasks.entry import TaskResult
from tests.benchmarks.faults import machine
from tests.integration.orders import SCRIPT, asked, child_at, plan
from tests.integration.stack import PATIENCE_SECONDS, Stack, until, worker

BREAK_OFF = """
    CREATE SEQUENCE once;
    CREATE FUNCTION break_off() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('once') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER breaks_off BEFORE INSERT ON turns FOR EACH ROW WHEN (NEW.number = 2)
        EXECUTE FUNCTION break_off()
"""


@contextmanager
def losing_a_turn(stack: Stack) -> Iterator[None]:
    """Postgres ends the connection that first writes a turn number 2; a sequence knows what is rolled
    back."""
    stack.ledger.run(BREAK_OFF)
    try:
        yield
    finally:
        stack.ledger.run("DROP TRIGGER breaks_off ON turns; DROP FUNCTION break_off; DROP SEQUENCE once")


def test_a_database_that_goes_away_under_an_agent_costs_no_attempt(stack: Stack) -> None:
    with losing_a_turn(stack), worker(stack):
        stack.call(SCRIPT, task_id="t")
        assert stack.ends("t") == "completed"
    (ref,) = stack.ledger.steps("t").values()
    assert stack.ledger.step(ref)["attempt"] == 1
    assert stack.ledger.names(ref) == ["claim", "yield", "claim", "succeed"]
    assert asked(stack, "t") == [1, 2, 2, 3], "the turn that was not kept is asked for again"


def test_a_result_that_can_t_be_put_on_the_branch_is_tried_again_and_says_why(stack: Stack) -> None:
    stack.notes.hold("t.3")
    with worker(stack):
        result = stack.call(SCRIPT, task_id="t")
        child_at(stack, "t", 3)
        (mirror,) = (stack.folder / "mirrors").glob("*.git")
        lock = mirror / "refs/heads/agent/t.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        stack.notes.let_go("t.3")
        (ref,) = stack.ledger.steps("t").values()
        until(lambda: stack.ledger.step(ref)["waiting_on"] == "retry_backoff", "the back-off")
        assert stack.ledger.step(ref)["error"]["code"] == "git-failed"
        assert stack.ledger.names(ref) == ["claim", "retry"]
        lock.unlink()
        stack.ledger.run("UPDATE steps SET not_before = now() WHERE not_before IS NOT NULL")
        stack.healed(lambda: stack.ledger.row("t")["finished_at"], "the end")
        assert result.get(timeout=PATIENCE_SECONDS)["status"] == "completed"


@pytest.mark.parametrize("room", ["artifacts/content", "mirrors"])
def test_what_fails_in_the_merge_alone_is_retried_and_never_raised_to_celery(stack: Stack, room: str) -> None:
    """The patch of the whole task, and the branch's reference, are made by the merge."""
    stack.notes.hold("t.3")
    with worker(stack) as process:
        stack.call(SCRIPT, task_id="t")
        child_at(stack, "t", 3)
        (mirror,) = (stack.folder / "mirrors").glob("*.git")
        inside = {"artifacts/content": stack.folder / room, "mirrors": mirror / "refs/heads/agent"}[room]
        assert not inside.exists()
        inside.touch()  # a file where a folder should be made
        stack.notes.let_go("t.3")
        (ref,) = stack.ledger.steps("t").values()
        until(lambda: stack.ledger.step(ref)["waiting_on"] == "retry_backoff", "the back-off")
        error = stack.ledger.step(ref)["error"]
        expected = {
            "artifacts/content": ("artifact-store-unavailable", "storage"),
            "mirrors": ("git-failed", "resource"),
        }
        assert (error["code"], error["class"]) == expected[room]
        state = TaskResult(ref.step_id, app=stack.wiring.app)
        until(lambda: state.state == "QUEUED", "what Celery hears")
        inside.unlink()
        stack.ledger.run("UPDATE steps SET not_before = now() WHERE not_before IS NOT NULL")
        stack.healed(lambda: stack.ledger.row("t")["finished_at"], "the end")
        assert "raised unexpected" not in process.text()
    assert stack.ledger.row("t")["status"] == "completed"
    assert asked(stack, "t") == [1, 2, 3], "the model is not paid again"
    stack.ledger.assert_consistent("t")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting is root's")
@pytest.mark.parametrize(
    ("disk", "turn", "codes"),
    [
        ("artifacts", 3, {"artifact-store-unavailable"}),
        ("mirrors", 3, {"git-failed", "workspace-io"}),
        ("workspaces", 2, {"disk-full", "git-failed", "workspace-io"}),
    ],
)
def test_a_full_disk_is_waited_for_and_pays_no_reply_twice(
    stack: Stack, disk: str, turn: int, codes: set[str]
) -> None:
    with machine.small_disk(stack.folder / disk) as mounted:
        if not mounted:
            pytest.skip("this account may not mount")
        stack.notes.hold(f"t.{turn}")
        with worker(stack) as process:
            stack.call(SCRIPT, task_id="t")
            child_at(stack, "t", turn)
            ballast = stack.folder / disk / "ballast"
            machine.fill(ballast, 0)
            stack.notes.let_go(f"t.{turn}")
            (ref,) = stack.ledger.steps("t").values()
            until(lambda: stack.ledger.step(ref)["waiting_on"] == "retry_backoff", "the back-off")
            error = stack.ledger.step(ref)["error"]
            assert error["class"] == "storage", error
            assert error["code"] in codes
            if disk == "workspaces":  # what the attempt had there is gone, and no other begins
                assert sorted(at.name for at in ballast.parent.iterdir()) == [".lock", "ballast"]
                stack.ledger.run("UPDATE steps SET not_before = now() WHERE not_before IS NOT NULL")
                stack.healed(lambda: stack.ledger.names(ref).count("retry") == 2, "the second attempt's end")
                error = stack.ledger.step(ref)["error"]
                assert "are left on the worker's disk" in error["message"], error
            ballast.unlink()
            stack.ledger.run("UPDATE steps SET not_before = now() WHERE not_before IS NOT NULL")
            stack.healed(lambda: stack.ledger.row("t")["finished_at"], "the end")
            assert "raised unexpected" not in process.text()
        assert stack.ledger.row("t")["status"] == "completed"
        assert asked(stack, "t") == [1, 2, 3]


def test_a_store_that_is_away_is_no_fault_of_the_agent(stack: Stack) -> None:
    stack.notes.hold("t.3")
    store, away = stack.folder / "artifacts", stack.folder / "artifacts-away"
    with worker(stack):
        stack.call(SCRIPT, task_id="t")
        child_at(stack, "t", 3)
        store.rename(away)
        store.touch()
        stack.notes.let_go("t.3")
        (ref,) = stack.ledger.steps("t").values()
        until(lambda: stack.ledger.step(ref)["waiting_on"] == "retry_backoff", "the back-off")
        error = stack.ledger.step(ref)["error"]
        assert (error["code"], error["class"]) == ("artifact-store-unavailable", "storage")
        store.unlink()
        away.rename(store)
        stack.ledger.run("UPDATE steps SET not_before = now() WHERE not_before IS NOT NULL")
        stack.healed(lambda: stack.ledger.row("t")["finished_at"], "the end")
    assert stack.ledger.row("t")["status"] == "completed"


def test_an_agent_is_stopped_in_time_though_its_heartbeat_hangs_in_postgres(stack: Stack) -> None:
    stack.notes.hold("t.a")
    with worker(stack):
        stack.call(plan({"id": "a"}), task_id="t")
        stack.began("t.a")
        with stack.ledger.engine.connect() as holder:
            holder.execute(text("SELECT 1 FROM steps WHERE task_id = 't' FOR UPDATE"))
            held_at = time.monotonic()
            (stopped,) = until(lambda: stack.notes.read("stopped"), "the stop")
            assert stopped["reason"] == "lease_lost"
            assert time.monotonic() - held_at < 25, "the lock is waited for longer"
        stack.notes.let_go("t.a")
        stack.healed(lambda: stack.ledger.row("t")["finished_at"], "the end")
    assert stack.ledger.row("t")["status"] == "completed"
