"""The twelve invariants, read from rows, from git and from /proc after everything has come to rest.

Commit order is Postgres' own: `pg_xact_commit_timestamp`, which the harness switches on. Rows that only grow
(events, turns) then tell exactly which write came after which.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, text

from orchestrator.bootstrap import Wiring
from orchestrator.core.states import RULES, Event, Status
from orchestrator.queues.names import QueueName
from orchestrator.tasks.sweep import run_sweep
from tests.benchmarks.installation import Installation

_TERMINAL: Final = "('completed', 'failed', 'cancelled')"
_EVENTS: Final = "SELECT e.*, pg_xact_commit_timestamp(e.xmin) AS committed FROM events e"

SQL: Final[Mapping[str, Mapping[str, str]]] = {
    "I1 each task ends once": {
        "task not ended": f"SELECT id, status FROM tasks WHERE status NOT IN {_TERMINAL}",
        "step not ended": f"""
            SELECT id, status, waiting_on, attempt, fence, given_back, ready_at, published_at, publications,
              published_by, priority, not_before, lease_until, clock_timestamp() AS now
            FROM steps WHERE status NOT IN {_TERMINAL}""",
        "terminal events of a workflow": f"""
            SELECT w.id, count(e.number) FROM workflows w LEFT JOIN events e ON e.workflow_id = w.id
              AND e.type = 'status' AND e.name IN {_TERMINAL}
            GROUP BY w.id HAVING count(e.number) <> 1""",
        "task says otherwise than its last event": """
            SELECT t.id, t.status, e.name FROM tasks t JOIN LATERAL (
              SELECT name FROM events e WHERE e.task_id = t.id AND e.type = 'status'
              ORDER BY number DESC LIMIT 1
            ) e ON true WHERE e.name <> t.status""",
    },
    "I1 no fault fails a step": {
        "failed for no reason of its own": """
            SELECT id, attempt, error FROM steps WHERE status = 'failed' AND coalesce(error ->> 'code', '?')
              NOT IN ('poison', 'repository-unreachable', 'push-refused', 'ref-moved', 'git-failed',
                'disk-full', 'workspace-io', 'artifact-store-unavailable')""",
        "failed over files that it has not": """
            SELECT id, attempt, error FROM steps WHERE status = 'failed' AND spec ->> 'files' = 'false'
              AND error ->> 'code' <> 'poison'""",
        "deadly, and no poison": """
            SELECT id, status, error FROM steps WHERE spec ->> 'dies' = 'true' AND status <> 'cancelled'
              AND (status <> 'failed' OR error ->> 'code' <> 'poison')""",
    },
    "I2 each effect once": {
        "step succeeded more than once": """
            SELECT step_id, count(*) FROM events WHERE type = 'step' AND name = 'succeed'
            GROUP BY step_id HAVING count(*) > 1""",
        "completed without its event": """
            SELECT id FROM steps s WHERE status = 'completed' AND NOT EXISTS (
              SELECT 1 FROM events e WHERE e.step_id = s.id AND e.type = 'step' AND e.name = 'succeed')""",
        "turns with a gap or twice": """
            SELECT step_id, conversation, count(*), max(number) FROM turns WHERE kind = 'turn'
            GROUP BY step_id, conversation
            HAVING count(*) <> max(number) OR count(DISTINCT number) <> count(*)""",
        "budget other than the sum of what was used": """
            SELECT b.root_id, b.spent_usd, b.spent_tokens, b.calls FROM budgets b
            CROSS JOIN LATERAL (
              SELECT coalesce(sum(u.cost_usd), 0) AS usd, count(*) AS calls, coalesce(sum(u.input_tokens
                + u.output_tokens + u.cache_read_tokens + u.cache_write_tokens), 0) AS tokens
              FROM tasks t JOIN usage u ON u.task_id = t.id
              WHERE t.root_id = b.root_id AND u.call_id IS NOT NULL) s
            WHERE (b.spent_usd, b.spent_tokens, b.calls) <> (s.usd, s.tokens, s.calls)""",
        "turn without exactly one usage row": """
            SELECT t.step_id, t.number FROM turns t WHERE kind = 'turn' AND 1 <> (
              SELECT count(*) FROM usage u
              WHERE u.step_id = t.step_id AND u.conversation = t.conversation AND u.turn = t.number)""",
        "pushed and not confirmed": """
            SELECT s.id FROM steps s JOIN tasks t ON t.id = s.task_id JOIN effects e ON e.step_id = s.id
            WHERE s.kind = 'integrate' AND s.status = 'completed' AND e.confirmed_at IS NULL""",
        "told of a subtask that lived": """
            SELECT k.step_id, k.id, c.id FROM tool_calls k JOIN tasks c ON c.parent_step_id = k.step_id
              AND c.parent_call_id = k.id AND c.parent_conversation = k.conversation
            WHERE k.finished_at IS NOT NULL AND coalesce(c.finished_at > k.finished_at, true)""",
        "told otherwise than a subtask ended": """
            SELECT k.step_id, k.id, c.status, k.result FROM tool_calls k JOIN tasks c
              ON c.parent_step_id = k.step_id AND c.parent_call_id = k.id
              AND c.parent_conversation = k.conversation
            WHERE k.finished_at IS NOT NULL AND NOT starts_with(k.result, c.status)""",
        "woken more often than it waited": """
            SELECT step_id FROM events WHERE type = 'step' AND (name = 'wait'
                OR (name = 'wake' AND data ->> 'why' = 'its subtasks ended')) GROUP BY step_id
            HAVING count(*) FILTER (WHERE name = 'wake') > count(*) FILTER (WHERE name = 'wait')""",
        "completed with an unfinished call": """
            SELECT c.step_id, c.id FROM tool_calls c JOIN steps s ON s.id = c.step_id
            WHERE s.status = 'completed' AND c.finished_at IS NULL AND c.conversation = s.conflicts""",
    },
    "I3 no write by a lost fence": {
        "event": f"""
            WITH e AS ({_EVENTS} WHERE e.type IN ('step', 'progress') AND e.fence IS NOT NULL)
            SELECT late.step_id, late.name, late.fence, c.fence AS claimed FROM e late JOIN e c
              ON c.step_id = late.step_id AND c.name = 'claim' AND c.fence > late.fence
              AND c.number < late.number""",
        "turn": f"""
            WITH c AS ({_EVENTS} WHERE e.type = 'step' AND e.name = 'claim')
            SELECT t.step_id, t.number, t.fence, c.fence AS claimed FROM turns t
            JOIN c ON c.step_id = t.step_id AND c.fence > t.fence
              AND c.committed < pg_xact_commit_timestamp(t.xmin)""",
    },
    "I4 events gap-free and legal": {
        "numbers": """
            SELECT task_id, count(*), max(number) FROM events GROUP BY task_id
            HAVING count(*) <> max(number) OR min(number) <> 1""",
        "log numbers": """
            SELECT task_id, count(*), max(number) FROM logs GROUP BY task_id
            HAVING count(*) <> max(number) OR min(number) <> 1""",
        "after the terminal event": f"""
            SELECT e.task_id, e.number, e.type, e.name FROM events e
            JOIN events t ON t.workflow_id = e.workflow_id
              AND t.type = 'status' AND t.name IN {_TERMINAL} AND e.number > t.number""",
    },
    "I5 needs first": {
        "claimed before a need was completed": """
            SELECT c.step_id, n.need_id FROM events c JOIN step_needs n ON n.step_id = c.step_id
            WHERE c.type = 'step' AND c.name = 'claim' AND NOT EXISTS (
              SELECT 1 FROM events d WHERE d.step_id = n.need_id AND d.type = 'step' AND d.name = 'succeed'
                AND d.number < c.number)""",
    },
    "I6 answers consumed once": {
        "not consumed though its step completed": """
            SELECT q.id FROM questions q JOIN steps s ON s.id = q.step_id
            WHERE q.answered_at IS NOT NULL AND s.status = 'completed' AND q.consumed_at IS NULL""",
        "its result is not in the conversation": """
            SELECT q.id FROM questions q JOIN steps s ON s.id = q.step_id
            JOIN tool_calls c ON c.step_id = q.step_id AND c.id = q.call_id
            WHERE q.consumed_at IS NOT NULL
              AND position(q.answer ->> 'text' IN coalesce(c.result, '')) = 0""",
        "answer events": """
            SELECT q.id, count(e.number) FROM questions q LEFT JOIN events e ON e.step_id = q.step_id
              AND e.type = 'step' AND e.name = 'answer' AND e.data ->> 'question' = q.id
            GROUP BY q.id, q.answered_at HAVING count(e.number) <> (q.answered_at IS NOT NULL)::int""",
        "open though nobody waits": f"""
            SELECT q.id FROM questions q JOIN tasks t ON t.id = q.task_id
            WHERE t.status IN {_TERMINAL} AND q.answered_at IS NULL AND q.withdrawn_at IS NULL""",
    },
    "I7 nothing is left over": {
        "attempt still open": f"""
            SELECT a.step_id, a.number FROM attempts a JOIN steps s ON s.id = a.step_id
            WHERE s.status IN {_TERMINAL} AND a.ended_at IS NULL""",
    },
    "I8 nothing long after a cancel": {
        "claimed after it": """
            SELECT e.step_id FROM events e
            JOIN events c ON c.task_id = e.task_id AND c.workflow_id = e.workflow_id
              AND c.type = 'intervention' AND c.name = 'cancel' AND c.number < e.number
            WHERE e.type = 'step' AND e.name = 'claim'""",
        "turn too late": f"""
            WITH c AS ({_EVENTS} WHERE e.type = 'intervention' AND e.name = 'cancel')
            SELECT t.step_id, t.number FROM turns t JOIN steps s ON s.id = t.step_id
            JOIN c ON c.workflow_id = s.workflow_id
            WHERE pg_xact_commit_timestamp(t.xmin) > c.committed + CAST(:grace AS interval)""",
        "a subtask's turn too late": f"""
            WITH c AS ({_EVENTS} WHERE e.type = 'intervention' AND e.name = 'cancel')
            SELECT t.step_id, t.number FROM turns t JOIN steps s ON s.id = t.step_id
            JOIN tasks k ON k.id = s.task_id JOIN steps p ON p.id = k.parent_step_id
            JOIN c ON c.workflow_id = p.workflow_id
            WHERE pg_xact_commit_timestamp(t.xmin) > c.committed + CAST(:grace AS interval)""",
        "ended too late": f"""
            WITH c AS ({_EVENTS} WHERE e.type = 'intervention' AND e.name = 'cancel')
            SELECT s.id, s.finished_at - c.committed FROM steps s JOIN c ON c.workflow_id = s.workflow_id
            WHERE s.finished_at > c.committed + CAST(:grace AS interval)""",
    },
    "I9 parked without a slot": {
        "slot of a step that doesn't run": """
            SELECT a.id, a.step_id, s.status FROM agents a JOIN steps s ON s.id = a.step_id
            WHERE s.status <> 'running' AND a.status NOT IN ('offline', 'released')
              AND a.heartbeat_at > clock_timestamp() - interval '2 s'""",  # one killed is not yet offline
        "lease of one that doesn't run": """
            SELECT id FROM steps WHERE lease_until IS NOT NULL AND status <> 'running'""",
    },
    "I10 attempts within the limit": {
        "too many": "SELECT id, attempt, max_attempts FROM steps WHERE attempt > max_attempts",
        "attempt rows": """
            SELECT s.id, s.attempt, count(a.number) FROM steps s LEFT JOIN attempts a ON a.step_id = s.id
            GROUP BY s.tenant_id, s.id HAVING s.attempt <> count(a.number)""",
        "claims": """
            SELECT s.id, s.fence, count(e.number) FROM steps s LEFT JOIN events e
              ON e.step_id = s.id AND e.type = 'step' AND e.name = 'claim'
            GROUP BY s.tenant_id, s.id HAVING s.fence <> count(e.number)""",
    },
    "I11 counters are sums": {
        "events": """
            SELECT t.id, t.event_number, count(e.number) FROM tasks t LEFT JOIN events e ON e.task_id = t.id
            GROUP BY t.tenant_id, t.id HAVING t.event_number <> count(e.number)""",
        "logs": """
            SELECT t.id, t.log_number, count(l.number) FROM tasks t LEFT JOIN logs l ON l.task_id = t.id
            GROUP BY t.tenant_id, t.id HAVING t.log_number <> count(l.number)""",
        "open questions": """
            SELECT t.id, t.open_questions, count(q.id) FROM tasks t LEFT JOIN questions q ON q.task_id = t.id
              AND q.answered_at IS NULL AND q.withdrawn_at IS NULL
            GROUP BY t.tenant_id, t.id HAVING t.open_questions <> count(q.id)""",
    },
    "I12 the system is quiet": {
        "the caller was not told": f"""
            SELECT id FROM tasks WHERE entry_signature IS NOT NULL AND entry_delivered_at IS NULL
              AND status IN {_TERMINAL}""",
    },
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise; `what` says where."""

    invariant: str
    what: str


