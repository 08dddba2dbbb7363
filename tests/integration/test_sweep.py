"""What the sweep heals, and that it leaves alone what is well."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from kombu.utils.json import loads
from sqlalchemy import text as sql

from orchestrator.commands import intervene
from orchestrator.core.states import Event, WaitingOn
from orchestrator.db import sweep, transitions
from orchestrator.db.sql import StepRef
from orchestrator.queues.names import QueueName
from orchestrator.queues.results import show
from orchestrator.tasks import sweep as tasks_sweep
from orchestrator.tasks.sweep import Swept
from tests.integration.ledger import step
from tests.integration.stack import Stack, until, worker


def plan(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"description": "Something", "steps": list(steps), **more}


def messages(stack: Stack, queue: QueueName = QueueName.MEDIUM) -> list[str]:
    """Celery's ids of what waits in this queue, the one that is served first last."""
    return [loads(text)["headers"]["id"] for text in stack.redis.lrange(queue.value, 0, -1)]


def age(stack: Stack, ref: StepRef, by: timedelta) -> None:
    """As if the step had become ready, and been published, so much earlier."""
    stack.ledger.run(
        "UPDATE steps SET ready_at = ready_at - :by, published_at = published_at - :by WHERE id = :id",
        by=by,
        id=ref.step_id,
    )


def long_ago(stack: Stack) -> None:
    stack.ledger.run(
        "UPDATE steps SET published_at = published_at - interval '1 minute' WHERE status = 'queued'"
    )


def two_at_once(work: Callable[[], Swept]) -> list[Swept]:
    start = Barrier(2)

    def run(_: int) -> Swept:
        start.wait()
        return work()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


# --- publications -------------------------------------------------------------------------------------------


def test_a_run_without_faults_sees_no_publication_by_the_sweep(stack: Stack) -> None:
    # What a canvas failed to start would wait for the sweep however long; what it starts late is no fault.
    grace = {"ORCHESTRATOR_PUBLISH_GRACE": "PT5S"}
    with closing(Stack(stack.database_url, stack.redis_url, stack.folder, grace)) as patient:
        _runs_without_the_sweep(patient)


