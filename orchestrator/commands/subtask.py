"""An agent starts tasks of its own: each call once, under its step's fence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.commands.publication import Started
from orchestrator.commands.request import MAX_DESCRIPTION, harmless
from orchestrator.commands.submit import Misfit, begin, title_of
from orchestrator.core.plan import PlanStep, validate
from orchestrator.core.redaction import LOOKS
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.db.claims import holds
from orchestrator.db.events import EventDraft, append_events
from orchestrator.db.journal import FenceLost
from orchestrator.db.locks import EXCEEDED_SQL
from orchestrator.db.run_tokens import allows
from orchestrator.db.sql import StepRef, TaskRef, dumps, one, rows, statement


class NotStarted(Exception):
    """No subtask was started; the text says why, for the agent."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a tree of tasks may grow. `depth`: levels below the root; `children`: of one task in one run;
    `tree`: below one root in one run of it."""

    depth: int
    children: int
    tree: int


@dataclass(frozen=True, slots=True)
class Call:
    """Whose subtasks they are: a conversation of a step, under a claim. `commit`: what they start from;
    None: from what the step did."""

    step: StepRef
    fence: int
    conversation: int
    commit: str | None


_LOCK_ROOT: Final = statement(
    """
    SELECT 1 FROM tasks WHERE tenant_id = :tenant
      AND id = (SELECT root_id FROM tasks WHERE tenant_id = :tenant AND id = :task) FOR UPDATE
    """
)
"""Before the task's own lock, since ancestors come first: two branches of a tree count one after another."""
_PARENT: Final = statement(
    f"""
    SELECT t.root_id, t.depth, t.request, t.created_by, t.priority, t.paused_at, t.cancel_requested_at,
        {EXCEEDED_SQL} AS exceeded, s.max_attempts,
        coalesce(s.agent_type, t.agent_type) AS agent_type, coalesce(s.model, t.model) AS model,
        coalesce(s.start_commit, t.base_commit) AS start_commit,
        (SELECT count(*) FROM tasks c JOIN steps o ON o.tenant_id = c.tenant_id AND o.id = c.parent_step_id
         WHERE c.tenant_id = t.tenant_id AND c.parent_id = t.id
           AND o.workflow_id = s.workflow_id) AS children,
        (SELECT count(*) FROM tasks c, tasks r
         JOIN workflows w ON w.tenant_id = r.tenant_id AND w.task_id = r.id AND w.number = r.workflow_number
         WHERE r.tenant_id = t.tenant_id AND r.id = t.root_id AND c.tenant_id = t.tenant_id
           AND c.root_id = t.root_id AND c.parent_id IS NOT NULL AND c.created_at >= w.created_at) AS tree
    FROM tasks t JOIN steps s ON s.tenant_id = t.tenant_id AND s.task_id = t.id
    WHERE t.tenant_id = :tenant AND t.id = :task AND s.id = :step
    """
)
_THERE: Final = statement(
    """
    SELECT parent_call_id FROM tasks
    WHERE tenant_id = :tenant AND parent_step_id = :step AND parent_conversation = :conversation
    """
)
_INSERT: Final = statement(
    """
    INSERT INTO tasks (tenant_id, id, title, description, priority, execution_mode, request, root_id,
        parent_id, parent_step_id, parent_conversation, parent_call_id, depth, created_by, account, deadline,
        agent_type, model, repository_url, repository_branch, base_commit, origin_commit, status, waiting_on,
        waiting_since, paused_at)
    SELECT p.tenant_id, :id, :title, :objective, p.priority, p.execution_mode, CAST(:request AS jsonb),
        p.root_id, p.id, :step, :conversation, :call, p.depth + 1, p.created_by, p.account,
        least(CASE WHEN p.deadline > p.created_at THEN p.deadline END, p.started_at + p.max_duration),
        :agent_type, :model, p.repository_url, p.repository_branch, :commit,
        coalesce(p.origin_commit, p.base_commit),
        CASE WHEN p.paused_at IS NULL THEN 'queued' ELSE 'pending_input' END,
        CASE WHEN p.paused_at IS NULL THEN NULL ELSE 'paused' END,
        CASE WHEN p.paused_at IS NULL THEN NULL ELSE now() END, p.paused_at
    FROM tasks p WHERE p.tenant_id = :tenant AND p.id = :task
    ON CONFLICT DO NOTHING
    RETURNING id
    """
)
"""A subtask has no budget of its own (the root's counts for all), and ends where its parent must."""
_INHERITED: Final = ("repository", "on_question_timeout")