def check(
    here: Installation, wiring: Wiring, accepted: Mapping[str, Sequence[str]], grace: timedelta
) -> list[Violation]:
    """All violations; the installation's processes must still be there, with nothing to do."""
    found: list[Violation] = []
    with wiring.engine.connect() as connection:
        for invariant, queries in SQL.items():
            for name, query in queries.items():
                values = {"grace": grace} if ":grace" in query else {}
                rows = connection.execute(text(query), values).all()
                found += [Violation(invariant, f"{name}: {_plain(row)}") for row in rows]
        found += _transitions(connection)
        found += _answers(connection, accepted)
        found += _branches(connection, here.data / "mirrors")
        found += _folders(connection, here.data / "workspaces")
    found += [
        Violation("I7 nothing is left over", f"process: {one.pid} {_command(one.pid)}")
        for one in here.strays()
    ]
    return found + _quiet(here, wiring)


def _plain(row: Any) -> str:
    return ", ".join(str(value) for value in row)


_STEP_EVENTS: Final = text(
    "SELECT step_id, name, data ->> 'to' AS moved_to, fence, number FROM events"
    " WHERE type = 'step' ORDER BY task_id, number"
)
_STATUSES: Final = text("SELECT id, status FROM steps")


def _transitions(connection: Connection) -> list[Violation]:
    """Every step's events, replayed on the table of rules, lead to the row's status."""
    at: dict[str, Status] = {row.id: Status.QUEUED for row in connection.execute(_STATUSES)}
    found = []
    for row in connection.execute(_STEP_EVENTS):
        rule = RULES[Event(row.name)]
        if at[row.step_id] not in rule.sources:
            found.append(f"{row.step_id}: {row.name} from {at[row.step_id]} (event {row.number})")
        at[row.step_id] = Status(row.moved_to)
    found += [
        f"{row.id} is {row.status}, its events say {at[row.id]}"
        for row in connection.execute(_STATUSES)
        if at[row.id] != row.status
    ]
    return [Violation("I4 events gap-free and legal", f"transition: {each}") for each in found]


