"""What people do to tasks, in every state of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest

from orchestrator.commands import answer, intervene
from orchestrator.core.errors import Conflict, Refused, Unknown
from orchestrator.core.states import Event, WaitingOn
from orchestrator.db import effects, transitions
from orchestrator.db.claims import Claimed, Refusal
from orchestrator.db.sql import StepRef
from orchestrator.db.waking import due
from orchestrator.tasks.step import carried
from tests.integration.ledger import TENANT, Ledger, opened, step

Verb = Callable[..., Any]


def say(ledger: Ledger, verb: Verb, *subject: Any, task: str = "t") -> Any:
    return ledger.do(lambda c: verb(c, TENANT, *(subject or (task,)), by="me"))


def escalated(ledger: Ledger, task_id: str = "t", *others: dict[str, Any]) -> StepRef:
    """A task whose step `a` conflicted twice."""
    ref = ledger.task(task_id, step("a"), *others)["a"]
    claimed = ledger.take(ref)
    for _ in range(2):
        ledger.do(lambda c: effects.count_conflict(c, ref, claimed.fence, "<<<<<<<"))
    parked = ledger.do(
        lambda c: transitions.park(
            c, ref, claimed.fence, Event.ASK, WaitingOn.ESCALATION, {"why": "conflict", "files": ["a.txt"]}
        )
    )
    assert parked is not None
    return ref


def asking(ledger: Ledger, task_id: str = "t", *others: dict[str, Any]) -> StepRef:
    ref = ledger.task(task_id, step("a"), *others)["a"]
    ledger.ask(ledger.take(ref))
    return ref


# --- answers ------------------------------------------------------------------------------------------------


def test_an_answer_sends_the_step_on_with_its_attempt(ledger: Ledger) -> None:
    ref = asking(ledger)
    assert (ledger.row()["status"], ledger.row()["waiting_on"]) == ("pending_input", "question")
    assert ledger.row()["waiting_detail"] == {"step_id": ref.step_id}
    assert ledger.row()["open_questions"] == 1
    done = say(ledger, answer.answer, "t", {"choice": 2})
    assert done.answer == "right"
    assert done.publish.released == (ref,)
    assert ledger.row()["open_questions"] == 0
    assert ledger.take(ref).attempt == 1
    ledger.assert_consistent()


def test_a_second_answer_is_refused_and_sees_the_first(ledger: Ledger) -> None:
    ref = asking(ledger)
    say(ledger, answer.answer, "t", "left")
    for subject in ("t", ledger.question(ref)["id"]):
        with pytest.raises(Conflict, match=r"was answered by me: left \(at 20.*Z\)") as found:
            say(ledger, answer.answer, subject, "right")
    assert found.value.code == "already-answered"
    assert ledger.question(ref)["answer"] == {"text": "left"}
    assert ledger.row()["open_questions"] == 0


def test_of_ten_answers_at_once_one_counts(ledger: Ledger) -> None:
    ref = asking(ledger)
    question = ledger.question(ref)["id"]
    many, start = opened(ledger.url, pool_size=10), Barrier(10)

    def give(number: int) -> str | None:
        start.wait()
        try:
            return str(say(many, answer.answer, question, f"answer {number}").answer)
        except Conflict:
            return None

    with ThreadPoolExecutor(10) as pool:
        taken = [text for text in pool.map(give, range(10)) if text]
    many.engine.dispose()
    assert [ledger.question(ref)["answer"]["text"]] == taken
    assert ledger.names(ref).count("answer") == 1
    ledger.assert_consistent()


def test_an_answer_that_races_the_park_finds_a_parked_step_or_no_question(ledger: Ledger) -> None:
    """The question is written in the park's own transaction: nobody can see one without the other."""
    for number in range(10):
        task_id = f"race{number}"
        claimed = ledger.take(ledger.task(task_id)["work"])
        many, start = opened(ledger.url, pool_size=2), Barrier(2)

        def park(who: Claimed = claimed, ledger_: Ledger = many, gate: Barrier = start) -> bool:
            gate.wait()
            return ledger_.ask(who) is not None

        def give(task: str = task_id, ledger_: Ledger = many, gate: Barrier = start) -> bool:
            gate.wait()
            try:
                say(ledger_, answer.answer, task, "left")
            except Unknown:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            parked, answered = pool.submit(park), pool.submit(give)
            assert parked.result()
            gave = answered.result()
        many.engine.dispose()
        assert ledger.row(task_id)["status"] == ("running" if gave else "pending_input")
        assert ledger.row(task_id)["open_questions"] == (0 if gave else 1)
        ledger.assert_consistent(task_id)


