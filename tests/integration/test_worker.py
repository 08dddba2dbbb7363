"""Worker processes that die, drain, and come back; what they leave is carried on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import chord
from celery.exceptions import Ignore
from sqlalchemy import text

from orchestrator.commands import answer, intervene
from orchestrator.core.states import Status
from orchestrator.db.sql import StepRef
from orchestrator.queues.app import create_app
from orchestrator.tasks.entry import TaskResult
from orchestrator.tasks.step import _ignore
from tests.integration.repositories import commit, git, repository
from tests.integration.stack import PATIENCE_SECONDS, Stack, WorkerProcess, until, worker


def plan(*steps: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": "Something",
        "steps": [{"description": f"Do {step['id']}", **step} for step in steps],
    }


SCRIPT = plan({"id": "a", "spec": {"do": "script"}})


def asked(stack: Stack, task_id: str) -> list[int]:
    """The turns that a model was asked for."""
    return [note["turn"] for note in stack.notes.read("asked") if note["task"] == task_id]


def child_at(stack: Stack, task_id: str, turn: int) -> int:
    """The pid of the pool's child that asks the model for this turn."""
    found = until(
        lambda: [n for n in stack.notes.read("asked") if (n["task"], n["turn"]) == (task_id, turn)],
        f"turn {turn}",
    )
    return int(found[-1]["pid"])


def end(process: WorkerProcess) -> None:
    process.process.send_signal(signal.SIGTERM)
    process.process.wait(PATIENCE_SECONDS)


def agents(stack: Stack) -> list[tuple[str, str | None]]:
    found = stack.ledger.rows("SELECT status, step_id FROM agents ORDER BY id")
    return [(row["status"], row["step_id"]) for row in found]


def test_after_kill_9_in_a_step_another_attempt_goes_on_from_the_last_finished_turn(stack: Stack) -> None:
    stack.notes.hold("killed.2")
    result = stack.call(SCRIPT, task_id="killed")
    with worker(stack, pool="prefork", slots=2) as process:
        child = child_at(stack, "killed", 2)
        assert child != process.process.pid
        os.kill(child, signal.SIGKILL)
        stack.notes.let_go("killed.2")
        stack.healed(lambda: stack.ledger.row("killed")["finished_at"], "the end")
        assert result.get(timeout=PATIENCE_SECONDS)["status"] == "completed"
    assert asked(stack, "killed") == [1, 2, 2, 3], "the finished turn was not asked for again"
    (step,) = stack.ledger.steps("killed").values()
    assert (stack.ledger.step(step)["attempt"], stack.ledger.step(step)["fence"]) == (2, 2)
    tried = stack.ledger.rows("SELECT outcome FROM attempts ORDER BY number")
    assert [row["outcome"] for row in tried] == ["lease_lost", "completed"]
    turns = stack.ledger.rows("SELECT number, fence FROM turns ORDER BY id")
    assert [(row["number"], row["fence"]) for row in turns] == [(1, 1), (2, 2), (3, 2)]
    expired, _ = stack.ledger.rows(
        "SELECT extract(epoch FROM at - lag(at) OVER (ORDER BY number)) AS after FROM events"
        " WHERE name IN ('claim', 'expire') ORDER BY number"
    )[1:]
    assert expired["after"] < 4, "the lease is 2 s"
    stack.ledger.assert_consistent("killed")


def test_a_worker_that_is_told_to_end_gives_its_step_back_at_a_turn_s_end(stack: Stack) -> None:
    stack.notes.hold("drained.2")
    result = stack.call(SCRIPT, task_id="drained")
    with worker(stack, pool="prefork", slots=2) as process:
        child_at(stack, "drained", 2)
        assert min(agents(stack))[0] == "busy"
        end(process)
    (step,) = stack.ledger.steps("drained").values()
    row = stack.ledger.step(step)
    assert (row["status"], row["attempt"], row["given_back"]) == ("queued", 1, True)
    assert {status for status, _ in agents(stack)} == {"released"}
    stack.notes.let_go("drained.2")
    with worker(stack, pool="threads"):
        assert result.get(timeout=PATIENCE_SECONDS)["status"] == "completed"
    assert asked(stack, "drained") == [1, 2, 2, 3]
    assert stack.ledger.step(step)["attempt"] == 1, "giving back costs no attempt"
    assert stack.ledger.names(step) == ["claim", "yield", "claim", "succeed"]
    assert stack.ledger.step(step)["published_by"] == "wake", "no sweep was needed"
    stack.ledger.assert_consistent("drained")


