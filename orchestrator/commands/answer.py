"""A person's answer to an agent's question: taken once, and the step goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.commands.publication import Publication, following
from orchestrator.core.errors import Conflict, Refused, Unknown
from orchestrator.core.redaction import LOOKS
from orchestrator.core.states import Event
from orchestrator.db.sql import StepRef, TaskRef, dumps, one, rows, statement
from orchestrator.db.waking import wake

MAX_ANSWER: Final = 20_000


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

    `given` is the text, or `{"choice": n}` (from 1, of the options); what looks like a secret is taken out of
    it. Raises Unknown, Refused (`answer-invalid`), or Conflict (`already-answered`, which tells the first
    answer; `question-withdrawn`).
    """
    question = one(connection, _FIND, tenant=tenant_id, question=_question_id(connection, tenant_id, subject))
    if question is None:
        raise Unknown(
            "question-unknown", f"There is no question {subject}.", "orchestrator task list --waiting"
        )
    text = LOOKS.text(_text(given, question["options"]))
    step = StepRef(tenant_id, question["task_id"], question["workflow_id"], question["step_id"])
    woken = wake(
        connection,
        step,
        Event.ANSWER,
        {"question": question["id"], "by": by},
        first=lambda: (
            one(
                connection,
                _TAKE,
                tenant=tenant_id,
                question=question["id"],
                answer=dumps({"text": text}),
                by=by,
            )
            is not None
        ),
    )
    if woken is None:
        raise _too_late(connection, tenant_id, question["id"])
    connection.execute(_COUNT, {"tenant": tenant_id, "task": question["task_id"]})
    publish = following(step.task, woken.settled, (step,) if woken.released else ())
    return Answered(question["id"], question["task_id"], text, publish)


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
        raise Unknown(
            "question-unknown",
            f"Task {subject} has no open question.",
            f"orchestrator task status {subject}",
        )
    return str(found[0]["id"])


def _text(given: str | Mapping[str, Any], options: list[str]) -> str:
    if isinstance(given, Mapping) and "choice" in given:
        choice = given["choice"]
        if not isinstance(choice, int) or isinstance(choice, bool) or not 1 <= choice <= len(options):
            raise Refused(
                "answer-invalid",
                f"There is no choice {choice!r}.",
                f"Choose a number from 1 to {len(options)}.",
            )
        return str(options[choice - 1])
    text = given.get("text") if isinstance(given, Mapping) else given
    if not isinstance(text, str) or not text.strip():
        raise Refused("answer-invalid", "The answer is empty.", 'Send {"text": "…"} or {"choice": n}.')
    if len(text) > MAX_ANSWER:
        raise Refused("answer-invalid", f"The answer is longer than {MAX_ANSWER} characters.", "Shorten it.")
    return text


def _too_late(connection: Connection, tenant_id: str, question_id: str) -> Conflict:
    now = one(connection, _FIND, tenant=tenant_id, question=question_id)
    if now is not None and now["answered_at"] is not None:
        return Conflict(
            "already-answered",
            f"Question {question_id} was answered by {now['answered_by']}: {now['answer']['text']}",
            f"See how it goes on: orchestrator task watch {now['task_id']}",
        )
    return Conflict(
        "question-withdrawn",
        f"Question {question_id} needs no answer any more: its step has ended.",
        "Nothing is to be done.",
    )
