"""What a running step leaves behind besides its state: logs, observations, questions, artifacts, commits.

Each checks the fence in its own transaction; each with a key happens once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.states import Event
from orchestrator.core.verdict import Ask
from orchestrator.db.claims import holds
from orchestrator.db.events import EventDraft, append_events
from orchestrator.db.journal import FenceLost, question_key
from orchestrator.db.sql import Direct, Prepared, StepRef, TaskRef, dumps, one, rows, statement
from orchestrator.db.transitions import Applied, give_back, park


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Some output of one stream: agent, stdout, stderr or system. Already redacted."""

    stream: str
    text: str


_LOGS: Final = statement(
    """
    WITH t AS (
        UPDATE tasks SET log_number = log_number + :count WHERE tenant_id = :tenant AND id = :task
        RETURNING log_number
    )
    INSERT INTO logs (tenant_id, task_id, number, step_id, attempt, stream, text)
    SELECT :tenant, :task, t.log_number - :count + v.i, :step, :attempt, v.stream, v.text
    FROM t, jsonb_to_recordset(CAST(:chunks AS jsonb)) AS v(i int, stream text, text text)
    """
)


def observe(
    connection: Connection,
    step: StepRef,
    fence: int,
    attempt: int,
    events: Sequence[EventDraft],
    logs: Sequence[LogChunk],
) -> None:
    """Appends what happened since the last time. Raises FenceLost."""
    if not holds(connection, step, fence):
        raise FenceLost
    append_events(connection, step.task, events)
    append_logs(connection, step.task, step.step_id, attempt, logs)


def append_logs(
    connection: Connection, task: TaskRef, step_id: str | None, attempt: int | None, logs: Sequence[LogChunk]
) -> None:
    """Log rows may follow a terminal row too: why something was refused, what a clean-up did."""
    if not logs:
        return
    chunks = [{"i": i, "stream": chunk.stream, "text": chunk.text} for i, chunk in enumerate(logs, start=1)]
    connection.execute(
        _LOGS,
        {
            "tenant": task.tenant_id,
            "task": task.task_id,
            "step": step_id,
            "attempt": attempt,
            "count": len(chunks),
            "chunks": dumps(chunks),
        },
    )


_WORKFLOW_LOGS: Final = statement(
    """
    SELECT l.number, s.key, l.stream, l.text, l.at FROM logs l
    LEFT JOIN steps s ON s.tenant_id = l.tenant_id AND s.id = l.step_id
    WHERE l.tenant_id = :tenant AND l.task_id = :task AND l.number > :after
        AND (s.workflow_id = :workflow OR l.step_id IS NULL)
    ORDER BY l.number LIMIT :limit
    """
)


def logs_of_workflow(connection: Connection, step: StepRef, after: int, limit: int) -> list[dict[str, Any]]:
    """What the steps of this one's workflow printed after that number, in order: number, key, stream, text,
    at."""
    keys = {
        "tenant": step.tenant_id,
        "task": step.task_id,
        "workflow": step.workflow_id,
        "after": after,
        "limit": limit,
    }
    return rows(connection, _WORKFLOW_LOGS, **keys)


_ASK: Final = statement(
    """
    INSERT INTO questions
        (tenant_id, id, task_id, workflow_id, step_id, call_id, kind, text, options, subject_digest,
        default_answer, on_expiry, expires_at)
    SELECT :tenant, 'q_' || replace(CAST(gen_random_uuid() AS text), '-', ''), :task, :workflow, :step,
        :call, :kind, :text, CAST(:options AS jsonb), :digest, :default, nullif(p.silence, 'wait'),
        CASE WHEN p.silence <> 'wait' THEN clock_timestamp() + CAST(p.after AS interval) END
    FROM (
        SELECT o.policy ->> 'after' AS after, CASE
            WHEN o.policy IS NULL THEN 'wait'
            WHEN o.policy ->> 'then' <> 'default' THEN o.policy ->> 'then'
            WHEN :kind = 'question' AND CAST(:default AS text) IS NOT NULL THEN 'default'
            ELSE 'wait' END AS silence
        FROM (SELECT request -> 'on_question_timeout' AS policy FROM tasks
              WHERE tenant_id = :tenant AND id = :task) o) p
    ON CONFLICT (tenant_id, step_id, call_id) DO NOTHING
    RETURNING id
    """
)
"""With what the task's request says of silence; a default is for open questions alone, and only if the asker
has one."""
_CONVERSATION: Final = statement("SELECT conflicts FROM steps WHERE tenant_id = :tenant AND id = :step")
"""A step's conversation is begun anew after each conflict."""
_ASKED: Final = statement(
    """
    SELECT id, answered_at FROM questions WHERE tenant_id = :tenant AND step_id = :step AND call_id = :call
    """
)
_COUNT: Final = statement(
    "UPDATE tasks SET open_questions = open_questions + 1 WHERE tenant_id = :tenant AND id = :task"
)