def start(
    connection: Connection,
    call: Call,
    requests: Sequence[SubtaskRequest],
    *,
    bounds: Bounds,
    agent_types: frozenset[str],
    models: Sequence[str],
    misfit: Misfit | None = None,
) -> tuple[Started, ...]:
    """Makes a task of each request whose call has none yet: all of them or none. `agent_types`: what an
    agent may ask for, besides its own; `models`: what its own run may use, as its token says it.

    They inherit what the parent was asked with: repository, priority, agent, model, who asked, the policy
    for questions and approvals; they are never pushed. Raises FenceLost, NotStarted.
    """
    keys = {"tenant": call.step.tenant_id, "task": call.step.task_id, "step": call.step.step_id}
    connection.execute(_LOCK_ROOT, keys)
    if not holds(connection, call.step, call.fence):
        raise FenceLost
    found = rows(connection, _THERE, **keys, conversation=call.conversation)
    there = {row["parent_call_id"] for row in found}
    new = [request for request in requests if request.call_id not in there]
    if not new:
        return ()
    parent = one(connection, _PARENT, **keys)
    assert parent is not None  # noqa: S101 - its step is held
    _check(parent, new, bounds)
    for request in new:
        _check_wishes(parent, request, agent_types, models)
        _check_fit(parent, request, misfit)
    started = tuple(_one(connection, call, parent, request) for request in new)
    append_events(
        connection,
        call.step.task,
        [
            EventDraft(
                "subtask",
                "started",
                {"task_id": each.task.task_id, "call_id": request.call_id},
                call.step.workflow_id,
                call.step.step_id,
                call.fence,
            )
            for each, request in zip(started, new, strict=True)
        ],
    )
    return () if parent["paused_at"] else started


def _check(parent: Mapping[str, Any], new: Sequence[SubtaskRequest], bounds: Bounds) -> None:
    if parent["cancel_requested_at"] is not None or parent["exceeded"] is not None:
        raise NotStarted("the task is about to end, so nothing new may start")
    if parent["depth"] >= bounds.depth:
        raise NotStarted(
            f"this task is {parent['depth']} levels deep, and no task may be deeper than {bounds.depth}: "
            "do the work yourself"
        )
    if parent["children"] + len(new) > bounds.children:
        raise NotStarted(
            f"{parent['children']} subtasks were started and {len(new)} more were asked for, but a task may "
            f"have {bounds.children} at most: do the work yourself, or ask for fewer"
        )
    if parent["tree"] + len(new) > bounds.tree:
        raise NotStarted(
            f"all tasks below the first one are {parent['tree']}, {len(new)} more were asked for, and "
            f"{bounds.tree} are the most: do the work yourself"
        )
    for request in new:
        if not request.objective.strip() or len(request.objective) > MAX_DESCRIPTION:
            raise NotStarted(f"an objective is 1 to {MAX_DESCRIPTION} characters long")


def _check_wishes(
    parent: Mapping[str, Any], request: SubtaskRequest, agent_types: frozenset[str], models: Sequence[str]
) -> None:
    """A model that was talked round must get neither a dearer model nor an agent with fewer bounds."""
    if request.agent_type not in {None, parent["agent_type"], *agent_types}:
        known = ", ".join(sorted(agent_types))
        raise NotStarted(f"a subtask can't have the agent {request.agent_type!r:.80}; there are {known}")
    if request.model is not None and not allows(models, request.model):
        known = ", ".join(models)
        raise NotStarted(f"a subtask can't have the model {request.model!r:.80}; there are {known}")


def _check_fit(parent: Mapping[str, Any], request: SubtaskRequest, misfit: Misfit | None) -> None:
    """An agent that never uses that model would keep its parent waiting for ever."""
    name, model = request.agent_type or parent["agent_type"], request.model or parent["model"]
    if name is None or misfit is None or (request.agent_type is None and request.model is None):
        return
    approvals = bool((parent["request"].get("agent") or {}).get("tool_approval"))
    found = misfit(name, model, approvals=approvals)
    if found is not None:
        lacking, others = found
        raise NotStarted(f"{name} can't do it: {lacking}; these can: {', '.join(others) or 'none'}")


def _one(connection: Connection, call: Call, parent: Mapping[str, Any], request: SubtaskRequest) -> Started:
    objective = LOOKS.text(harmless(request.objective))
    ref = TaskRef(call.step.tenant_id, subtask_id(call.step, call.conversation, request.call_id))
    written = one(
        connection,
        _INSERT,
        tenant=ref.tenant_id,
        id=ref.task_id,
        title=title_of(objective),
        objective=objective,
        request=dumps(_request(parent, objective)),
        task=call.step.task_id,
        step=call.step.step_id,
        conversation=call.conversation,
        call=request.call_id,
        agent_type=request.agent_type or parent["agent_type"],
        model=request.model or parent["model"],
        commit=call.commit or parent["start_commit"],
    )
    if written is None:
        raise NotStarted(f"a task of another origin has the id {ref.task_id}")
    return begin(
        connection,
        ref,
        validate([PlanStep(key="work", description=objective)]),
        parent["priority"],
        parent["max_attempts"],
        parent["created_by"],
        start=parent["paused_at"] is None,
        facts={"parent": call.step.task_id},
    )


def subtask_id(step: StepRef, conversation: int, call_id: str) -> str:
    """The same for the same call, whoever asks how often."""
    told = "\n".join((step.tenant_id, step.step_id, str(conversation), call_id))
    return f"task_{hashlib.sha256(told.encode()).hexdigest()[:26]}"


def _request(parent: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """As if somebody had asked for it; `repository` without push."""
    asked = parent["request"]
    kept = {name: asked[name] for name in _INHERITED if asked.get(name) is not None}
    if isinstance(kept.get("repository"), Mapping):
        kept["repository"] = {name: v for name, v in kept["repository"].items() if name != "push"}
    approvals = (asked.get("agent") or {}).get("tool_approval")
    return {
        "description": objective,
        **kept,
        **({"agent": {"tool_approval": approvals}} if approvals else {}),
    }