def test_a_slot_is_known_from_its_worker_s_start_to_its_end(stack: Stack) -> None:
    stack.notes.hold("slot.work")
    stack.call("Something", task_id="slot")
    with worker(stack, pool="threads", slots=2) as process:
        stack.began("slot.work")
        (step,) = stack.ledger.steps("slot").values()
        assert until(lambda: ("busy", step.step_id) in agents(stack))
        (row,) = stack.ledger.rows("SELECT * FROM agents WHERE status = 'busy'")
        assert row["id"] == stack.ledger.step(step)["agent_id"]
        assert row["id"].startswith(f"{process.name}/")
        assert row["pid"] == process.process.pid
        stack.notes.let_go("slot.work")
        stack.ends("slot")
        until(lambda: {status for status, _ in agents(stack)} == {"idle"}, "idle")
        process.process.kill()
        process.process.wait()
    until(lambda: stack.sweep().agents_lost, "a silent worker's slots")
    assert {status for status, _ in agents(stack)} == {"offline"}


def test_a_question_outlives_all_workers_and_its_chord_goes_on_with_the_same_id(stack: Stack) -> None:
    """The task's own chord, and a user's chord that the task is a member of."""
    request = plan({"id": "a", "spec": {"do": "ask"}}, {"id": "b"}, {"id": "c", "needs": ["a", "b"]})
    execute_task = stack.registered.execute_task
    header = [execute_task.s(request).set(task_id="asking"), execute_task.s("Fine").set(task_id="fine")]
    result = chord(header, execute_task.s("Join").set(task_id="join"), app=stack.wiring.app).apply_async()
    with worker(stack, slots=2):
        until(lambda: stack.ledger.rows("SELECT 1 FROM questions"), "the question")
        stack.ends("fine")
    assert not stack.ledger.rows("SELECT 1 FROM tasks WHERE id = 'join'")
    with worker(stack, slots=2):
        stack.command(answer.answer, "asking", {"choice": 2})
        assert result.get(timeout=PATIENCE_SECONDS)["status"] == "completed"
    assert TaskResult("asking", app=stack.wiring.app).state == "SUCCESS"
    assert [one["task_id"] for one in stack.ledger.row("join")["previous"]] == ["asking", "fine"]
    steps = stack.ledger.steps("asking")
    assert stack.ledger.step(steps["a"])["result"] == {"answer": "right"}
    assert stack.ledger.step(steps["a"])["attempt"] == 1
    assert stack.ledger.step(steps["c"])["published_by"] == "canvas", "the chord went on by itself"
    assert stack.ledger.question(steps["a"])["answered_by"] == "me"
    stack.ledger.assert_consistent("asking")


def test_tasks_that_wait_for_people_hold_no_slot(stack: Stack) -> None:
    asking = [stack.call(plan({"id": "a", "spec": {"do": "ask"}}), task_id=f"ask{n}") for n in range(60)]
    with worker(stack, slots=1):
        until(
            lambda: (
                stack.ledger.rows("SELECT count(*) AS n FROM tasks WHERE status = 'pending_input'")[0]["n"]
                == 60
            ),
            "60 questions",
        )
        others = [stack.call("Something", task_id=f"other{n}") for n in range(12)]
        for other in others:
            assert other.get(timeout=PATIENCE_SECONDS)["status"] == "completed"
        assert not stack.ledger.rows("SELECT 1 FROM steps WHERE lease_until IS NOT NULL")
        for number in (0, 59):
            stack.command(answer.answer, f"ask{number}", "left")
            assert asking[number].get(timeout=PATIENCE_SECONDS)["status"] == "completed"
        found = stack.sweep()
    assert found.quiet, found


def test_a_cancel_stops_a_running_agent_at_its_next_heartbeat(stack: Stack) -> None:
    stack.notes.hold("stopped.work")
    result = stack.call("Something", task_id="stopped")
    with worker(stack, slots=1):
        stack.began("stopped.work")
        done = stack.command(intervene.cancel, "stopped", reason="enough")
        assert not done.applied
        assert stack.ends("stopped") == "cancelled"
        until(lambda: result.state == "REVOKED", "REVOKED")
    assert [note["reason"] for note in stack.notes.read("stopped")] == ["cancel"]
    (step,) = stack.ledger.steps("stopped").values()
    assert stack.ledger.names(step) == ["claim", "cancel"]
    stack.ledger.assert_consistent("stopped")


