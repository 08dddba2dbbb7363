"""A person's answer to an agent's question: taken once, and the step goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.commands import replies
from orchestrator.commands.publication import Publication, following
from orchestrator.core.errors import Conflict, Unknown
from orchestrator.core.redaction import LOOKS
from orchestrator.core.spending import STOP
from orchestrator.core.states import Event, WaitingOn
from orchestrator.db import budgets, spending, transitions
from orchestrator.db.sql import StepRef, TaskRef, dumps, one, rows, statement
from orchestrator.db.waking import wake


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer that counts."""

    question_id: str
    task_id: str
    answer: str
    publish: Publication


_OPEN: Final = statement(
    """
    SELECT id FROM questions WHERE tenant_id = :tenant AND task_id = :task
      AND answered_at IS NULL AND withdrawn_at IS NULL ORDER BY asked_at
    """
)
_LAST: Final = statement(
    """
    SELECT id FROM questions WHERE tenant_id = :tenant AND task_id = :task AND answered_at IS NOT NULL
    ORDER BY answered_at DESC LIMIT 1
    """
)
_FIND: Final = statement("SELECT * FROM questions WHERE tenant_id = :tenant AND id = :question")
_TAKE: Final = statement(
    """
    UPDATE questions SET answer = CAST(:answer AS jsonb), answered_by = :by, answered_at = clock_timestamp()
    WHERE tenant_id = :tenant AND id = :question AND answered_at IS NULL AND withdrawn_at IS NULL
    RETURNING id
    """
)
_COUNT: Final = statement(
    "UPDATE tasks SET open_questions = open_questions - 1 WHERE tenant_id = :tenant AND id = :task"
)


def answer(
    connection: Connection, tenant_id: str, subject: str, given: str | Mapping[str, Any], *, by: str
) -> Answered:
    """Answers a question, named by its id or, if it is the only open one, by its task's.

    `given` is the text, or `{"choice": n}` (from 1, of the options); of more budget also its new bounds, as
    in a request. What looks like a secret is taken out of it. Raises Unknown, Refused (`answer-invalid`), or
    Conflict (`already-answered`, which tells the first answer; `question-withdrawn`).
    """
    question = one(connection, _FIND, tenant=tenant_id, question=_question_id(connection, tenant_id, subject))
    if question is None:
        raise Unknown(
            "question-unknown", f"There is no question {subject}.", "orchestrator task list --waiting"
        )
    if question["answered_at"] is not None or question["withdrawn_at"] is not None:
        raise _too_late(connection, tenant_id, question["id"])
    match question["kind"]:
        case WaitingOn.BUDGET:
            return _budget(connection, question, given, by)
        case WaitingOn.TOOL_APPROVAL:
            text = replies.approval(replies.text_of(given, question["options"]))
        case _:
            text = replies.text_of(given, question["options"])
    return _give(connection, question, LOOKS.text(text), by)


def _give(connection: Connection, question: Mapping[str, Any], text: str, by: str) -> Answered:
    """Under the task's lock, once; the step goes on."""
    step = _step(question)
    data = {"question": question["id"], "by": by, "kind": question["kind"]}
    woken = wake(
        connection, step, Event.ANSWER, data, first=lambda: _take(connection, question, {"text": text}, by)
    )
    if woken is None:
        raise _too_late(connection, step.tenant_id, question["id"])
    publish = following(step.task, woken.settled, (step,) if woken.released else ())
    return Answered(question["id"], question["task_id"], text, publish)


def _take(connection: Connection, question: Mapping[str, Any], said: Mapping[str, Any], by: str) -> bool:
    keys = {"tenant": question["tenant_id"], "question": question["id"]}
    if one(connection, _TAKE, **keys, answer=dumps(said), by=by) is None:
        return False
    connection.execute(_COUNT, {"tenant": question["tenant_id"], "task": question["task_id"]})
    return True


def _step(question: Mapping[str, Any]) -> StepRef:
    return StepRef(question["tenant_id"], question["task_id"], question["workflow_id"], question["step_id"])


_BUDGET: Final = statement(
    """
    SELECT r.budget, EXISTS (
        SELECT 1 FROM tasks k JOIN questions q ON q.tenant_id = k.tenant_id AND q.task_id = k.id
        WHERE k.tenant_id = t.tenant_id AND k.root_id = t.root_id AND q.kind = 'budget'
          AND q.answered_at >= :asked_at AND q.answer ->> 'text' <> :stop) AS raised
    FROM tasks t JOIN tasks r ON r.tenant_id = t.tenant_id AND r.id = t.root_id
    WHERE t.tenant_id = :tenant AND t.id = :task FOR UPDATE OF r
    """
)
"""The root's, which counts for all below it. Its lock comes before the task's own."""


def _budget(
    connection: Connection, question: Mapping[str, Any], given: str | Mapping[str, Any], by: str
) -> Answered:
    step = _step(question)
    asked = {"asked_at": question["asked_at"], "stop": STOP}
    root = one(connection, _BUDGET, tenant=step.tenant_id, task=step.task_id, **asked)
    assert root is not None  # noqa: S101 - the question's task
    bounds = replies.Bounds(root["budget"], spending.spent(connection, step.task), root["raised"])
    raised = replies.budget(given, question["options"], bounds)
    if raised is None:
        return _stop(connection, question, by)
    budgets.raise_budget(connection, step.task, raised)
    return _give(connection, question, replies.shown(raised), by)


def _stop(connection: Connection, question: Mapping[str, Any], by: str) -> Answered:
    """The step fails without another claim: there is nothing that its agent could do about it."""
    taken = _give(connection, question, STOP, by)
    error = {
        "code": "budget-refused",
        "message": f"The budget is used up, and {by} did not raise it.",
        "recoverable": True,
    }
    step = _step(question)
    failed = transitions.fail(connection, step, None, error)
    assert failed is not None  # noqa: S101 - this transaction has just led it on
    transitions.end_attempts(connection, step.tenant_id, [step.step_id], "failed")
    return replace(taken, publish=following(step.task, failed.settled))


def _question_id(connection: Connection, tenant_id: str, subject: str) -> str:
    if subject.startswith("q_"):
        return subject
    found = rows(connection, _OPEN, tenant=tenant_id, task=TaskRef(tenant_id, subject).task_id)
    if len(found) > 1:
        listed = ", ".join(row["id"] for row in found)
        raise Conflict(
            "question-ambiguous",
            f"Task {subject} has {len(found)} open questions: {listed}.",
            "Name one of them.",
        )
    if not found:
        if (
            last := one(connection, _LAST, tenant=tenant_id, task=TaskRef(tenant_id, subject).task_id)
        ) is not None:
            raise _too_late(connection, tenant_id, last["id"])
        raise Unknown(
            "question-unknown",
            f"Task {subject} has no open question.",
            f"orchestrator task status {subject}",
        )
    return str(found[0]["id"])


def _too_late(connection: Connection, tenant_id: str, question_id: str) -> Conflict:
    now = one(connection, _FIND, tenant=tenant_id, question=question_id)
    if now is not None and now["answered_at"] is not None:
        return Conflict(
            "already-answered",
            f"Question {question_id} was answered by {now['answered_by']}: {now['answer']['text']}"
            f" (at {now['answered_at'].astimezone(UTC):%Y-%m-%d %H:%M:%SZ})",
            f"See how it goes on: orchestrator task watch {now['task_id']}",
        )
    return Conflict(
        "question-withdrawn",
        f"Question {question_id} needs no answer any more: its step has ended.",
        "Nothing is to be done.",
    )