def ask(connection: Connection, step: StepRef, fence: int, question: Ask) -> Applied | None:
    """Parks the step on a question, which is written with it. None: the fence is lost.

    An agent that asks again what was answered before gives its step back instead: the next claim finds the
    answer in the journal.
    """
    if not holds(connection, step, fence):
        return None
    held = one(connection, _CONVERSATION, tenant=step.tenant_id, step=step.step_id)
    assert held is not None  # noqa: S101 - just locked
    call = question_key(held["conflicts"], question.call_id)
    written = one(
        connection,
        _ASK,
        tenant=step.tenant_id,
        task=step.task_id,
        workflow=step.workflow_id,
        step=step.step_id,
        call=call,
        kind=question.kind,
        digest=question.subject_digest,
        default=None if question.default is None else question.default.replace("\x00", "\ufffd"),
        text=question.text.replace("\x00", "\ufffd"),
        options=dumps(list(question.options)),
    )
    asked = one(connection, _ASKED, tenant=step.tenant_id, step=step.step_id, call=call)
    assert asked is not None  # noqa: S101 - just written, or there before
    if asked["answered_at"] is not None:
        return give_back(connection, step, fence, "answered before")
    if written is not None:
        connection.execute(_COUNT, {"tenant": step.tenant_id, "task": step.task_id})
    detail = {"question_id": asked["id"], "question": question.text, "options": list(question.options)}
    return park(connection, step, fence, Event.ASK, question.kind, detail)


_BASE: Final = statement(
    """
    UPDATE tasks SET base_commit = :commit
    WHERE tenant_id = :tenant AND id = :task AND base_commit IS NULL
    """
)
_START: Final = statement(
    """
    UPDATE steps SET start_commit = :commit
    WHERE tenant_id = :tenant AND id = :step AND fence = :fence AND lease_until IS NOT NULL
    """
)
_TASK_BASE: Final = statement("SELECT base_commit FROM tasks WHERE tenant_id = :tenant AND id = :task")


def fix_base(connection: Connection, step: StepRef, fence: int, commit: str) -> str:
    """The task's base: the first step to resolve it decides for all. Raises FenceLost."""
    if not holds(connection, step, fence):
        raise FenceLost
    connection.execute(_BASE, {"tenant": step.tenant_id, "task": step.task_id, "commit": commit})
    row = one(connection, _TASK_BASE, tenant=step.tenant_id, task=step.task_id)
    assert row is not None  # noqa: S101 - the step's foreign key
    return str(row["base_commit"])


def fix_start(connection: Connection, step: StepRef, fence: int, commit: str) -> None:
    """The commit that this attempt's workspace began with."""
    connection.execute(
        _START, {"tenant": step.tenant_id, "step": step.step_id, "fence": fence, "commit": commit}
    )


_TIP: Final = statement("UPDATE tasks SET tip_commit = :commit WHERE tenant_id = :tenant AND id = :task")
_CONFLICT: Final = statement(
    """
    UPDATE steps SET conflicts = conflicts + 1,
        spec = spec || jsonb_build_object('conflict', CAST(:shown AS text))
    WHERE tenant_id = :tenant AND id = :step AND fence = :fence AND lease_until IS NOT NULL
    RETURNING conflicts
    """
)


def set_tip(connection: Connection, task: TaskRef, commit: str) -> None:
    """The branch's new end; only in the transaction that completes the step whose commit it is."""
    connection.execute(_TIP, {"tenant": task.tenant_id, "task": task.task_id, "commit": commit})


def count_conflict(connection: Connection, step: StepRef, fence: int, shown: str) -> int:
    """How often this step's commit could not be integrated by now; `shown` is for the next run."""
    row = one(connection, _CONFLICT, tenant=step.tenant_id, step=step.step_id, fence=fence, shown=shown)
    return 0 if row is None else int(row["conflicts"])