def test_an_answer_while_paused_is_taken_and_the_step_stays_paused(ledger: Ledger) -> None:
    ref = asking(ledger)
    say(ledger, intervene.pause)
    done = say(ledger, answer.answer, "t", "left")
    assert done.publish.released == ()
    assert (ledger.step(ref)["status"], ledger.step(ref)["waiting_on"]) == ("pending_input", "paused")
    assert ledger.row()["open_questions"] == 0
    ledger.assert_consistent()
    resumed = say(ledger, intervene.resume)
    assert resumed.publish.released == (ref,)
    ledger.take(ref)
    ledger.assert_consistent()


def test_a_resume_leaves_an_open_question_open(ledger: Ledger) -> None:
    ref = asking(ledger, "t", step("b"))
    say(ledger, intervene.pause)
    say(ledger, intervene.resume)
    assert ledger.step(ref)["waiting_on"] == "question"
    say(ledger, answer.answer, "t", "left")
    ledger.take(ref)
    ledger.assert_consistent()


def test_a_resume_gives_an_escalated_step_one_more_run_of_the_same_attempt(ledger: Ledger) -> None:
    ref = escalated(ledger)
    assert (ledger.row()["status"], ledger.row()["waiting_on"]) == ("pending_input", "escalation")
    done = say(ledger, intervene.resume)
    assert (done.applied, done.status, done.publish.released) == (True, "running", (ref,))
    assert "One more run" in done.message
    assert done.message.endswith(": a. A step that conflicts again waits for a person again.")
    again = ledger.take(ref)
    assert (again.attempt, again.conflicts) == (1, 2), "each conflict has a conversation of its own"
    assert ledger.names(ref) == ["claim", "ask", "resume", "claim"]
    assert ledger.rows("SELECT command, state FROM interventions") == [
        {"command": "resume", "state": "applied"}
    ]
    ledger.assert_consistent()


def test_a_step_that_is_led_on_while_others_run_starts_beside_them(ledger: Ledger) -> None:
    ref = escalated(ledger, "t", step("b"), step("c", "a"))
    ledger.take(ledger.steps()["b"])
    assert ledger.row()["status"] == "running"
    assert say(ledger, intervene.resume).status == "running"
    ledger.succeed(ledger.take(ref))
    ledger.take(ledger.steps()["c"])
    ledger.assert_consistent()


def test_lifting_a_pause_leads_no_escalated_step_on_that_nobody_looked_at(ledger: Ledger) -> None:
    ref = escalated(ledger, "t", step("b"))
    say(ledger, intervene.pause)
    lifted = say(ledger, intervene.resume)
    assert lifted.publish.released == (ledger.steps()["b"],)
    assert "another resume: a." in lifted.message
    assert ledger.step(ref)["waiting_on"] == "escalation"
    assert say(ledger, intervene.resume).publish.released == (ref,)
    with pytest.raises(Conflict, match="not paused, and none of its steps was escalated"):
        say(ledger, intervene.resume)
    ledger.assert_consistent()


def test_of_ten_resumes_at_once_one_leads_the_step_on(ledger: Ledger) -> None:
    ref = escalated(ledger)
    start = Barrier(10)

    def resume(_: int) -> bool:
        start.wait()
        try:
            return say(ledger, intervene.resume).publish.released == (ref,)
        except Conflict:
            return False

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(resume, range(10))) == 1
    assert ledger.names(ref).count("resume") == 1


def test_a_cancel_withdraws_the_question(ledger: Ledger) -> None:
    ref = asking(ledger)
    done = say(ledger, intervene.cancel)
    assert done.applied
    assert ledger.row()["open_questions"] == 0
    with pytest.raises(Conflict) as found:
        say(ledger, answer.answer, ledger.question(ref)["id"], "left")
    assert found.value.code == "question-withdrawn"
    assert ledger.question(ref)["answered_at"] is None
    ledger.assert_consistent()


def test_answers_that_fit_nothing_are_refused(ledger: Ledger) -> None:
    asking(ledger)
    for given in ("", "  ", {"choice": 3}, {"choice": 0}, {"choice": True}, {}, "x" * 20_001):
        with pytest.raises(Refused):
            say(ledger, answer.answer, "t", given)
    with pytest.raises(Unknown):
        say(ledger, answer.answer, "q_of_nobody", "left")
    ledger.task("silent")
    with pytest.raises(Unknown, match="no open question"):
        say(ledger, answer.answer, "silent", "left")
    assert ledger.row()["open_questions"] == 1


