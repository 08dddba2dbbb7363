"""The one gate to running."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg2
import pytest
from sqlalchemy import text

from orchestrator.commands import intervene
from orchestrator.core.priority import Priority
from orchestrator.core.states import Event, WaitingOn
from orchestrator.db import agents, claims, transitions
from orchestrator.db.agents import Slot
from orchestrator.db.claims import Claimed, Refusal, Why
from orchestrator.db.sql import Prepared, StepRef
from orchestrator.db.waking import due, wake
from orchestrator.tasks.step import take
from tests.integration.gateway_server import wired
from tests.integration.ledger import LEASE, TENANT, Ledger, opened, step
from tests.integration.stack import until


def refusal(found: Claimed | Refusal) -> Why:
    assert isinstance(found, Refusal), found
    return found.why


def test_of_twenty_claims_at_once_one_wins(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    many = opened(ledger.url, pool_size=20)
    start = Barrier(20)

    def race(number: int) -> Claimed | Refusal:
        start.wait()
        return many.claim(ref, agent=f"agent@host/{number}")

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(race, range(20)))
    many.engine.dispose()
    won = [one for one in found if isinstance(one, Claimed)]
    assert len(won) == 1
    assert (won[0].fence, won[0].attempt) == (1, 1)
    assert {refusal(one) for one in found if isinstance(one, Refusal)} == {Why.TAKEN}
    assert ledger.step(ref)["agent_id"] == ledger.rows("SELECT agent_id FROM attempts")[0]["agent_id"]
    ledger.assert_consistent()


def test_without_the_guard_the_same_race_has_many_winners(ledger: Ledger) -> None:
    """The control: what the guard prevents does happen when it is taken out."""
    ref = ledger.task()["work"]
    many = opened(ledger.url, pool_size=20)
    start = Barrier(20)
    unguarded = text(
        "UPDATE steps SET status = 'running', fence = fence + 1, lease_until = now() + interval '1 minute'"
        " WHERE id = :step RETURNING fence"
    )

    def race(_: int) -> int:
        with many.engine.begin() as connection:
            start.wait()
            return len(connection.execute(unguarded, {"step": ref.step_id}).all())

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(race, range(20))) == 20
    many.engine.dispose()


def test_a_step_waits_for_everything_that_it_needs(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"), step("c", "a", "b"))
    assert refusal(ledger.claim(refs["c"])) is Why.LATER
    ledger.succeed(ledger.take(refs["a"]))
    assert refusal(ledger.claim(refs["c"])) is Why.LATER
    done = ledger.succeed(ledger.take(refs["b"]))
    assert done is not None
    assert done.ready == (refs["c"].step_id,)
    ledger.take(refs["c"])
    ledger.assert_consistent()


def test_needs_are_checked_even_of_a_step_that_is_called_ready(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b", "a"))
    ledger.run("UPDATE steps SET ready_at = now() WHERE key = 'b'")
    assert refusal(ledger.claim(refs["b"])) is Why.LATER
    ledger.succeed(ledger.take(refs["a"]))
    ledger.take(refs["b"])


def test_nothing_of_a_paused_task_is_claimed(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    ledger.do(lambda connection: intervene.pause(connection, TENANT, "t", by="me"))
    assert refusal(ledger.claim(ref)) is Why.PARKED


@pytest.mark.parametrize("column", ["paused_at", "cancel_requested_at"])
def test_a_word_on_the_task_keeps_even_a_queued_step(ledger: Ledger, column: str) -> None:
    ref = ledger.task()["work"]
    ledger.run(f"UPDATE tasks SET {column} = now()")
    assert refusal(ledger.claim(ref)) is Why.LATER
    ledger.run(f"UPDATE tasks SET {column} = NULL")
    ledger.take(ref)


def test_nothing_is_claimed_before_its_time(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    claimed = ledger.take(ref)
    ledger.do(
        lambda connection: transitions.retry_later(
            connection, ref, claimed.fence, {"code": "away"}, timedelta(minutes=1)
        )
    )
    assert refusal(ledger.claim(ref)) is Why.LATER
    assert ledger.do(lambda connection: due(connection, ref)) is None, "not due yet"
    ledger.run("UPDATE steps SET not_before = now() - interval '1 second'")
    applied = ledger.do(lambda connection: due(connection, ref))
    assert applied is not None
    assert applied.released == (ref.step_id,)
    assert ledger.take(ref).attempt == 2
    ledger.assert_consistent()


def test_attempts_are_limited_and_claims_are_not(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    for _ in range(9):
        claimed = ledger.take(ref)
        ledger.do(
            lambda connection, fence=claimed.fence: transitions.give_back(connection, ref, fence, "slice")
        )
    assert (claimed.fence, claimed.attempt, claimed.resumed) == (9, 1, True)
    ledger.run("UPDATE steps SET given_back = false, attempt = max_attempts")
    assert refusal(ledger.claim(ref)) is Why.LATER
    ledger.run("UPDATE steps SET given_back = true")
    ledger.take(ref)


def test_an_attempt_goes_on_after_a_wait_for_a_machine(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    claimed = ledger.take(ref)
    ledger.do(
        lambda connection: transitions.park(
            connection, ref, claimed.fence, Event.WAIT, WaitingOn.RATE_LIMIT, {}, wake_after=timedelta(0)
        )
    )
    assert ledger.step(ref)["status"] == "running"
    assert refusal(ledger.claim(ref)) is Why.PARKED
    ledger.do(lambda connection: wake(connection, ref, Event.WAKE, {}))
    again = ledger.take(ref)
    assert (again.attempt, again.fence, again.resumed) == (1, 2, True)
    ledger.assert_consistent()


@pytest.mark.parametrize("wrong", ["task_id", "workflow_id", "step_id", "tenant_id"])
def test_ids_that_do_not_belong_together_are_unknown(ledger: Ledger, wrong: str) -> None:
    ref = ledger.task()["work"]
    ledger.task("other")
    stranger = replace(ref, **{wrong: "other"})
    assert refusal(ledger.claim(stranger)) is Why.UNKNOWN
    assert ledger.step(ref)["fence"] == 0


def test_what_has_ended_stays_so(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b", "a"), step("c", "b"))
    ledger.succeed(ledger.take(refs["a"]))
    late = ledger.claim(refs["a"])
    assert isinstance(late, Refusal)
    assert (late.why, late.successors_unclaimed) == (Why.COMPLETED, True)
    ledger.fail(ledger.take(refs["b"]))
    assert refusal(ledger.claim(refs["b"])) is Why.ENDED
    assert refusal(ledger.claim(refs["c"])) is Why.ENDED
    later = ledger.claim(refs["a"])
    assert isinstance(later, Refusal)
    assert not later.successors_unclaimed


def test_a_refused_message_of_a_live_step_leaves_its_canvas(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b", "a"))
    canvas = {"task": "orchestrator.run_step", "options": {"chain": ["next"]}}
    assert refusal(ledger.claim(refs["b"], signature=canvas)) is Why.LATER
    assert ledger.step(refs["b"])["signature"] == canvas
    ledger.claim(refs["b"], signature={"task": "alone"})
    assert ledger.step(refs["b"])["signature"] == canvas, "a later message doesn't take its place"
    ledger.succeed(ledger.take(refs["a"]))
    ledger.take(refs["b"], signature={"task": "the one that runs"})
    assert ledger.step(refs["b"])["signature"] == {"task": "the one that runs"}


def test_a_refused_message_of_an_ended_step_leaves_nothing(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    ledger.succeed(ledger.take(ref))
    ledger.claim(ref, signature={"task": "late"})
    assert ledger.step(ref)["signature"] is None


# --- slots --------------------------------------------------------------------------------------------------


def test_a_full_installation_refuses_and_the_next_free_slot_is_handed_on(ledger: Ledger) -> None:
    first, second = ledger.task("one")["work"], ledger.task("two")["work"]
    claimed = ledger.take(first, workflows_at_once=1)
    assert refusal(ledger.claim(second, workflows_at_once=1, signature={"task": "kept"})) is Why.SLOT
    assert ledger.row("two")["waiting_on"] == "slot"
    assert ledger.step(second)["signature"] == {"task": "kept"}
    ledger.succeed(claimed)
    waiting = ledger.do(lambda connection: claims.waiting_for_slot(connection, TENANT))
    assert waiting == [second]
    woken = ledger.do(lambda connection: wake(connection, second, Event.WAKE, {"why": "a slot is free"}))
    assert woken is not None
    assert woken.released == (second.step_id,)
    assert ledger.do(lambda connection: claims.waiting_for_slot(connection, TENANT)) == []
    ledger.take(second, workflows_at_once=1)
    ledger.assert_consistent("two")


def test_steps_of_one_workflow_share_its_slot_and_parked_ones_hold_none(ledger: Ledger) -> None:
    one = ledger.task("one", step("a"), step("b"))
    two = ledger.task("two")["work"]
    first = ledger.take(one["a"], workflows_at_once=1)
    second = ledger.take(one["b"], workflows_at_once=1)
    assert refusal(ledger.claim(two, workflows_at_once=1)) is Why.SLOT
    ledger.ask(first)
    assert refusal(ledger.claim(two, workflows_at_once=1)) is Why.SLOT
    ledger.ask(second)
    ledger.take(two, workflows_at_once=1)


def test_two_claims_at_once_do_not_both_get_the_last_slot(ledger: Ledger) -> None:
    refs = [ledger.task(f"t{number}")["work"] for number in range(12)]
    many = opened(ledger.url, pool_size=12)
    start = Barrier(12)

    def race(ref: StepRef) -> Claimed | Refusal:
        start.wait()
        return many.claim(ref, workflows_at_once=3)

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(race, refs))
    many.engine.dispose()
    assert sum(isinstance(one, Claimed) for one in found) == 3
    assert ledger.rows("SELECT name, maximum FROM limits") == [{"name": "workflows", "maximum": 3}]


# --- the fence ----------------------------------------------------------------------------------------------


def test_a_heartbeat_prolongs_and_tells_what_people_want(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task()["work"], lease=timedelta(seconds=5))
    ref, fence = claimed.step, claimed.fence
    before = ledger.step(ref)
    beat = ledger.do(lambda connection: claims.heartbeat(connection, ref, fence, LEASE, moved=False))
    assert beat is not None
    assert beat.lease_until > before["lease_until"]
    assert (beat.cancel, beat.pause) == (False, False)
    assert ledger.step(ref)["progress_at"] == before["progress_at"]
    ledger.do(lambda connection: claims.heartbeat(connection, ref, fence, LEASE, moved=True))
    assert ledger.step(ref)["progress_at"] > before["progress_at"]
    ledger.do(lambda connection: intervene.pause(connection, TENANT, "t", by="me"))
    ledger.do(lambda connection: intervene.cancel(connection, TENANT, "t", by="me"))
    beat = ledger.do(lambda connection: claims.heartbeat(connection, ref, fence, LEASE, moved=False))
    assert beat is not None
    assert (beat.cancel, beat.pause) == (True, True)


def test_a_heartbeat_without_the_fence_says_so(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    zombie = ledger.take(ref)
    ledger.expire(ref)
    beat = ledger.do(lambda connection: claims.heartbeat(connection, ref, zombie.fence, LEASE, moved=True))
    assert beat is None, "expired"
    claimed = ledger.take(ref)
    until = ledger.step(ref)["lease_until"]
    beat = ledger.do(lambda connection: claims.heartbeat(connection, ref, zombie.fence, LEASE, moved=True))
    assert beat is None, "somebody else's"
    assert ledger.step(ref)["lease_until"] == until
    assert ledger.do(lambda connection: claims.holds(connection, ref, claimed.fence))


def test_attempts_that_may_go_on_are_told_from_those_that_are_over(ledger: Ledger) -> None:
    parked, again, ended = (ledger.task(name)["work"] for name in ("parked", "again", "ended"))
    assert ledger.ask(ledger.take(parked))
    ledger.take(again)
    ledger.expire(again)
    ledger.take(again)
    ledger.succeed(ledger.take(ended))
    asked = [
        *((ref.step_id, 1) for ref in (parked, again, ended)),
        (again.step_id, 2),
        ("never-heard-of", 1),
    ]
    live = ledger.do(lambda connection: claims.live_attempts(connection, asked))
    assert live == {(parked.step_id, 1), (again.step_id, 2)}
    assert ledger.do(lambda connection: claims.live_attempts(connection, [])) == set()


# --- who makes room -----------------------------------------------------------------------------------------

LANES = {Priority.CRITICAL: "orchestrator.critical", Priority.HIGH: "orchestrator.high"}
ALL = [f"orchestrator.{lane}" for lane in ("critical", "high", "medium", "low")]


def slot(ledger: Ledger, number: int, queues: list[str] = ALL, **more: str) -> str:
    agent = f"agent@host/{number}"
    with ledger.engine.begin() as connection:
        found = Slot(TENANT, agent, "agent", "host", 1, "boot", "1", queues, (), ())
        agents.register(connection, found)
    if more:
        ledger.run("UPDATE agents SET status = :status WHERE id = :id", id=agent, **more)
    return agent


def makes_room(ledger: Ledger, claimed: Claimed, patience: timedelta = timedelta(0)) -> bool:
    beat = ledger.do(
        lambda connection: claims.heartbeat(
            connection, claimed.step, claimed.fence, LEASE, moved=True, urgent=LANES, patience=patience
        )
    )
    assert beat is not None
    return beat.urgent


def test_the_least_urgent_step_that_began_first_makes_room_for_one_that_is_more_urgent(
    ledger: Ledger,
) -> None:
    running = {}
    for number, (task, priority) in enumerate(
        [("m1", "medium"), ("l1", "low"), ("l2", "low"), ("h", "high")], 1
    ):
        ref = ledger.task(task, priority=priority)["work"]
        running[task] = ledger.take(ref, agent=slot(ledger, number))

    def asked() -> set[str]:
        return {task for task, claimed in running.items() if makes_room(ledger, claimed)}

    assert asked() == set(), "nobody waits"
    ledger.task("urgent1", priority="high")
    assert asked() == {"l1"}
    ledger.task("urgent2", priority="critical")
    assert asked() == {"l1", "l2"}
    for number in (3, 4, 5):
        ledger.task(f"urgent{number}", priority="critical")
    assert asked() == {"l1", "l2", "m1", "h"}
    assert not makes_room(ledger, running["l1"], timedelta(hours=1)), "they have not waited for long"


def test_nobody_makes_room_for_a_step_that_an_idle_slot_could_take_or_its_own_could_not(
    ledger: Ledger,
) -> None:
    claimed = ledger.take(ledger.task("low", priority="low")["work"], agent=slot(ledger, 1))
    ledger.task("critical", priority="critical")
    assert makes_room(ledger, claimed)
    slot(ledger, 2, ["orchestrator.medium"])
    assert makes_room(ledger, claimed), "that one doesn't serve it"
    slot(ledger, 3, status="draining")
    assert makes_room(ledger, claimed), "nor does that one"
    slot(ledger, 4)
    assert not makes_room(ledger, claimed)
    ledger.run("UPDATE agents SET heartbeat_at = now() - interval '1 hour' WHERE id = 'agent@host/4'")
    assert makes_room(ledger, claimed), "it is gone"
    ledger.run("UPDATE agents SET queues = '[\"orchestrator.low\"]' WHERE id = 'agent@host/1'")
    assert not makes_room(ledger, claimed)


@pytest.mark.parametrize(
    "held", ["UPDATE tasks SET paused_at = now()", "UPDATE steps SET waiting_on = 'slot'"]
)
def test_nobody_makes_room_for_a_step_that_could_not_run(ledger: Ledger, held: str) -> None:
    claimed = ledger.take(ledger.task("low", priority="low")["work"], agent=slot(ledger, 1))
    ledger.task("critical", priority="critical")
    assert makes_room(ledger, claimed)
    ledger.run(f"{held} WHERE priority = 'critical'")
    assert not makes_room(ledger, claimed)


def test_a_step_that_rose_by_waiting_displaces_nobody(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("medium", priority="medium")["work"], agent=slot(ledger, 1))
    ledger.task("aged", priority="low")
    ledger.run("UPDATE steps SET priority = 'critical' WHERE task_id = 'aged'")
    assert not makes_room(ledger, claimed)


def test_beside_a_hundred_thousand_that_wait_a_heartbeat_finds_the_urgent_ones_by_their_index(
    ledger: Ledger,
) -> None:
    claimed = ledger.take(ledger.task("low", priority="low")["work"], agent=slot(ledger, 1))
    ledger.task("many", priority="medium")
    ledger.run(
        "INSERT INTO steps (id, task_id, workflow_id, number, key, description, priority, max_attempts,"
        "   ready_at, published_at)"
        " SELECT 'x' || i, s.task_id, s.workflow_id, 1 + i, 'x' || i, 'x', 'medium', 3, now(), now()"
        " FROM steps s, generate_series(1, 100000) AS i WHERE s.task_id = 'many'"
    )
    ledger.task("critical", priority="critical")
    ledger.run("ANALYZE steps")
    values = {
        "tenant": TENANT,
        "step": claimed.step.step_id,
        "fence": claimed.fence,
        "lease": 60,
        "patience": 0,
    }
    with ledger.engine.connect() as connection:
        explained = connection.execute(
            text(f"EXPLAIN {claims._BEAT_SQL}"),
            {
                **values,
                "moved": True,
                "urgent": [str(priority) for priority in LANES],
                "urgent_queues": list(LANES.values()),
                "priorities": [str(priority) for priority in Priority],
            },
        )
        plan = "\n".join(explained.scalars())
    assert "ix_steps_urgent" in plan, plan
    assert "Seq Scan on steps" not in plan, plan
    assert makes_room(ledger, claimed)


def test_a_draining_slot_is_refused_and_the_step_stays_as_it_was(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    agent = slot(ledger, 1)
    ledger.run("UPDATE agents SET drain_requested = true")
    assert refusal(ledger.claim(ref, agent=agent, signature={"a": 1}, workflows_at_once=1)) is Why.DRAINING
    row = ledger.step(ref)
    assert (row["status"], row["fence"], row["waiting_on"]) == ("queued", 0, None)
    assert row["signature"] == {"a": 1}, "or its canvas would go with the message"
    ledger.take(ref, agent=slot(ledger, 2))


def test_a_cancel_that_comes_with_a_refusal_for_a_full_installation_waits_for_it_or_is_seen(
    ledger: Ledger,
) -> None:
    """The refusal holds the task's lock from its first look, as every change does."""
    ledger.take(ledger.task("other")["work"], workflows_at_once=1)
    ref = ledger.task()["work"]
    many = opened(ledger.url, pool_size=4)
    with ThreadPoolExecutor(2) as pool, ledger.engine.begin() as connection:
        intervene.cancel(connection, TENANT, "t", by="ada")
        refused = pool.submit(many.claim, ref, signature={"task": "kept"}, workflows_at_once=1)
        until(lambda: _waits_for_a_lock(ledger), "the claim at the task's lock")
        connection.commit()
        assert refusal(refused.result()) is Why.ENDED
    many.engine.dispose()
    assert ledger.row()["status"] == "cancelled"
    ledger.assert_consistent()


