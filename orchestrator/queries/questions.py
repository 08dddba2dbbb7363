"""What agents asked people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.errors import Unknown
from orchestrator.db.sql import one, rows, statement

LONGEST_ID: Final = 128


@dataclass(frozen=True, slots=True)
class QuestionLine:
    """A question to a person; `state` is open, answered or withdrawn, `kind` question, tool_approval or
    budget. `subject_digest`: SHA-256 of exactly what an approval is for. `on_expiry`: what silence until
    `expires_at` means, fail or default."""

    id: str
    task_id: str
    step_id: str
    kind: str
    state: str
    text: str
    options: tuple[str, ...]
    asked_at: datetime
    subject_digest: str | None
    expires_at: datetime | None
    on_expiry: str | None
    default_answer: str | None
    answer: Mapping[str, Any] | None
    answered_by: str | None
    answered_at: datetime | None


_OPEN_QUESTIONS: Final = statement(
    """
    SELECT * FROM questions WHERE tenant_id = :tenant AND task_id = :task
      AND answered_at IS NULL AND withdrawn_at IS NULL ORDER BY asked_at, id
    """
)
_QUESTION: Final = statement("SELECT * FROM questions WHERE tenant_id = :tenant AND id = :question")


def open_questions(connection: Connection, tenant_id: str, task_id: str) -> tuple[QuestionLine, ...]:
    """Oldest first."""
    return tuple(_question(row) for row in rows(connection, _OPEN_QUESTIONS, tenant=tenant_id, task=task_id))


def question(connection: Connection, tenant_id: str, question_id: str) -> QuestionLine:
    """Raises Unknown."""
    row = None
    if len(question_id) <= LONGEST_ID and question_id.isprintable():
        row = one(connection, _QUESTION, tenant=tenant_id, question=question_id)
    if row is None:
        raise Unknown(
            "question-unknown",
            f"There is no question {question_id[:LONGEST_ID]}.",
            "See what waits for an answer: orchestrator task list --waiting",
        )
    return _question(row)


def _question(row: Mapping[str, Any]) -> QuestionLine:
    state = "answered" if row["answered_at"] else "withdrawn" if row["withdrawn_at"] else "open"
    same = (
        "id task_id step_id kind text asked_at expires_at on_expiry default_answer subject_digest"
        " answer answered_by answered_at"
    )
    return QuestionLine(
        state=state, options=tuple(row["options"]), **{name: row[name] for name in same.split()}
    )