def test_a_task_with_two_questions_wants_one_named(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"))
    for ref in refs.values():
        ledger.ask(ledger.take(ref))
    assert ledger.row()["open_questions"] == 2
    with pytest.raises(Conflict, match="2 open questions"):
        say(ledger, answer.answer, "t", "left")
    say(ledger, answer.answer, ledger.question(refs["b"])["id"], "left")
    say(ledger, answer.answer, "t", "right")
    assert ledger.row()["open_questions"] == 0


# --- commands in every state --------------------------------------------------------------------------------


def in_state(ledger: Ledger, state: str) -> None:
    """A task `t` of two steps that is in this state."""
    refs = ledger.task("t", step("a"), step("b", "a"))
    match state:
        case "queued":
            return
        case "paused":
            say(ledger, intervene.pause)
        case "escalated":
            claimed = ledger.take(refs["a"])
            ledger.do(
                lambda c: transitions.park(
                    c, refs["a"], claimed.fence, Event.ASK, WaitingOn.ESCALATION, {"why": "conflict"}
                )
            )
        case "waiting":
            ledger.ask(ledger.take(refs["a"]))
        case "running":
            ledger.take(refs["a"])
        case "completed":
            ledger.succeed(ledger.take(refs["a"]))
            ledger.succeed(ledger.take(refs["b"]))
        case "failed":
            ledger.fail(ledger.take(refs["a"]))
        case "cancelled":
            say(ledger, intervene.cancel)
    assert ledger.row()["status"] in {state, "pending_input"}


EXPECTED = {
    # state: pause, resume, cancel, retry; a word is the refusal's code, a status what follows
    "queued": ("pending_input", "not-paused", "cancelled", "not-ended"),
    "paused": ("already-paused", "queued", "cancelled", "not-ended"),
    "waiting": ("pending_input", "not-paused", "cancelled", "not-ended"),
    "escalated": ("pending_input", "running", "cancelled", "not-ended"),
    "running": ("running", "not-paused", "running", "not-ended"),
    "completed": ("task-ended", "task-ended", "task-ended", "queued"),
    "failed": ("task-ended", "task-ended", "task-ended", "queued"),
    "cancelled": ("task-ended", "task-ended", "task-ended", "queued"),
}
VERBS: tuple[Verb, ...] = (intervene.pause, intervene.resume, intervene.cancel, intervene.retry)


@pytest.mark.parametrize("state", EXPECTED)
def test_each_command_does_what_it_should_in_a_task_that_is(ledger: Ledger, state: str) -> None:
    in_state(ledger, state)
    for verb, wanted in zip(VERBS, EXPECTED[state], strict=True):
        before = ledger.row(), ledger.events()
        with ledger.engine.connect() as connection:
            try:
                said = verb(connection, TENANT, "t", by="me").status
            except Conflict as refused:
                said = refused.code
                connection.rollback()
                assert (ledger.row(), ledger.events()) == before
            assert said == wanted, verb.__name__
            connection.rollback()


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_on_nothing_is_unknown(ledger: Ledger, verb: Verb) -> None:
    with pytest.raises(Unknown):
        say(ledger, verb, task="nobody")


def test_a_cancel_ends_at_once_what_does_not_run(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"), step("c", "a"))
    running = ledger.take(refs["a"])
    done = say(ledger, intervene.cancel)
    assert not done.applied
    assert ledger.statuses() == {"a": "running", "b": "cancelled", "c": "cancelled"}
    again = say(ledger, intervene.cancel)
    assert again.intervention_id is None
    ended = ledger.do(lambda c: transitions.cancel_step(c, running.step, running.fence, "cancelled by me"))
    assert ended is not None
    assert ended.settled.ended
    assert ledger.row()["outcome"] == {"type": "cancelled", "reason": "cancelled by me"}
    assert ledger.rows("SELECT phase FROM workflows") == [{"phase": "cancelled"}]
    assert ledger.rows("SELECT state FROM interventions") == [{"state": "applied"}]
    ledger.assert_consistent()


def test_a_cancel_that_comes_too_late_for_the_last_step_changes_nothing(ledger: Ledger) -> None:
    running = ledger.take(ledger.task()["work"])
    say(ledger, intervene.cancel)
    ended = ledger.succeed(running)
    assert ended is not None
    assert ledger.row()["status"] == "completed"
    assert ledger.rows("SELECT state FROM interventions") == [{"state": "rejected"}]
    ledger.assert_consistent()


def test_a_retry_opens_a_second_workflow_and_leaves_the_first_as_it_ended(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b", "a"))
    ledger.fail(ledger.take(refs["a"]))
    ledger.run("UPDATE tasks SET workflow_number = 1, entry_delivered_at = now()")
    say(ledger, intervene.retry)
    task = ledger.row()
    assert (task["status"], task["workflow_number"], task["tip_commit"]) == ("queued", 2, None)
    assert (task["outcome"], task["result"], task["finished_at"]) == (None, None, None)
    again = ledger.steps()
    assert {ref.workflow_id for ref in again.values()} == {"workflow_t_2"}
    assert ledger.step(refs["a"])["status"] == "failed"
    late = ledger.claim(refs["b"])
    assert not isinstance(late, Claimed)
    ledger.succeed(ledger.take(again["a"]))
    ledger.succeed(ledger.take(again["b"]))
    assert ledger.row()["status"] == "completed"
    ended = ledger.rows("SELECT number, phase FROM workflows ORDER BY number")
    assert [row["phase"] for row in ended] == ["failed", "validation_passed"]
    ledger.assert_consistent()


def test_a_caller_who_has_not_heard_the_end_yet_hears_that_of_the_retry(ledger: Ledger) -> None:
    ledger.fail(ledger.take(ledger.task()["work"]))
    ledger.run("""UPDATE tasks SET entry_signature = '{"task": "x"}'""")
    say(ledger, intervene.retry)
    assert ledger.row()["entry_signature"] == {"task": "x"}


def test_a_task_that_was_not_started_waits_for_its_resume(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b", "a"), start=False)
    assert (ledger.row()["status"], ledger.row()["waiting_on"]) == ("pending_input", "paused")
    ledger.assert_consistent()
    done = say(ledger, intervene.resume)
    assert done.publish.released == (refs["a"],)
    ledger.succeed(ledger.take(refs["a"]))
    ledger.take(refs["b"])
    ledger.assert_consistent()


def test_what_a_request_carries_is_read_from_its_chain_chord_and_links() -> None:
    def sig(task_id: str, **options: Any) -> dict[str, Any]:
        return {"task": "x", "options": {"task_id": task_id, **options}}

    class Request:
        callbacks = (sig("linked"),)
        chain = (
            sig("later"),
            {"task": "celery.group", "kwargs": {"tasks": [sig("g1"), sig("g2")]}, "options": {}},
        )
        chord = sig("body")

    class Asked:
        request = Request()

    assert carried(Asked()) == {"linked", "g1", "g2", "body"}  # type: ignore[arg-type]


# --- a back-off outlives a pause ----------------------------------------------------------------------------


@pytest.mark.parametrize("pause_first", [False, True])
def test_a_pause_and_a_resume_keep_a_retry_s_back_off(ledger: Ledger, pause_first: bool) -> None:
    """Paused while it waits, or while it still runs and then breaks."""
    ref = ledger.task()["work"]
    claimed = ledger.take(ref)

    def broke() -> None:
        later = timedelta(hours=1)
        ledger.do(lambda c: transitions.retry_later(c, ref, claimed.fence, {"code": "x"}, later))

    if pause_first:
        say(ledger, intervene.pause)
        broke()
    else:
        broke()
        say(ledger, intervene.pause)
    before = ledger.step(ref)
    assert (before["status"], before["waiting_on"]) == ("pending_input", "paused")
    done = say(ledger, intervene.resume)
    assert done.publish.released == (), "it isn't due"
    after = ledger.step(ref)
    assert (after["status"], after["waiting_on"]) == ("queued", "retry_backoff")
    assert after["not_before"] == before["not_before"]
    assert isinstance(ledger.claim(ref), Refusal)
    ledger.run("UPDATE steps SET not_before = now() - interval '1 second'")
    assert ledger.do(lambda c: due(c, ref)) is not None
    ledger.take(ref)
    ledger.assert_consistent()


def test_a_back_off_that_ended_during_the_pause_is_over(ledger: Ledger) -> None:
    ref = ledger.task()["work"]
    claimed = ledger.take(ref)
    ledger.do(lambda c: transitions.retry_later(c, ref, claimed.fence, {"code": "x"}, timedelta(hours=1)))
    say(ledger, intervene.pause)
    ledger.run("UPDATE steps SET not_before = now() - interval '1 second'")
    assert say(ledger, intervene.resume).publish.released == (ref,)
    assert ledger.step(ref)["not_before"] is None
    ledger.take(ref)
    ledger.assert_consistent()