_ARTIFACT: Final = statement(
    """
    INSERT INTO artifacts
        (tenant_id, id, task_id, workflow_id, step_id, kind, name, media_type, size, sha256, key)
    VALUES (:tenant, 'art_' || replace(CAST(gen_random_uuid() AS text), '-', ''), :task, :workflow, :step,
        :kind, :name, :media_type, :size, :sha256, :key)
    ON CONFLICT (tenant_id, task_id, workflow_id, name) DO UPDATE
        SET size = excluded.size, sha256 = excluded.sha256, key = excluded.key, step_id = excluded.step_id,
            created_at = clock_timestamp()
    """
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is in the artifact store already."""

    kind: str
    name: str
    media_type: str
    size: int
    sha256: str
    key: str


def add_artifact(connection: Connection, step: StepRef, stored: StoredFile) -> None:
    """Makes a stored file findable; a later one of the same name in the same workflow takes its place."""
    connection.execute(
        _ARTIFACT,
        {
            "tenant": step.tenant_id,
            "task": step.task_id,
            "workflow": step.workflow_id,
            "step": step.step_id,
            "kind": stored.kind,
            "name": stored.name,
            "media_type": stored.media_type,
            "size": stored.size,
            "sha256": stored.sha256,
            "key": stored.key,
        },
    )


_WRITE: Final = statement(
    """
    INSERT INTO effects (tenant_id, key, task_id, step_id, fence, kind, data)
    VALUES (:tenant, :key, :task, :step, :fence, :kind, CAST(:data AS jsonb))
    ON CONFLICT DO NOTHING
    """
)
_CONFIRM: Final = statement(
    """
    UPDATE effects SET confirmed_at = clock_timestamp(), data = data || CAST(:data AS jsonb)
    WHERE tenant_id = :tenant AND key = :key AND confirmed_at IS NULL
    """
)


def write_effect(
    connection: Connection, step: StepRef, fence: int, key: str, kind: str, data: Mapping[str, Any]
) -> None:
    """Before something happens outside. Raises FenceLost."""
    if not holds(connection, step, fence):
        raise FenceLost
    connection.execute(
        _WRITE,
        {
            "tenant": step.tenant_id,
            "key": key,
            "task": step.task_id,
            "step": step.step_id,
            "fence": fence,
            "kind": kind,
            "data": dumps(data),
        },
    )


def confirm_effect(connection: Connection, tenant_id: str, key: str, data: Mapping[str, Any]) -> None:
    """After it happened."""
    connection.execute(_CONFIRM, {"tenant": tenant_id, "key": key, "data": dumps(data)})


_PUSHED: Final = statement(
    "SELECT data ->> 'commit' AS commit FROM effects WHERE tenant_id = :tenant AND task_id = :task"
    " AND kind = 'push'"
)


def pushed(connection: Connection, task: TaskRef) -> set[str]:
    """The commits that runs of this task pushed, or were about to push."""
    return {row["commit"] for row in rows(connection, _PUSHED, tenant=task.tenant_id, task=task.task_id)}


_INBOX: Final = statement(
    """
    UPDATE messages SET delivered_at = clock_timestamp(), step_id = coalesce(step_id, :step)
    WHERE tenant_id = :tenant AND task_id = :task AND delivered_at IS NULL
      AND (step_id IS NULL OR step_id = :step)
    RETURNING id, text
    """
)


_HAS_MESSAGES: Final = Prepared(
    "has_messages",
    """
    SELECT 1 FROM messages WHERE tenant_id = :tenant AND task_id = :task AND delivered_at IS NULL
      AND (step_id IS NULL OR step_id = :step) LIMIT 1
    """,
)


def has_messages(connection: Connection | Direct, step: StepRef) -> bool:
    """Whether there is anything to take up; asks without the task's lock, which most turns need not have."""
    return (
        one(connection, _HAS_MESSAGES, tenant=step.tenant_id, task=step.task_id, step=step.step_id)
        is not None
    )


def take_messages(connection: Connection, step: StepRef, fence: int) -> list[str]:
    """Steering messages that nobody has taken up, in order; the caller journals them in this transaction.
    Raises FenceLost."""
    if not holds(connection, step, fence):
        raise FenceLost
    taken = rows(connection, _INBOX, tenant=step.tenant_id, task=step.task_id, step=step.step_id)
    return [row["text"] for row in sorted(taken, key=lambda row: row["id"])]


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a task's branch begins and ends; `tip` None: nothing is on it yet."""

    base: str
    tip: str | None


_BRANCH: Final = statement(
    "SELECT base_commit, tip_commit FROM tasks WHERE tenant_id = :tenant AND id = :task FOR UPDATE"
)


def branch_ends(connection: Connection, task: TaskRef) -> Branch:
    """Reads and locks it; the base was fixed before any workspace was opened."""
    row = one(connection, _BRANCH, tenant=task.tenant_id, task=task.task_id)
    assert row is not None  # noqa: S101 - the caller holds a step of it
    return Branch(row["base_commit"], row["tip_commit"])


_REASON: Final = statement("SELECT cancel_reason FROM tasks WHERE tenant_id = :tenant AND id = :task")


def cancel_reason(connection: Connection, task: TaskRef) -> str:
    row = one(connection, _REASON, tenant=task.tenant_id, task=task.task_id)
    return str((row and row["cancel_reason"]) or "cancelled")


_FINAL_TIPS: Final = statement(
    """
    SELECT id, tip_commit FROM tasks
    WHERE tenant_id = :tenant AND id = ANY(:tasks) AND finished_at IS NOT NULL
    """
)


def final_tips(connection: Connection, tenant_id: str, tasks: Sequence[str]) -> dict[str, str | None]:
    """Where the branches of those of the tasks that have ended end; None: they have none."""
    found = rows(connection, _FINAL_TIPS, tenant=tenant_id, tasks=list(tasks))
    return {row["id"]: row["tip_commit"] for row in found}