_ANSWERS: Final = text("SELECT id, answer ->> 'text' AS answer FROM questions WHERE answered_at IS NOT NULL")


def _answers(connection: Connection, accepted: Mapping[str, Sequence[str]]) -> list[Violation]:
    kept = {row.id: row.answer for row in connection.execute(_ANSWERS)}
    wrong = [
        f"{question}: taken {list(given)}, kept {kept.get(question)!r}"
        for question, given in accepted.items()
        if len(given) > 1 or kept.get(question) != given[0]
    ]
    return [Violation("I6 answers consumed once", each) for each in wrong]


_TASKS: Final = text(
    "SELECT id, base_commit, tip_commit FROM tasks"
    " WHERE repository_url IS NOT NULL AND base_commit IS NOT NULL"
)
_COMMITS: Final = text(
    "SELECT s.task_id, s.id, s.branch_commit FROM steps s JOIN tasks t ON t.id = s.task_id"
    " WHERE t.repository_url IS NOT NULL AND s.status = 'completed' AND s.kind = 'agent'"
)


def _branches(connection: Connection, mirrors: Path) -> list[Violation]:
    """`agent/<task>` is linear, one commit for each completed step, and ends where the row says."""
    found: list[str] = []
    repositories = sorted(mirrors.glob("*.git"))
    refs = {
        name.removeprefix("refs/heads/agent/"): (at, sha)
        for at in repositories
        for sha, name in _refs(at, "refs/heads/agent/")
    }
    steps = list(connection.execute(_COMMITS))
    for task in connection.execute(_TASKS):
        at, tip = refs.pop(task.id, (None, None))
        completed = {s.id: s.branch_commit for s in steps if s.task_id == task.id}
        for step, commit in completed.items():
            if commit is None:
                found.append(f"{step}: completed, and no commit of it")
        if tip != task.tip_commit:
            found.append(f"{task.id}: the branch ends at {tip}, the row says {task.tip_commit}")
        if at is None or tip is None:
            continue
        log = _git(
            at,
            "log",
            "--format=%H %P%x1f%(trailers:key=Step,valueonly,separator=%x1f)",
            tip,
            f"^{task.base_commit}",
        )
        lines = [line.split("\x1f") for line in log.splitlines()]
        for words, *trailers in lines:
            sha, *parents = words.split()
            if len(parents) != 1:
                found.append(f"{task.id}: {sha} has {len(parents)} parents")
            if len(trailers) != 1 or completed.get(trailers[0]) != sha:
                found.append(f"{task.id}: {sha} bears {trailers}, no completed step with that commit")
        named = [trailers[0] for _, *trailers in lines if trailers]
        if sorted(named) != sorted(completed):
            found.append(f"{task.id}: commits of {sorted(named)}, completed are {sorted(completed)}")
    found += [f"a branch of no task: {name}" for name in refs]
    return [Violation("I2 each effect once", f"git: {each}") for each in found]