def test_a_claim_that_waits_for_its_own_task_holds_up_no_other_task_s(ledger: Ledger) -> None:
    held, free = ledger.task("held")["work"], ledger.task("free")["work"]
    many = opened(ledger.url, pool_size=4)
    with ThreadPoolExecutor(2) as pool, ledger.engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM tasks WHERE id = 'held' FOR UPDATE"))
        waiting = pool.submit(many.claim, held, workflows_at_once=5)
        until(lambda: _waits_for_a_lock(ledger), "the claim at the task's lock")
        assert isinstance(pool.submit(many.claim, free, workflows_at_once=5).result(10), Claimed)
        connection.commit()
        assert isinstance(waiting.result(), Claimed)
    many.engine.dispose()


def test_a_claim_whose_reply_is_lost_is_made_anew_at_once(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when its lease has ended: the slot knows that it works on nothing."""
    execute, lost = Prepared.execute, list[str]()

    def deaf(self: Prepared, cursor: Any, call: str, values: Mapping[str, Any]) -> None:
        execute(self, cursor, call, values)
        if self.name == "claim" and not lost:
            lost.append(call)
            cursor.connection.close()
            raise psycopg2.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(Prepared, "execute", deaf)
    ref = ledger.task()["work"]
    wiring = wired(ledger.url, None, tmp_path)
    found = take(wiring, ref, "agent@host/1", None)
    wiring.engine.dispose()
    assert lost
    assert isinstance(found, Claimed)
    assert (found.fence, found.attempt, found.resumed) == (2, 1, True)
    names = [event["name"] for event in ledger.events() if event["type"] == "step"]
    assert names == ["claim", "yield", "claim"]
    ledger.assert_consistent()


def test_only_the_slot_that_made_a_claim_takes_it_back(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task()["work"])
    assert ledger.do(lambda c: claims.take_back(c, claimed.step, "agent@other/1")) is None
    assert ledger.step(claimed.step)["fence"] == 1
    assert ledger.step(claimed.step)["status"] == "running"


def _waits_for_a_lock(ledger: Ledger) -> bool:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(ledger.rows(waiting))