def test_a_pause_gives_the_slot_back_and_a_resume_goes_on_with_the_attempt(stack: Stack) -> None:
    stack.notes.hold("paused.work")
    result = stack.call("Something", task_id="paused")
    with worker(stack, slots=1):
        stack.began("paused.work")
        stack.command(intervene.pause, "paused")
        until(lambda: result.state == "pending_input", "the pause")
        assert not stack.ledger.rows("SELECT 1 FROM steps WHERE lease_until IS NOT NULL")
        assert stack.ledger.rows("SELECT state FROM interventions") == [{"state": "applied"}]
        stack.notes.let_go("paused.work")
        stack.command(intervene.resume, "paused")
        assert result.get(timeout=PATIENCE_SECONDS)["status"] == "completed"
    (step,) = stack.ledger.steps("paused").values()
    assert stack.ledger.step(step)["attempt"] == 1
    stack.ledger.assert_consistent("paused")


def test_a_full_installation_hands_its_slot_to_the_next_without_a_sweep(stack: Stack) -> None:
    few = Stack(
        stack.database_url,
        stack.redis_url,
        stack.folder,
        {"ORCHESTRATOR_MAX_CONCURRENT_WORKFLOWS": "1"},
    )
    for number in range(3):
        few.notes.hold(f"q{number}.work")
        few.call("Something", task_id=f"q{number}")
    with worker(few, slots=3):
        until(
            lambda: few.ledger.rows("SELECT count(*) AS n FROM steps WHERE waiting_on = 'slot'")[0]["n"] == 2,
            "two that wait",
        )
        assert len(few.notes.read("began")) == 1
        for number in range(3):
            few.notes.let_go(f"q{number}.work")
        for number in range(3):
            assert few.ends(f"q{number}") == "completed"
    few.close()


def test_a_task_that_runs_again_replaces_what_it_pushed_and_nobody_else_s_branch(
    stack: Stack, tmp_path: Path
) -> None:
    source = repository(tmp_path / "source", {"README.md": "A project.\n"})
    asked = {**SCRIPT, "repository": {"path": str(source), "push": True}}
    with worker(stack):
        stack.call(asked, task_id="t")
        assert stack.ends("t") == "completed"
        first = git(source, "rev-parse", "agent/t")
        assert first == stack.ledger.row("t")["tip_commit"]
        stack.command(intervene.retry, "t")
        assert stack.ends("t") == "completed"
        second = git(source, "rev-parse", "agent/t")
        assert second == stack.ledger.row("t")["tip_commit"] != first
        theirs = commit(source, {"README.md": "Changed.\n"})
        git(source, "branch", "--force", "agent/t", theirs)
        stack.command(intervene.retry, "t")
        assert stack.ends("t") == "failed"
    assert git(source, "rev-parse", "agent/t") == theirs
    assert stack.ledger.rows("SELECT error ->> 'code' AS code FROM steps WHERE status = 'failed'") == [
        {"code": "ref-moved"}
    ]


# --- what is around the agent fails -------------------------------------------------------------------------


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
        assert stack.ledger.step(ref)["error"]["code"] == "artifact-store-unavailable"
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
            assert time.monotonic() - held_at < 5, "the lock is waited for much longer"
        stack.notes.let_go("t.a")
        stack.healed(lambda: stack.ledger.row("t")["finished_at"], "the end")
    assert stack.ledger.row("t")["status"] == "completed"


def test_a_broker_that_is_away_makes_no_failure_of_a_parked_step() -> None:
    app = create_app(
        "redis://127.0.0.1:1/0",
        result_backend_transport_options={"retry_policy": {"max_retries": 0}},
        broker_connection_max_retries=0,
    )

    def step() -> None: ...

    task = app.task(name="step", shared=False)(step)
    task.push_request(id="s")
    with pytest.raises(Ignore):
        _ignore(task, StepRef("default", "t", "w", "s"), Status.PENDING_INPUT)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a process's memory is read from /proc")
def test_a_slot_needs_no_more_memory_the_more_tasks_it_has_parked(stack: Stack) -> None:
    def park(first: int, count: int) -> int:
        """Pages of the pool's child after that."""
        for number in range(first, first + count):
            stack.call(plan({"id": "a", "spec": {"do": "ask"}}), task_id=f"m{number}")
        waiting = "SELECT count(*) AS n FROM questions"
        until(lambda: stack.ledger.rows(waiting)[0]["n"] == first + count, "all questions")
        (agent,) = stack.ledger.rows("SELECT pid FROM agents")
        return int(Path(f"/proc/{agent['pid']}/statm").read_text().split()[1])

    with worker(stack, pool="prefork", slots=1):
        before = park(0, 25)
        after = park(25, 40)
    megabytes = (after - before) * os.sysconf("SC_PAGE_SIZE") / 1024**2
    assert megabytes < 12, "Celery's copies of tracebacks pile up"