_PUSHES: Final = text(
    "SELECT t.id, t.tip_commit, s.status FROM tasks t JOIN steps s ON s.task_id = t.id"
    " WHERE t.push AND s.kind = 'integrate'"
)


def check_pushes(wiring: Wiring, remote: Path, foreign: Mapping[str, str]) -> list[Violation]:
    """What the remote has of each task is its tip, or somebody else's commit, which nobody replaced."""
    found: list[str] = []
    refs = {name.removeprefix("refs/heads/agent/"): sha for sha, name in _refs(remote, "refs/heads/agent/")}
    with wiring.engine.connect() as connection:
        tasks = list(connection.execute(_PUSHES))
    for task in tasks:
        there = refs.pop(task.id, None)
        if task.id in foreign:
            if there != foreign[task.id]:
                found.append(f"{task.id}: {foreign[task.id]} was replaced by {there}")
        elif there is None and task.status == "completed" and task.tip_commit is not None:
            found.append(f"{task.id}: its push is completed, and nothing is there")
        elif there is not None and there != task.tip_commit:
            found.append(f"{task.id}: the remote has {there}, the row says {task.tip_commit}")
    found += [f"a branch of no task: {name}" for name in refs]
    return [Violation("I2 each effect once", f"push: {each}") for each in found]


