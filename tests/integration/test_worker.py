"""Worker processes that die, drain, and come back; what they leave is carried on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from celery import chord
from celery.exceptions import Ignore

from orchestrator.commands import answer, intervene
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.states import Status
from orchestrator.core.verdict import Broke, Done, StopReason, Verdict, Yielded
from orchestrator.db.sql import StepRef
from orchestrator.queues.app import create_app
from orchestrator.tasks.entry import TaskResult
from orchestrator.tasks.step import StepFailed, _ignore, _tell
from tests.integration.orders import SCRIPT, agents, asked, child_at, end, plan
from tests.integration.repositories import commit, git, path_without_bubblewrap, repository
from tests.integration.stack import PATIENCE_SECONDS, Stack, until, worker


def test_after_kill_9_in_a_step_another_attempt_goes_on_from_the_last_finished_turn(stack: Stack) -> None:
    up = "SELECT clock_timestamp() - pg_postmaster_start_time() > interval '4 s' AS long"
    until(lambda: stack.ledger.rows(up)[0]["long"], "a Postgres after whose outage no attempt is spared")
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


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_end_gives_its_step_back_at_a_turn_s_end(
    stack: Stack, by: signal.Signals
) -> None:
    stack.notes.hold("drained.2")
    result = stack.call(SCRIPT, task_id="drained")
    with worker(stack, pool="prefork", slots=2) as process:
        child_at(stack, "drained", 2)
        assert min(agents(stack))[0] == "busy"
        end(process, by)
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


def test_a_worker_ends_at_a_signal_wherever_its_main_thread_is(stack: Stack) -> None:
    """This one is told amid its pool's submission, under a lock that the pool's end needs as well."""
    stack.call("Something", task_id="soon")
    with worker(stack, pool="threads", app="tests.integration.interrupted") as process:
        process.process.wait(PATIENCE_SECONDS)
    with worker(stack):
        assert stack.ends("soon") == "completed"
    stack.ledger.assert_consistent("soon")


def test_a_reply_that_ends_before_the_worker_must_is_kept(stack: Stack) -> None:
    stack.notes.hold("kept.2")
    result = stack.call(SCRIPT, task_id="kept")
    with worker(stack, pool="prefork", slots=1) as process:
        child_at(stack, "kept", 2)
        process.process.send_signal(signal.SIGTERM)
        time.sleep(1.5)  # of the four seconds in which it may still end
        stack.notes.let_go("kept.2")
        process.process.wait(PATIENCE_SECONDS)
    with worker(stack):
        assert result.get(timeout=PATIENCE_SECONDS)["status"] == "completed"
    assert asked(stack, "kept") == [1, 2, 3]
    (step,) = stack.ledger.steps("kept").values()
    assert stack.ledger.names(step) == ["claim", "yield", "claim", "succeed"]


def test_a_reply_longer_than_a_slice_is_waited_for_and_paid_once(stack: Stack) -> None:
    short = Stack(stack.database_url, stack.redis_url, stack.folder, {"ORCHESTRATOR_SLICE": "PT0.2S"})
    for turn in (1, 2):
        short.notes.hold(f"sliced.{turn}")
    short.call(SCRIPT, task_id="sliced")
    with worker(short):
        for turn in (1, 2):
            child_at(short, "sliced", turn)
            time.sleep(1.5)  # several looks at the clock, which must not cut it
            short.notes.let_go(f"sliced.{turn}")
        assert short.ends("sliced") == "completed"
    assert asked(short, "sliced") == [1, 2, 3]
    assert short.ledger.rows("SELECT count(*) AS n FROM usage") == [{"n": 3}]
    (step,) = short.ledger.steps("sliced").values()
    assert short.ledger.names(step)[:4] == ["claim", "yield", "claim", "yield"]
    assert short.ledger.step(step)["attempt"] == 1
    short.ledger.assert_consistent("sliced")
    short.close()


def test_a_pause_waits_for_the_turn_s_end_and_a_cancel_does_not(stack: Stack) -> None:
    with worker(stack):
        stack.notes.hold("p.2")
        stack.call(SCRIPT, task_id="p")
        child_at(stack, "p", 2)
        stack.command(intervene.pause, "p")
        heard = until(
            lambda: stack.ledger.rows("SELECT * FROM interventions WHERE state = 'acknowledged'"), "an ear"
        )
        assert heard[0]["acknowledged_at"] > heard[0]["requested_at"]
        assert heard[0]["applied_at"] is None
        time.sleep(1.5)  # three heartbeats
        assert stack.ledger.row("p")["status"] == "running"
        stack.notes.let_go("p.2")
        until(lambda: stack.ledger.row("p")["status"] == "pending_input", "the pause")
        stack.notes.hold("p.3")
        stack.command(intervene.resume, "p")
        child_at(stack, "p", 3)
        stack.command(intervene.cancel, "p")
        assert stack.ends("p") == "cancelled"
    kept = stack.ledger.rows(
        "SELECT command, state, acknowledged_at FROM interventions ORDER BY requested_at"
    )
    assert [(row["command"], row["state"]) for row in kept] == [
        ("pause", "applied"),
        ("resume", "applied"),
        ("cancel", "applied"),
    ]
    assert all(row["acknowledged_at"] for row in kept)
    assert asked(stack, "p") == [1, 2, 3]


def test_a_more_urgent_task_gets_the_slot_at_the_turn_s_end(stack: Stack) -> None:
    stack.notes.hold("low.2")
    stack.call({**SCRIPT, "priority": "low"}, task_id="low")
    with worker(stack, slots=1):
        child_at(stack, "low", 2)
        stack.call({"description": "Now", "priority": "critical"}, task_id="urgent")
        time.sleep(1.5)  # the grace of 0.4 s, and a heartbeat
        assert stack.ledger.row("urgent")["status"] == "queued"
        stack.notes.let_go("low.2")
        assert stack.ends("urgent") == "completed"
        assert stack.ends("low") == "completed"
    assert asked(stack, "low") == [1, 2, 3], "no reply was cut"
    (low,) = stack.ledger.steps("low").values()
    assert stack.ledger.names(low) == ["claim", "yield", "claim", "succeed"]
    (given,) = stack.ledger.rows("SELECT data FROM events WHERE name = 'yield'")
    assert given["data"]["why"] == "urgent"
    urgent, back = (stack.ledger.row(task)["finished_at"] for task in ("urgent", "low"))
    assert urgent < back


@pytest.mark.parametrize(("pool", "slots"), [("threads", 3), ("prefork", 2), ("solo", 1)])
def test_every_slot_is_known_and_beats_before_its_first_message(stack: Stack, pool: str, slots: int) -> None:
    with worker(stack, pool=pool, slots=slots):
        until(lambda: agents(stack) == [("idle", None)] * slots, "all slots")
        (first,) = stack.ledger.rows("SELECT max(heartbeat_at) AS at FROM agents")
        until(
            lambda: stack.ledger.rows(
                "SELECT 1 FROM agents HAVING min(heartbeat_at) > :first", first=first["at"]
            ),
            "another beat of all of them",
        )


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_that_missed_the_word_to_drain_claims_nothing_and_stops_consuming(
    stack: Stack, pool: str
) -> None:
    with worker(stack, pool=pool, slots=2):
        until(lambda: agents(stack) == [("idle", None)] * 2, "its slots")
        stack.notes.hold("runs.work")
        stack.call("Something", task_id="runs")
        stack.began("runs.work")
        stack.ledger.run("UPDATE agents SET drain_requested = true, status = 'draining'")
        stack.call("Something", task_id="early")
        (running,) = stack.ledger.steps("runs").values()
        until(lambda: stack.ledger.names(running) == ["claim", "yield"], "what ran is given back")
        time.sleep(1)  # two heartbeats
        stack.call("Something", task_id="late")
        time.sleep(2)
        assert stack.redis.llen("orchestrator.medium"), "nobody consumes"
        (early,), (late,) = stack.ledger.steps("early").values(), stack.ledger.steps("late").values()
        assert stack.ledger.names(early) == stack.ledger.names(late) == []
        assert stack.ledger.names(running) == ["claim", "yield"], "it goes round no more"
        stack.notes.let_go("runs.work")
        stack.ledger.run("UPDATE agents SET drain_requested = false, status = 'idle'")
        for task in ("runs", "early", "late"):
            stack.healed(lambda task=task: stack.ledger.row(task)["finished_at"], task)  # type: ignore[misc]
            assert stack.ledger.row(task)["status"] == "completed"


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


def test_the_budget_binds_all_steps_of_a_task_together_and_goes_on_once_raised(stack: Stack) -> None:
    """Each turn has 11 tokens, each step three turns."""
    two = plan({"id": "a", "spec": {"do": "script"}}, {"id": "b", "needs": ["a"], "spec": {"do": "script"}})
    with worker(stack):
        stack.call({**two, "budget": {"max_tokens": 50}}, task_id="poor")
        until(lambda: stack.ledger.row("poor")["waiting_on"] == "budget", "the question")
        assert asked(stack, "poor") == [1, 2, 3, 1, 2]
        (question,) = stack.ledger.rows("SELECT options FROM questions WHERE task_id = 'poor'")
        assert question["options"] == ["100 tokens", "Stop"]
        stack.command(answer.answer, "poor", {"choice": 1})
        assert stack.ends("poor") == "completed"
        stack.call({**two, "budget": {"max_tokens": 50}}, task_id="poorer")
        until(lambda: stack.ledger.row("poorer")["waiting_on"] == "budget", "the question")
        stack.command(answer.answer, "poorer", "stop")
        assert stack.ends("poorer") == "failed"
        stack.call({**two, "budget": {"max_tokens": 67}}, task_id="rich")
        assert stack.ends("rich") == "completed"
    assert asked(stack, "poor") == [1, 2, 3, 1, 2, 3]
    (failed,) = stack.ledger.rows("SELECT key, error FROM steps WHERE status = 'failed'")
    assert (failed["key"], failed["error"]["code"]) == ("b", "budget-refused")


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


FREED_MEANWHILE = """
    CREATE FUNCTION free_slot() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE steps SET status = 'queued', lease_until = NULL, not_before = now() + interval '1 hour',
            waiting_on = 'retry_backoff', waiting_since = now() WHERE task_id = 'holder';
        RETURN NEW;
    END $$;
    CREATE TRIGGER frees BEFORE UPDATE ON steps FOR EACH ROW
        WHEN (NEW.waiting_on = 'slot' AND OLD.waiting_on IS NULL) EXECUTE FUNCTION free_slot()