def _runs_without_the_sweep(stack: Stack) -> None:
    steps = (step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c"), step("e", "b"))
    with worker(stack, slots=4):
        calls = [stack.call(plan(*steps), task_id=f"t{number}") for number in range(4)]
        found = Swept()
        while not all(stack.ledger.row(call.id)["finished_at"] for call in calls):
            found = stack.sweep()
            assert found.quiet, found
        for call in calls:
            assert call.get(timeout=30)["status"] == "completed"
    assert not stack.ledger.rows("SELECT 1 FROM steps WHERE published_by = 'sweep' OR publications > 0")
    for call in calls:
        stack.ledger.assert_consistent(call.id)


def test_an_emptied_broker_is_filled_again_from_the_rows(stack: Stack) -> None:
    stack.call(plan(step("a"), step("b"), step("c", "a", "b")), task_id="t")
    refs = stack.ledger.steps("t")
    stack.redis.flushdb()
    assert stack.sweep().published == 0, "not before the grace is over"
    long_ago(stack)
    assert stack.sweep().published == 2
    assert set(messages(stack)) == {refs["a"].step_id, refs["b"].step_id}
    row = stack.ledger.step(refs["a"])
    assert (row["published_by"], row["published_alone"], row["publications"]) == ("sweep", True, 1)
    with worker(stack):
        assert stack.ends("t") == "completed"
    assert stack.ledger.step(refs["c"])["published_by"] == "release", "the join's counter was lost, too"


def test_publications_back_off(stack: Stack) -> None:
    stack.call("Something", task_id="t")
    (ref,) = stack.ledger.steps("t").values()
    grace = stack.wiring.settings.publish_grace
    assert stack.sweep().published == 0, "the first sweep connects, which takes its time"
    for times in range(5):
        stack.redis.flushdb()
        wait = grace * 2**times
        stack.ledger.run("UPDATE steps SET published_at = clock_timestamp() - :by", by=wait * 0.55)
        assert stack.sweep().published == 0, f"too early for publication {times + 1}"
        stack.ledger.run("UPDATE steps SET published_at = clock_timestamp() - :by", by=wait)
        assert stack.sweep().published == 1
        assert stack.ledger.step(ref)["publications"] == times + 1


def test_many_publications_don_t_make_a_lost_message_wait_for_an_hour(stack: Stack) -> None:
    """A raise and an outage of the broker count as publications, though no worker ever refused the step."""
    stack.call("Something", task_id="t")
    (ref,) = stack.ledger.steps("t").values()
    stack.redis.flushdb()
    stack.ledger.run(
        "UPDATE steps SET publications = 9, published_at = clock_timestamp() - :by",
        by=stack.wiring.settings.publish_grace * 17,
    )
    assert stack.sweep().published == 1
    assert messages(stack) == [ref.step_id]


def test_a_long_queue_doesn_t_hide_what_another_priority_lost(stack: Stack) -> None:
    stack.call(plan(*(step(f"s{number}") for number in range(sweep.BATCH + 5)), priority="low"), task_id="t")
    stack.call({"description": "Something", "priority": "high"}, task_id="urgent")
    (ref,) = stack.ledger.steps("urgent").values()
    stack.redis.delete(QueueName.HIGH.value)
    long_ago(stack)
    stack.ledger.run("UPDATE steps SET published_at = published_at - interval '1 s' WHERE priority = 'low'")
    assert stack.sweep().published == 1
    assert messages(stack, QueueName.HIGH) == [ref.step_id]


def test_a_long_queue_is_not_a_lost_message(stack: Stack) -> None:
    for number in range(5):
        stack.call("Something", task_id=f"t{number}")
    long_ago(stack)
    assert stack.sweep().published == 0
    assert len([name for name in messages(stack) if name.startswith("workflow")]) == 5


def test_a_message_that_later_ones_overtook_is_sent_again(stack: Stack) -> None:
    for number in range(3):
        stack.call("Something", task_id=f"t{number}")
    lost, overtaker = stack.ledger.steps("t0")["work"], stack.ledger.steps("t1")["work"]
    for text in stack.redis.lrange(QueueName.MEDIUM.value, 0, -1):
        if loads(text)["headers"]["id"] == lost.step_id:
            stack.redis.lrem(QueueName.MEDIUM.value, 1, text)
    age(stack, lost, timedelta(minutes=1))
    assert stack.sweep().published == 0, "the queue isn't empty, and nobody was faster"
    stack.ledger.take(overtaker)
    assert stack.sweep().published == 1
    assert lost.step_id in messages(stack)


def test_a_join_that_celery_lost_is_released(stack: Stack) -> None:
    stack.call(plan(step("a"), step("b"), step("c", "a", "b")), task_id="t")
    refs = stack.ledger.steps("t")
    with worker(stack):
        stack.notes.hold("t.b")
        stack.call(plan(step("a"), step("b"), step("c", "a", "b")), task_id="u")
        until(lambda: stack.ledger.statuses("t").get("a") == "completed", "a")
        for key in stack.redis.scan_iter("chord-unlock*"):
            stack.redis.delete(key)
        for key in stack.redis.scan_iter("*.j"):
            stack.redis.delete(key)  # the chord's counter
        for key in stack.redis.scan_iter("*.t"):
            stack.redis.delete(key)
        stack.notes.let_go("t.b")
        stack.healed(lambda: stack.ledger.row("t")["finished_at"], "the end")
    assert stack.ledger.row("t")["status"] == "completed"
    assert stack.ledger.step(refs["c"])["fence"] == 1
    stack.ledger.assert_consistent("t")


def test_a_join_that_nobody_made_ready_is_repaired(stack: Stack) -> None:
    refs = stack.ledger.task("t", step("a"), step("b", "a"))
    stack.ledger.succeed(stack.ledger.take(refs["a"]))
    stack.ledger.run("UPDATE steps SET ready_at = NULL, published_at = NULL WHERE key = 'b'")
    assert stack.sweep().joins == 1
    assert stack.ledger.step(refs["b"])["ready_at"] is not None
    stack.ledger.take(refs["b"])


def test_what_people_stopped_is_not_published(stack: Stack) -> None:
    for task_id, column in (("paused", "paused_at"), ("cancelled", "cancel_requested_at")):
        stack.call("Something", task_id=task_id)
        stack.ledger.run(f"UPDATE tasks SET {column} = now() WHERE id = :id", id=task_id)
    stack.redis.flushdb()
    long_ago(stack)
    assert stack.sweep().published == 0


# --- ageing -------------------------------------------------------------------------------------------------


def test_a_step_that_waits_rises_step_by_step_and_no_faster(stack: Stack) -> None:
    stack.call({"description": "Something", "priority": "low"}, task_id="t")
    (ref,) = stack.ledger.steps("t").values()
    ageing = stack.wiring.settings.ageing
    for queue in (QueueName.MEDIUM, QueueName.HIGH, QueueName.CRITICAL):
        age(stack, ref, ageing * 1.01)
        assert stack.sweep().raised == 1
        assert messages(stack, queue) == [ref.step_id]
        assert stack.ledger.step(ref)["priority"] == queue.value.rpartition(".")[2]
        assert stack.sweep().raised == 0, "once for each ageing"
    age(stack, ref, ageing * 2)
    assert stack.sweep().raised == 0, "there is nothing above"
    assert stack.ledger.row("t")["priority"] == "low", "what the user said stays"
    claimed = stack.ledger.take(ref)
    assert stack.ledger.succeed(claimed)


# --- leases, times, cancels ---------------------------------------------------------------------------------


def test_leases_and_cancels_don_t_wait_for_a_broker_that_hangs(stack: Stack) -> None:
    until(lambda: up_for(stack) > 2.5, "a lease of Postgres")
    refs = {name: stack.ledger.task(name)["work"] for name in ("expired", "cancelled")}
    stack.ledger.take(refs["expired"], lease=timedelta(0))
    stack.ledger.take(refs["cancelled"])
    stack.ledger.run("UPDATE tasks SET cancel_requested_at = now() - interval '1 h' WHERE id = 'cancelled'")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung = Stack(stack.database_url, f"redis://127.0.0.1:{silent.getsockname()[1]}/0", stack.folder)
        began = time.monotonic()
        swept = hung.sweep()
        hung.close()
    assert (swept.expired, swept.cancelled) == (1, 1)
    assert time.monotonic() - began < 15
    assert stack.ledger.row("cancelled")["status"] == "cancelled"
    long_ago(stack)
    assert stack.sweep().published == 1, "what could not be sent is sent later"
    assert messages(stack) == [refs["expired"].step_id]


def test_an_ended_lease_leads_to_another_attempt(stack: Stack) -> None:
    (ref,) = stack.ledger.task().values()
    stack.ledger.take(ref, lease=timedelta(0))
    assert stack.sweep().expired == 1
    assert stack.ledger.step(ref)["status"] == "queued"
    assert messages(stack) == [ref.step_id]
    assert stack.ledger.take(ref).attempt == 2


def test_a_worker_that_was_stopped_in_a_transaction_holds_up_its_own_task_alone(stack: Stack) -> None:
    (held,) = stack.ledger.task("held").values()
    (free,) = stack.ledger.task("free").values()
    for ref in (held, free):
        stack.ledger.take(ref, lease=timedelta(0))
    with stack.ledger.engine.connect() as stopped:
        stopped.execute(sql("SELECT 1 FROM tasks WHERE id = 'held' FOR UPDATE"))
        assert stack.sweep().expired == 1
        assert stack.ledger.step(free)["status"] == "queued"
        assert stack.ledger.step(held)["status"] == "running"
    assert stack.sweep().expired == 1, "once it is let go"


def test_after_a_start_of_postgres_leases_get_a_new_chance_and_cost_no_attempt(stack: Stack) -> None:
    """Its own start time is what says so: with a lease as long as Postgres' life nothing may end."""
    up = until(lambda: max(0.0, up_for(stack) - 4), "four seconds of Postgres") + 4
    young = Stack(
        stack.database_url, stack.redis_url, stack.folder, {"ORCHESTRATOR_LEASE": f"PT{up + 60:.0f}S"}
    )
    (ref,) = stack.ledger.task().values()
    stack.ledger.take(ref, lease=timedelta(0))
    assert young.sweep().expired == 0
    young.close()
    older = Stack(
        stack.database_url, stack.redis_url, stack.folder, {"ORCHESTRATOR_LEASE": f"PT{up * 0.75:.2f}S"}
    )
    assert older.sweep().expired == 1
    assert stack.ledger.take(ref).attempt == 1, "not counted"
    older.close()


def up_for(stack: Stack) -> float:
    return stack.ledger.do(sweep.postgres_up_for).total_seconds()


def test_a_back_off_that_is_over_is_published(stack: Stack) -> None:
    (ref,) = stack.ledger.task().values()
    claimed = stack.ledger.take(ref)
    later = timedelta(hours=1)
    stack.ledger.do(lambda c: transitions.retry_later(c, ref, claimed.fence, {"code": "x"}, later))
    assert (stack.sweep().timed, messages(stack)) == (0, [])
    stack.ledger.run("UPDATE steps SET not_before = now()")
    assert stack.sweep().timed == 1
    assert messages(stack) == [ref.step_id]
    stack.ledger.assert_consistent()


def test_a_step_that_waits_for_a_machine_is_woken_by_the_clock(stack: Stack) -> None:
    (ref,) = stack.ledger.task().values()
    claimed = stack.ledger.take(ref)
    stack.ledger.do(
        lambda c: transitions.park(
            c, ref, claimed.fence, Event.WAIT, WaitingOn.RATE_LIMIT, {}, wake_after=timedelta(0)
        )
    )
    assert stack.sweep().timed == 1
    assert messages(stack) == [ref.step_id]
    assert stack.ledger.take(ref).attempt == 1
    stack.ledger.assert_consistent()


def test_a_cancel_that_the_agent_ignores_is_carried_out_after_the_grace(stack: Stack) -> None:
    (ref,) = stack.ledger.task().values()
    claimed = stack.ledger.take(ref)
    stack.command(intervene.cancel, "t")
    assert stack.sweep().cancelled == 0
    stack.ledger.run("UPDATE tasks SET cancel_requested_at = now() - interval '1 hour'")
    assert stack.sweep().cancelled == 1
    assert stack.ledger.row()["status"] == "cancelled"
    assert stack.ledger.succeed(claimed) is None, "too late"
    stack.ledger.assert_consistent()


# --- two at once --------------------------------------------------------------------------------------------


def test_of_two_sweeps_at_once_one_steps_back(stack: Stack) -> None:
    with stack.ledger.engine.begin() as connection:
        assert sweep.take_turn(connection, tasks_sweep._LOCK)
        assert stack.sweep().skipped
    assert not stack.sweep().skipped


def test_two_sweeps_at_once_without_the_lock_do_nothing_twice(stack: Stack) -> None:
    """A lock can be lost with its connection; the rows' own guards remain."""
    refs = [stack.ledger.task(f"t{number}")["work"] for number in range(10)]
    for ref in refs[:5]:
        stack.ledger.take(ref, lease=timedelta(0))
    for ref in refs[5:]:
        claimed = stack.ledger.take(ref)
        stack.ledger.do(
            lambda c, s=ref, f=claimed.fence: transitions.retry_later(c, s, f, {"code": "x"}, timedelta(0))
        )
    found = two_at_once(lambda: tasks_sweep._sweep(stack.wiring))
    assert sum(one.expired for one in found) == 5
    assert sum(one.timed for one in found) == 5
    assert sorted(messages(stack)) == sorted(ref.step_id for ref in refs)
    for ref in refs:
        stack.ledger.assert_consistent(ref.task_id)


# --- callers ------------------------------------------------------------------------------------------------


def test_what_redis_forgot_of_watched_tasks_is_shown_again(stack: Stack) -> None:
    result = stack.call("Something", task_id="t")
    stack.ledger.take(stack.ledger.steps("t")["work"])
    stack.redis.flushdb()
    assert result.state == "PENDING"
    stack.sweep()
    assert result.state == "running"


def ended_a_minute_ago(stack: Stack, *task_ids: str) -> None:
    """Tasks whose callers should have heard of it by now."""
    for task_id in task_ids:
        stack.call("Something", task_id=task_id)
        assert stack.ledger.succeed(stack.ledger.take(stack.ledger.steps(task_id)["work"]))
    stack.ledger.run("UPDATE tasks SET finished_at = finished_at - interval '1 minute'")
    stack.ledger.run(
        "UPDATE steps SET published_at = published_at - interval '1 minute',"
        " claimed_at = claimed_at - interval '1 minute'"
    )


def entries(stack: Stack) -> list[str]:
    return [name for name in messages(stack) if not name.startswith("workflow")]


def test_a_caller_s_message_far_behind_in_a_long_queue_is_not_sent_again(stack: Stack) -> None:
    ended_a_minute_ago(stack, "t1", "t2")
    assert sorted(entries(stack)) == ["t1", "t2"]
    assert [stack.sweep().delivered for _ in range(3)] == [0, 0, 0]
    assert sorted(entries(stack)) == ["t1", "t2"]


def test_a_caller_s_message_that_the_broker_lost_is_sent_again_and_backs_off(stack: Stack) -> None:
    ended_a_minute_ago(stack, "t1", "t2")
    grace = stack.wiring.settings.publish_grace + timedelta(seconds=1)
    for times in range(1, 4):
        stack.redis.flushdb()
        assert stack.sweep().delivered == 2
        assert sorted(entries(stack)) == ["t1", "t2"]
        stack.redis.flushdb()
        wait = grace * 2**times
        stack.ledger.run("UPDATE tasks SET entry_published_at = clock_timestamp() - :by", by=wait * 0.7)
        assert stack.sweep().delivered == 0, f"too early after {times}"
        stack.ledger.run("UPDATE tasks SET entry_published_at = clock_timestamp() - :by", by=wait)
    with worker(stack):
        assert stack.sweep().delivered == 2
        until(lambda: all(stack.ledger.row(name)["entry_delivered_at"] for name in ("t1", "t2")), "the word")


def test_a_caller_s_message_that_later_ones_overtook_is_sent_again(stack: Stack) -> None:
    ended_a_minute_ago(stack, "t1")
    stack.redis.flushdb()
    for name in ("later", "last"):
        stack.call("Something", task_id=name)
    assert stack.sweep().delivered == 0, "not before a later one was taken"
    stack.ledger.take(stack.ledger.steps("later")["work"])
    assert stack.sweep().delivered == 1
    assert entries(stack).count("t1") == 1
    assert stack.sweep().delivered == 0


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own, when it stores a result
def test_a_late_word_never_hides_an_end(stack: Stack) -> None:
    app = stack.wiring.app
    assert show(app, "t", "running")
    for end, value in (("REVOKED", Exception("x")), ("FAILURE", Exception("x")), ("SUCCESS", {})):
        stack.redis.flushdb()
        app.backend.store_result("t", value, end)
        assert not show(app, "t", "running")
        assert app.AsyncResult("t").state == end