def _refs(at: Path, below: str) -> list[tuple[str, str]]:
    lines = _git(at, "for-each-ref", "--format=%(objectname) %(refname)", below).splitlines()
    return [(sha, name) for sha, _, name in (line.partition(" ") for line in lines)]


def _git(at: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(at), *words], capture_output=True, text=True, check=True)
    return done.stdout


def _folders(connection: Connection, workspaces: Path) -> list[Violation]:
    """All steps have ended, so no checkout has an owner."""
    left = sorted(at.name for at in workspaces.iterdir() if at.is_dir()) if workspaces.is_dir() else []
    del connection
    return [Violation("I7 nothing is left over", f"workspace: {name}") for name in left]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:200]
    except OSError:
        return "(just ended)"


def _quiet(here: Installation, wiring: Wiring) -> list[Violation]:
    """What a killed worker had not acknowledged stays in Redis for a day: nobody waits for it."""
    invariant = "I12 the system is quiet"
    found: list[Violation] = []
    with here.client() as client:
        waiting = {queue.value: client.llen(queue.value) for queue in QueueName if queue != QueueName.SYSTEM}
    found += [Violation(invariant, f"{count} messages in {name}") for name, count in waiting.items() if count]
    for _ in range(2):
        swept = run_sweep(wiring)
        if not swept.quiet:
            found.append(Violation(invariant, f"the sweep still finds something: {swept}"))
    return found