"""


def test_a_slot_that_gets_free_while_a_step_is_refused_it_is_taken_without_a_sweep(stack: Stack) -> None:
    """Whoever freed it looked for waiting rows before the refused one was one."""
    few = Stack(
        stack.database_url,
        stack.redis_url,
        stack.folder,
        {"ORCHESTRATOR_MAX_CONCURRENT_WORKFLOWS": "1"},
    )
    stack.ledger.take(stack.ledger.task("holder")["work"])
    stack.ledger.run(FREED_MEANWHILE)
    try:
        with worker(few, slots=1):
            few.call("Something", task_id="late")
            assert few.ends("late") == "completed"
    finally:
        stack.ledger.run("DROP TRIGGER frees ON steps; DROP FUNCTION free_slot")
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


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_without_a_sandbox_says_so_when_it_starts(stack: Stack, pool: str) -> None:
    bare = Stack(
        stack.database_url, stack.redis_url, stack.folder, {"PATH": path_without_bubblewrap(stack.folder)}
    )
    with worker(bare, pool=pool) as process:
        assert "sandbox_weak" in process.text()
        assert "commands run as ordinary processes" in process.text()
    bare.close()


def test_in_strict_mode_a_worker_without_a_sandbox_does_not_start_unless_it_runs_no_steps(
    stack: Stack,
) -> None:
    path = path_without_bubblewrap(stack.folder)
    strict = Stack(
        stack.database_url,
        stack.redis_url,
        stack.folder,
        {"PATH": path, "ORCHESTRATOR_STRICT_SANDBOX": "true"},
    )
    refused = pytest.raises(AssertionError, match="This worker can't start: strict mode needs bubblewrap")
    with refused, worker(strict):
        pass
    with worker(strict, queues="orchestrator.system"):
        pass
    strict.close()


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


def test_a_step_that_failed_is_a_failure_in_celery_whatever_its_agent_said() -> None:
    """Its result could not be kept, say; a chord that counts it must not wait for ever."""
    task, step = (
        create_app("redis://127.0.0.1:1/0").task(int, shared=False),
        StepRef("default", "t", "w", "s"),
    )
    said: list[tuple[Verdict, str]] = [
        (Done("all is well"), "failed"),
        (Broke("no-luck", "It did not work.", ErrorClass.AGENT), "no-luck"),
        (Yielded(StopReason.DEADLINE), "deadline-exceeded"),
        (Yielded(StopReason.DRAIN), "failed"),
    ]
    for verdict, code in said:
        with pytest.raises(StepFailed) as found:
            _tell(task, step, Status.FAILED, verdict)
        assert found.value.args[0] == code


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a process's memory is read from /proc")
def test_a_slot_needs_no_more_memory_the_more_tasks_it_has_parked(stack: Stack) -> None:
    def park(first: int, count: int) -> int:
        """Pages of the pool's child after that."""
        for number in range(first, first + count):
            stack.call(plan({"id": "a", "spec": {"do": "ask"}}), task_id=f"m{number}")
        waiting = "SELECT count(*) AS n FROM questions"
        until(lambda: stack.ledger.rows(waiting)[0]["n"] == first + count, "all questions")
        shown = [TaskResult(f"m{number}", app=stack.wiring.app) for number in range(first, first + count)]
        until(lambda: all(one.state == "pending_input" for one in shown), "what callers see")
        (agent,) = until(lambda: stack.ledger.rows("SELECT pid FROM agents WHERE step_id IS NULL"), "rest")
        return int(Path(f"/proc/{agent['pid']}/statm").read_text().split()[1])

    with worker(stack, pool="prefork", slots=1):
        before = park(0, 25)
        after = park(25, 40)
    megabytes = (after - before) * os.sysconf("SC_PAGE_SIZE") / 1024**2
    assert megabytes < 12, "Celery's copies of tracebacks pile up"
