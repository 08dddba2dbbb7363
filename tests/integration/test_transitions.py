"""Every way out of running, and what it does to the rest of the task."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from orchestrator.commands import answer, intervene
from orchestrator.core.states import Event, WaitingOn
from orchestrator.core.verdict import Ask
from orchestrator.db import completion, connect, effects, events, journal, transitions
from orchestrator.db.claims import Claimed
from orchestrator.db.effects import LogChunk
from orchestrator.db.events import EventDraft
from orchestrator.db.journal import FenceLost, Scope
from orchestrator.db.sql import Prepared
from orchestrator.db.transitions import Applied
from orchestrator.db.waking import due
from tests.integration.ledger import TENANT, Ledger, opened, step, the_task

ERROR: Mapping[str, Any] = {"code": "no-luck", "message": "It did not work."}
SOON = timedelta(minutes=1)


def scope(claimed: Claimed) -> Scope:
    return Scope(claimed.step, claimed.fence, claimed.attempt, 0)


WORDS_OF_A_WORKER: Mapping[str, Callable[[Connection, Claimed], Any]] = {
    "succeed": lambda c, z: completion.succeed(c, z.step, z.fence, summary="late", result={}),
    "fail": lambda c, z: transitions.fail(c, z.step, z.fence, ERROR),
    "retry": lambda c, z: transitions.retry_later(c, z.step, z.fence, ERROR, SOON),
    "give_back": lambda c, z: transitions.give_back(c, z.step, z.fence, "late"),
    "park": lambda c, z: transitions.park(c, z.step, z.fence, Event.WAIT, WaitingOn.RATE_LIMIT, {}),
    "pause": lambda c, z: transitions.obey_pause(c, z.step, z.fence),
    "ask": lambda c, z: effects.ask(c, z.step, z.fence, Ask("late", "Late?")),
    "cancel": lambda c, z: transitions.cancel_step(c, z.step, z.fence, "late"),
    "log": lambda c, z: effects.observe(c, z.step, z.fence, 1, [], [LogChunk("agent", "late")]),
    "event": lambda c, z: effects.observe(c, z.step, z.fence, 1, [EventDraft("progress", "late")], []),
    "turn": lambda c, z: journal.append(c, scope(z), "turn", 1, {"late": True}),
    "begin_call": lambda c, z: journal.begin_call(c, scope(z), 1, "call", "read_file", {}),
    "finish_call": lambda c, z: journal.finish_call(c, scope(z), "begun", "late", False, None),
    "base": lambda c, z: effects.fix_base(c, z.step, z.fence, "late"),
    "start": lambda c, z: effects.fix_start(c, z.step, z.fence, "late"),
    "conflict": lambda c, z: effects.count_conflict(c, z.step, z.fence, "late"),
    "effect": lambda c, z: effects.write_effect(c, z.step, z.fence, "late", "push", {}),
    "inbox": lambda c, z: effects.take_messages(c, z.step, z.fence),
}
_TABLES = (
    "tasks steps attempts events logs turns tool_calls usage effects questions messages artifacts".split()  # noqa: SIM905
)


def everything(ledger: Ledger) -> dict[str, list[dict[str, Any]]]:
    """All that a worker's word may change."""
    return {table: ledger.rows(f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in _TABLES}


def zombie(ledger: Ledger, task_id: str) -> Claimed:
    """A worker that was silent for a lease, so that its step was queued again."""
    claimed = ledger.take(ledger.task(task_id)["work"])
    ledger.do(lambda c: journal.begin_call(c, scope(claimed), 1, "begun", "read_file", {}))
    ledger.run("INSERT INTO messages (task_id, author, text) VALUES (:task, 'me', 'Go left.')", task=task_id)
    ledger.expire(claimed.step)
    return claimed


def changed_by(ledger: Ledger, claimed: Claimed, word: str) -> bool:
    before = everything(ledger)
    try:
        said = ledger.do(lambda connection: WORDS_OF_A_WORKER[word](connection, claimed))
    except FenceLost:
        said = None
    after = everything(ledger)
    assert bool(said) <= (before != after), f"{word} says that it did something"
    return before != after


def test_a_zombie_changes_nothing_after_a_later_claim(ledger: Ledger) -> None:
    for word in WORDS_OF_A_WORKER:
        late = zombie(ledger, word)
        ledger.take(late.step)
        assert not changed_by(ledger, late, word), word


def test_between_the_leases_a_zombie_changes_nothing_either(ledger: Ledger) -> None:
    """Its fence is still the latest, but the step doesn't run any more."""
    for word in WORDS_OF_A_WORKER:
        assert not changed_by(ledger, zombie(ledger, word), word), word


def test_each_of_these_words_counts_for_the_one_who_holds_the_fence(ledger: Ledger) -> None:
    """The control of the two tests above."""
    for word in WORDS_OF_A_WORKER:
        successor = ledger.take(zombie(ledger, word).step)
        assert changed_by(ledger, successor, word), word


# --- leases that end ----------------------------------------------------------------------------------------


def test_a_lease_that_ended_leads_to_another_attempt(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    ledger.take(ref)
    applied = ledger.expire(ref)
    assert applied is not None
    assert applied.released == (ref.step_id,)
    again = ledger.take(ref)
    assert (again.attempt, again.fence, again.resumed) == (2, 2, False)
    tried = ledger.rows("SELECT number, outcome FROM attempts ORDER BY number")
    assert [(row["number"], row["outcome"]) for row in tried] == [(1, "lease_lost"), (2, None)]
    assert ledger.names(ref) == ["claim", "expire", "claim"]


def test_a_lease_that_goes_on_is_not_ended(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task()["work"])
    expired = ledger.do(lambda c: transitions.expire(c, claimed.step, claimed.fence, uncounted=False))
    assert expired is None
    assert ledger.step(claimed.step)["status"] == "running"


def test_a_step_that_loses_every_worker_is_poison(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    for attempt in (1, 2, 3):
        assert ledger.take(ref).attempt == attempt
        applied = ledger.expire(ref)
    assert applied is not None
    assert applied.settled.ended
    assert ledger.row()["outcome"]["reason"] == "poison"
    assert ledger.row()["outcome"]["recoverable"] is True
    ledger.assert_consistent()


def test_an_outage_of_postgres_costs_no_attempt(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    for _ in range(7):
        assert ledger.take(ref).attempt == 1
        ledger.expire(ref, uncounted=True)
    ledger.assert_consistent()


# --- guards of the tables -----------------------------------------------------------------------------------


def test_what_has_ended_keeps_what_it_says(ledger: Ledger) -> None:
    ledger.succeed(ledger.take(ledger.task()["work"]))
    for change in (
        "steps SET status = 'queued', finished_at = NULL",
        "steps SET attempt = attempt + 1, fence = fence + 1",
        "steps SET fence = fence + 1",
        "steps SET result = '{}'",
        "steps SET result_commit = 'another'",
        "tasks SET status = 'running', finished_at = NULL",
        "tasks SET outcome = '{}'",
        "tasks SET result = NULL",
        "tasks SET tip_commit = 'another'",
        "workflows SET phase = 'failed'",
        "workflows SET result = NULL",
    ):
        with pytest.raises(IntegrityError, match="it stays so"):
            ledger.run(f"UPDATE {change}")


def test_what_may_follow_an_end_may_follow(ledger: Ledger) -> None:
    ledger.succeed(ledger.take(ledger.task()["work"]))
    assert ledger.run("UPDATE tasks SET archived_at = now(), notified_at = now(), entry_delivered_at = now()")
    ledger.do(lambda c: effects.append_logs(c, the_task(), None, None, [LogChunk("system", "cleaned")]))


LIES = (
    ("steps SET status = 'running'", "ck_steps_lease_or_machine"),
    (
        "steps SET status = 'running', lease_until = now(), waiting_on = 'subtask'",
        "ck_steps_lease_or_machine",
    ),
    ("steps SET lease_until = now()", "ck_steps_lease_or_machine"),
    ("steps SET waiting_on = 'question'", "ck_steps_waiting_on"),
    ("steps SET status = 'running', waiting_on = 'slot'", "ck_steps_waiting_on"),
    ("steps SET status = 'pending_input', waiting_on = 'subtask'", "ck_steps_waiting_on"),
    ("steps SET status = 'completed'", "ck_steps_finished_when_terminal"),
    ("steps SET finished_at = now()", "ck_steps_finished_when_terminal"),
    ("steps SET status = 'lost'", "ck_steps_status"),
    ("steps SET attempt = 1", "ck_steps_fence_rises"),
    ("tasks SET status = 'failed'", "ck_tasks_finished_when_terminal"),
    ("tasks SET waiting_on = 'question'", "ck_tasks_waiting_on"),
    ("tasks SET priority = 'urgent'", "ck_tasks_priority"),
    ("workflows SET phase = 'thinking'", "ck_workflows_phase"),
)


def test_a_row_that_lies_is_refused(ledger: Ledger) -> None:
    ledger.task()
    for row, check in LIES:
        with pytest.raises(IntegrityError, match=check):
            ledger.run(f"UPDATE {row}")


# --- endings ------------------------------------------------------------------------------------------------


def reason(ledger: Ledger, key: str) -> str:
    return str(ledger.step(ledger.steps()[key])["error"]["message"])


def test_after_a_failure_nothing_new_starts_and_what_runs_goes_on(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"), step("c", "a"), step("d", "c"), step("e"))
    running = ledger.take(refs["b"])
    failed = ledger.fail(ledger.take(refs["a"]))
    assert failed is not None
    assert not failed.settled.ended
    assert ledger.statuses() == {
        "a": "failed",
        "b": "running",
        "c": "cancelled",
        "d": "cancelled",
        "e": "cancelled",
    }
    assert reason(ledger, "c") == reason(ledger, "d") == "needs a"
    assert reason(ledger, "e") == "step a failed"
    ledger.assert_consistent()
    ended = ledger.succeed(running)
    assert ended is not None
    assert ended.settled.ended
    assert ledger.row()["outcome"] == {
        "type": "failed",
        "reason": "no-luck",
        "message": "It did not work.",
        "recoverable": True,
        "step": "a",
    }
    assert ledger.rows("SELECT phase FROM workflows")[0]["phase"] == "failed"
    ledger.assert_consistent()


def test_a_task_that_goes_on_after_failures_is_completed_in_part(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"), step("c", "a"), step("d", "b"), on_step_failure="continue")
    ledger.fail(ledger.take(refs["a"]))
    assert ledger.statuses() == {"a": "failed", "b": "queued", "c": "cancelled", "d": "queued"}
    ledger.succeed(ledger.take(refs["b"]))
    ended = ledger.succeed(ledger.take(refs["d"]))
    assert ended is not None
    assert ended.settled.ended
    assert ledger.row()["status"] == "completed"
    assert ledger.row()["outcome"] == {"type": "partially_completed", "gaps": ["a", "c"]}
    ledger.assert_consistent()


def test_a_failure_takes_parked_steps_and_their_questions_along(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"), step("c"))
    ledger.ask(ledger.take(refs["b"]))
    waiting = ledger.take(refs["c"])
    ledger.do(lambda c: transitions.park(c, refs["c"], waiting.fence, Event.WAIT, WaitingOn.RATE_LIMIT, {}))
    assert ledger.row()["open_questions"] == 1
    ended = ledger.fail(ledger.take(refs["a"]))
    assert ended is not None
    assert ended.settled.ended
    assert ledger.question(refs["b"])["withdrawn_at"] is not None
    assert ledger.row()["open_questions"] == 0
    assert not ledger.rows("SELECT 1 FROM attempts WHERE ended_at IS NULL")
    ledger.assert_consistent()


def test_a_task_ends_in_the_transaction_of_its_last_step(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b", "a"))
    ledger.succeed(ledger.take(refs["a"]))
    last = ledger.take(refs["b"])
    with ledger.engine.connect() as connection:
        completion.succeed(connection, last.step, last.fence, summary="done", result={})
        connection.rollback()
    assert (ledger.row()["status"], ledger.row()["finished_at"]) == ("running", None)
    ended = ledger.succeed(last)
    assert ended is not None
    assert ended.settled.ended
    task = ledger.row()
    assert (task["status"], task["outcome"]) == ("completed", {"type": "completed"})
    assert [one["status"] for one in task["result"]["steps"]] == ["completed", "completed"]
    phases = [row["to_state"] for row in ledger.rows("SELECT to_state FROM workflow_history ORDER BY id")]
    assert phases == ["pending", "processing", "validation_running", "validation_passed"]
    ledger.assert_consistent()


def test_a_second_success_says_nothing(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task()["work"])
    assert ledger.succeed(claimed)
    number = ledger.row()["event_number"]
    assert ledger.succeed(claimed) is None
    assert ledger.row()["event_number"] == number


def test_what_celery_carries_is_not_released_unless_the_header_was_once_sent_alone(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"), step("c", "a", "b"))
    body = frozenset({refs["c"].step_id})
    ledger.succeed(ledger.take(refs["a"]), carried=body)
    done = ledger.succeed(ledger.take(refs["b"]), carried=body)
    assert done is not None
    assert (done.ready, done.released) == ((refs["c"].step_id,), ())
    others = ledger.task("u", step("a"), step("b"), step("c", "a", "b"))
    ledger.run("UPDATE steps SET published_alone = true WHERE id = :id", id=others["a"].step_id)
    body = frozenset({others["c"].step_id})
    ledger.succeed(ledger.take(others["a"]), carried=body)
    done = ledger.succeed(ledger.take(others["b"]), carried=body)
    assert done is not None
    assert done.released == (others["c"].step_id,), "its counter in Redis will never be full"


# --- what people said while it ran --------------------------------------------------------------------------

LIVE_WAYS_OUT = {
    "ask": lambda c, z: effects.ask(c, z.step, z.fence, Ask("call", "Which?")),
    "wait": WORDS_OF_A_WORKER["park"],
    "retry": WORDS_OF_A_WORKER["retry"],
    "give_back": WORDS_OF_A_WORKER["give_back"],
}


def give_back(ledger: Ledger, claimed: Claimed, way: str) -> Applied:
    if way == "expire":
        applied = ledger.expire(claimed.step)
    else:
        applied = ledger.do(lambda connection: LIVE_WAYS_OUT[way](connection, claimed))
    assert applied is not None
    return applied


def test_a_cancel_that_no_heartbeat_told_ends_the_step_when_it_gives_back(ledger: Ledger) -> None:
    """A parked or queued step has no next heartbeat: with the cancel only on the task it would hang."""
    for way in (*LIVE_WAYS_OUT, "expire"):
        claimed = ledger.take(ledger.task(way)["work"])
        ledger.do(lambda c, t=way: intervene.cancel(c, TENANT, t, by="me", reason="enough"))
        assert ledger.row(way)["status"] == "running"
        applied = give_back(ledger, claimed, way)
        assert applied.settled.ended
        assert applied.instead == "cancelled"
        assert ledger.row(way)["outcome"] == {"type": "cancelled", "reason": "enough"}
        assert ledger.row(way)["open_questions"] == 0
        ledger.assert_consistent(way)
    assert {row["state"] for row in ledger.rows("SELECT state FROM interventions")} == {"applied"}


def test_a_pause_that_no_heartbeat_told_holds_the_step_when_it_gives_back(ledger: Ledger) -> None:
    for way in ("retry", "give_back", "expire"):
        claimed = ledger.take(ledger.task(way)["work"])
        ledger.do(lambda c, t=way: intervene.pause(c, TENANT, t, by="me"))
        applied = give_back(ledger, claimed, way)
        assert (applied.instead, applied.released) == ("pending_input", ())
        assert (ledger.row(way)["status"], ledger.row(way)["waiting_on"]) == ("pending_input", "paused")
        ledger.assert_consistent(way)
        resumed = ledger.do(lambda c, t=way: intervene.resume(c, TENANT, t, by="me"))
        assert resumed.publish.released == (() if way == "retry" else (claimed.step,))
        if way == "retry":  # its back-off goes on
            ledger.run("UPDATE steps SET not_before = now() WHERE not_before IS NOT NULL")
            assert ledger.do(lambda c, one=claimed.step: due(c, one)) is not None
        ledger.take(claimed.step)
        ledger.assert_consistent(way)


def test_what_becomes_ready_in_a_paused_task_is_paused(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b", "a"))
    running = ledger.take(refs["a"])
    ledger.do(lambda c: intervene.pause(c, TENANT, "t", by="me"))
    done = ledger.succeed(running)
    assert done is not None
    assert done.released == ()
    assert ledger.statuses() == {"a": "completed", "b": "pending_input"}
    ledger.assert_consistent()
    ledger.do(lambda c: intervene.resume(c, TENANT, "t", by="me"))
    ledger.take(refs["b"])
    ledger.assert_consistent()


def test_a_question_that_was_answered_before_is_not_asked_again(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    ledger.ask(ledger.take(ref))
    ledger.do(lambda c: answer.answer(c, TENANT, "t", "left", by="me"))
    applied = ledger.ask(ledger.take(ref))
    assert applied is not None
    assert applied.released == (ref.step_id,)
    assert ledger.row()["open_questions"] == 0
    assert ledger.take(ref).attempt == 1
    ledger.assert_consistent()


# --- events -------------------------------------------------------------------------------------------------


def test_events_have_no_gap_however_many_write(ledger: Ledger) -> None:
    refs = ledger.task("t", *(step(f"s{number}") for number in range(8)))
    many = opened(ledger.url, pool_size=8)
    claims = [many.take(ref) for ref in refs.values()]

    def write(claimed: Claimed) -> None:
        dice = random.Random(claimed.number)
        for turn in range(10):
            seen = [EventDraft("progress", "turn", {"turn": turn})] * dice.randint(1, 3)
            with many.engine.connect() as connection:
                effects.observe(connection, claimed.step, claimed.fence, 1, seen, [LogChunk("agent", "x")])
                if dice.random() < 0.3:
                    connection.rollback()
                else:
                    connection.commit()
        many.succeed(claimed)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, claims))
    many.engine.dispose()
    assert ledger.row()["status"] == "completed"
    ledger.assert_consistent()
    logs = [row["number"] for row in ledger.rows("SELECT number FROM logs ORDER BY number")]
    assert logs == list(range(1, ledger.row()["log_number"] + 1))


def test_no_events_leave_the_number_where_it_is(ledger: Ledger) -> None:
    ledger.task()
    number = ledger.row()["event_number"]
    ledger.do(lambda connection: events.append_events(connection, the_task(), []))
    assert ledger.row()["event_number"] == number


def test_text_that_postgres_refuses_is_shown_instead(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task()["work"])
    summary = replace(claimed, key="x\x00y").key
    seen = [EventDraft("progress", "text", {"text": summary})]
    ledger.do(lambda c: effects.observe(c, claimed.step, claimed.fence, 1, seen, []))
    assert ledger.events()[-1]["data"] == {"text": "x\ufffdy"}


def test_a_pause_that_was_lifted_before_the_turn_ended_parks_nobody(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task()["work"])
    ledger.do(lambda c: intervene.pause(c, TENANT, "t", by="ada"))
    ledger.do(lambda c: intervene.resume(c, TENANT, "t", by="ada"))
    obeyed = ledger.do(lambda c: transitions.obey_pause(c, claimed.step, claimed.fence))
    assert obeyed is not None
    assert (obeyed.instead, obeyed.released) == (None, (claimed.step.step_id,))
    assert ledger.step(claimed.step)["status"] == "queued"
    again = ledger.take(claimed.step)
    assert (again.attempt, again.resumed) == (1, True)
    ledger.do(lambda c: intervene.pause(c, TENANT, "t", by="ada"))
    obeyed = ledger.do(lambda c: transitions.obey_pause(c, again.step, again.fence))
    assert obeyed is not None
    assert (obeyed.instead, obeyed.released) == ("pending_input", ())
    ledger.assert_consistent()


def test_a_pause_before_the_first_claim_is_no_start(ledger: Ledger) -> None:
    ledger.task()
    ledger.do(lambda c: intervene.pause(c, TENANT, "t", by="ada"))
    assert (ledger.row()["status"], ledger.row()["started_at"]) == ("pending_input", None)


def test_a_statement_of_which_only_a_part_was_prepared_is_prepared_to_its_end(ledger: Ledger) -> None:
    whole = Prepared("in_parts", "SELECT :n; SELECT :n AS n", n="int")
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql(whole._preparations[0])
        connection.connection.info["in_parts"] = 1
        assert whole.run(connection, {"n": 7}) == [{"n": 7}]
        connection.invalidate()


@pytest.mark.parametrize("how", ["DISCARD ALL", "DEALLOCATE found_1", "forgotten"])
def test_a_connection_whose_preparations_are_not_ours_is_given_up(ledger: Ledger, how: str) -> None:
    """Else every later use of it would fail in the same way, for as long as the process lives."""
    found = Prepared("found", "SELECT :n; SELECT :n AS n", n="int")
    engine = connect.create(ledger.url, application="tests", pool_size=1)
    with connect.at_once(engine) as direct:
        assert found.run(direct, {"n": 1}) == [{"n": 1}]
        if how == "forgotten":
            direct.connection.info["found"] = 1
        else:
            direct.connection.cursor().execute(how)
    with pytest.raises(DBAPIError) as caught, connect.at_once(engine) as direct:
        found.run(direct, {"n": 2})
    assert connect.is_away(caught.value)
    with connect.at_once(engine) as direct:
        assert found.run(direct, {"n": 3}) == [{"n": 3}]
    with engine.begin() as connection:
        assert found.run(connection, {"n": 4}) == [{"n": 4}]
    engine.dispose()


def test_a_connection_that_breaks_under_one_call_is_not_used_for_the_next(ledger: Ledger) -> None:
    found = Prepared("found", "SELECT pg_backend_pid() AS pid, :n AS n", n="int")
    engine = connect.create(ledger.url, application="tests", pool_size=1)
    with connect.at_once(engine) as direct:
        (pid,) = found.run(direct, {"n": 1})
        ledger.rows("SELECT pg_terminate_backend(:pid)", pid=pid["pid"])
        with pytest.raises(DBAPIError) as caught:
            found.run(direct, {"n": 1})
    assert connect.is_lost(caught.value)
    with engine.begin() as connection:
        assert found.run(connection, {"n": 1}) != [pid]
    engine.dispose()


def test_what_fails_in_one_call_leaves_a_connection_that_holds_transactions(ledger: Ledger) -> None:
    found = Prepared("divided", "SELECT 1 / :n AS n", n="int")
    engine = connect.create(ledger.url, application="tests", pool_size=1)
    for number in (0, 10**30, "a\0", "\ud800"):
        with pytest.raises((DBAPIError, ValueError)), connect.at_once(engine) as direct:
            found.run(direct, {"n": number})
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE never (n int)")
        connection.rollback()
    assert ledger.rows("SELECT to_regclass('never') AS at") == [{"at": None}]
    engine.dispose()
