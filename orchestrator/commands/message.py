"""What a person says to a task while its agents work: heard before their next turn, in order, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from orchestrator.core.errors import Conflict, Unknown
from orchestrator.core.redaction import LOOKS, beginning
from orchestrator.core.states import TERMINAL, Status
from orchestrator.db.events import EventDraft, append_events
from orchestrator.db.locks import lock_task
from orchestrator.db.sql import TaskRef, one, statement

MOST_WAITING: Final = 100
"""Messages of one task that no turn has taken up: they are taken up together."""
_SHOWN: Final = 300


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that is kept until a turn takes it up."""

    id: int
    task_id: str
    status: str
    message: str
    """What happens now."""


_WAITING: Final = statement(
    """
    SELECT count(*) AS n FROM messages
    WHERE tenant_id = :tenant AND task_id = :task AND delivered_at IS NULL
    """
)
_WRITE: Final = statement(
    """
    INSERT INTO messages (tenant_id, task_id, author, text) VALUES (:tenant, :task, :author, :text)
    RETURNING id
    """
)


def send(connection: Connection, tenant_id: str, task_id: str, text: str, *, by: str) -> Sent:
    """What looks like a secret is taken out of it. Raises Unknown, or Conflict (`task-ended`,
    `messages-unheard`)."""
    task = lock_task(connection, TaskRef(tenant_id, task_id))
    if task is None:
        raise Unknown("task-unknown", f"There is no task {task_id}.", "orchestrator task list")
    if task.status in TERMINAL:
        raise Conflict(
            "task-ended",
            f"Task {task_id} has ended as {task.status}: nobody would hear it.",
            f"Run it again: orchestrator task retry {task_id}",
        )
    waiting = one(connection, _WAITING, tenant=tenant_id, task=task_id)
    if waiting is not None and waiting["n"] >= MOST_WAITING:
        raise Conflict(
            "messages-unheard",
            f"{waiting['n']} messages to task {task_id} wait to be heard.",
            f"See what it does, or waits for: orchestrator task status {task_id}",
        )
    text = LOOKS.text(text)
    written = one(connection, _WRITE, tenant=tenant_id, task=task_id, author=by, text=text)
    assert written is not None  # noqa: S101 - RETURNING of an insert
    said = {"by": by, "reason": beginning(text, _SHOWN)}
    append_events(connection, task.ref, [EventDraft("intervention", "message", said)])
    runs = task.status is Status.RUNNING
    when = "at its agent's next turn" if runs else "as soon as a step of it runs"
    return Sent(written["id"], task_id, task.status, f"It is heard {when}.")
