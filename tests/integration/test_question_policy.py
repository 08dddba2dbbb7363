"""What becomes of a question that nobody answers: silence is never consent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.commands import answer, intervene, message, request, subtask
from orchestrator.commands.subtask import Bounds, Call
from orchestrator.core.errors import Conflict, OrchestratorError, Refused
from orchestrator.core.states import WaitingOn
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.core.verdict import Ask, OnSilence
from orchestrator.db import effects, journal, silence
from orchestrator.db.journal import Scope
from orchestrator.db.sql import StepRef
from tests.integration.ledger import TENANT, Ledger
from tests.integration.stack import Stack, worker


def policy(then: str, after: str = "1h") -> dict[str, Any]:
    return {"on_question_timeout": {"after": after, "then": then}}


def asking(
    ledger: Ledger,
    body: dict[str, Any],
    kind: WaitingOn = WaitingOn.QUESTION,
    default: str | None = "left",
) -> StepRef:
    claimed = ledger.take(ledger.task("t", **body)["work"])
    asked = Ask("call_1", "Which one?", ("left", "right"), kind, default=default)
    assert ledger.do(lambda c: effects.ask(c, claimed.step, claimed.fence, asked))
    return claimed.step


def pass_time(ledger: Ledger) -> None:
    assert ledger.run("UPDATE questions SET expires_at = clock_timestamp() WHERE expires_at IS NOT NULL")


def test_the_time_is_counted_from_the_asking(ledger: Ledger) -> None:
    question = ledger.question(asking(ledger, policy("fail", "90m")))
    assert question["expires_at"] - question["asked_at"] < timedelta(minutes=91)
    assert question["expires_at"] - question["asked_at"] > timedelta(minutes=89)
    assert (question["on_expiry"], question["default_answer"]) == ("fail", "left")
    assert ledger.do(silence.unanswered) == []


@pytest.mark.parametrize("body", [{}, policy("wait")])
def test_without_a_policy_a_question_waits_for_ever(ledger: Ledger, body: dict[str, Any]) -> None:
    question = ledger.question(asking(ledger, body))
    assert (question["expires_at"], question["on_expiry"]) == (None, None)


@pytest.mark.parametrize("kind", [WaitingOn.TOOL_APPROVAL, WaitingOn.BUDGET])
def test_silence_is_never_consent(ledger: Ledger, kind: WaitingOn) -> None:
    """Whatever the agent proposes and the request allows: an approval only waits or fails."""
    waits = ledger.question(asking(ledger, policy("default"), kind, "Approve"))
    assert (waits["expires_at"], waits["on_expiry"]) == (None, None)
    ledger.clear()
    fails = ledger.question(asking(ledger, policy("fail"), kind, "Approve"))
    assert fails["on_expiry"] == "fail"


def test_without_a_proposal_of_the_agent_a_default_waits(ledger: Ledger) -> None:
    assert ledger.question(asking(ledger, policy("default"), default=None))["expires_at"] is None


def test_a_question_that_fails_ends_its_step_with_a_reason(ledger: Ledger) -> None:
    ref = asking(ledger, policy("fail"))
    pass_time(ledger)
    (late,) = ledger.do(silence.unanswered)
    assert (late.step, late.then) == (ref, OnSilence.FAIL)
    failed = ledger.do(lambda c: silence.fail_unanswered(c, late))
    assert failed is not None
    assert failed.settled.ended
    outcome = ledger.row()["outcome"]
    assert (outcome["reason"], outcome["recoverable"]) == ("question-unanswered", True)
    assert ledger.question(ref)["withdrawn_at"] is not None
    assert ledger.rows("SELECT outcome FROM attempts") == [{"outcome": "failed"}]
    assert ledger.do(lambda c: silence.fail_unanswered(c, late)) is None
    assert ledger.do(silence.unanswered) == []
    ledger.assert_consistent()


def test_an_answer_that_races_the_end_of_its_time_wins_or_loses_whole(ledger: Ledger) -> None:
    ends = set()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            ref = asking(ledger, policy("fail"))
            pass_time(ledger)
            (late,) = ledger.do(silence.unanswered)
            failing = pool.submit(ledger.do, lambda c, late=late: silence.fail_unanswered(c, late))
            answering = pool.submit(ledger.do, lambda c: answer.answer(c, TENANT, "t", "left", by="me"))
            try:
                answering.result()
                assert failing.result() is None
                assert ledger.step(ref)["status"] == "queued"
                ends.add("answered")
            except OrchestratorError:
                assert failing.result() is not None
                assert ledger.step(ref)["status"] == "failed"
                ends.add("failed")
            ledger.assert_consistent()
            ledger.clear()
    assert ends


def test_a_pause_holds_the_end_back(ledger: Ledger) -> None:
    asking(ledger, policy("fail"))
    pass_time(ledger)
    ledger.do(lambda c: intervene.pause(c, TENANT, "t", by="me"))
    assert ledger.do(silence.unanswered) == []
    ledger.do(lambda c: intervene.resume(c, TENANT, "t", by="me"))
    assert len(ledger.do(silence.unanswered)) == 1


def test_subtasks_inherit_the_policy(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("t", **policy("fail"))["work"])
    call = Call(claimed.step, claimed.fence, 0, None)
    (started,) = ledger.do(
        lambda c: subtask.start(
            c,
            call,
            [SubtaskRequest("a", "Ask.")],
            bounds=Bounds(3, 20, 100),
            agent_types=frozenset(),
            models=frozenset(),
        )
    )
    child = ledger.take(ledger.steps(started.task.task_id)["work"])
    ledger.ask(child)
    assert ledger.question(child.step)["on_expiry"] == "fail"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"after": "1h"}, "then"),
        ({"then": "fail"}, "after"),
        ({"after": "0s", "then": "fail"}, "after"),
        ({"after": "1h", "then": "approve"}, "then"),
        ({"after": "1h", "then": "fail", "or": "else"}, "unknown field"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        request.parse({"description": "x", "on_question_timeout": wrong})
    assert refused.value.code == "request-invalid"


ASKS = {"id": "a", "description": "Ask", "spec": {"do": "ask"}}


def test_the_sweep_gives_the_agent_its_own_answer(stack: Stack) -> None:
    """Nobody is there: it goes on with what it proposed, and the record says who decided."""
    stack.call({"description": "S", "steps": [ASKS], **policy("default", "500ms")}, task_id="t")
    with worker(stack):
        stack.healed(lambda: stack.ledger.row("t")["finished_at"], "the end")
    (step,) = stack.ledger.steps("t").values()
    question = stack.ledger.question(step)
    assert (question["answer"], question["answered_by"]) == ({"text": "left"}, "policy")
    assert stack.ledger.step(step)["result"] == {"answer": "left"}
    assert stack.ledger.row("t")["status"] == "completed"
    with pytest.raises(Conflict, match="answered by policy: left"):
        stack.command(answer.answer, question["id"], "right")


def test_the_sweep_fails_what_nobody_answered(stack: Stack) -> None:
    result = stack.call({"description": "S", "steps": [ASKS], **policy("fail", "500ms")}, task_id="t")
    with worker(stack):
        stack.healed(lambda: stack.ledger.row("t")["finished_at"], "the end")
        with pytest.raises(Exception, match="question-unanswered"):
            result.get(timeout=10)


# --- steering -----------------------------------------------------------------------------------------------


def test_messages_to_a_parked_task_are_heard_in_order_and_once_when_it_goes_on(ledger: Ledger) -> None:
    ref = asking(ledger, {})
    for text in ("First.", "Second."):
        sent = ledger.do(lambda c, text=text: message.send(c, TENANT, "t", text, by="me"))
        assert sent.message == "It is heard as soon as a step of it runs."
    ledger.do(lambda c: answer.answer(c, TENANT, "t", "left", by="me"))
    again = ledger.take(ref)
    assert ledger.do(lambda c: effects.take_messages(c, ref, again.fence)) == ["First.", "Second."]
    assert ledger.do(lambda c: effects.take_messages(c, ref, again.fence)) == []
    scope = Scope(ref, again.fence, again.attempt, 0)
    assert ledger.do(lambda c: journal.load(c, scope)).answers == {"call_1": "left"}


def test_so_many_messages_wait_and_no_more(ledger: Ledger) -> None:
    ref = ledger.task("t")["work"]

    def send() -> message.Sent:
        return ledger.do(lambda c: message.send(c, TENANT, "t", "Again.", by="me"))

    for _ in range(message.MOST_WAITING):
        send()
    with pytest.raises(Conflict, match="messages-unheard"):
        send()
    claimed = ledger.take(ref)
    ledger.do(lambda c: effects.take_messages(c, ref, claimed.fence))
    assert send().message == "It is heard at its agent's next turn."
