"""Writes a new task with its workflow, plan and steps; RETRY writes the next workflow of an old one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from sqlalchemy import Connection

from orchestrator.commands.publication import NOTHING, Publication, Started
from orchestrator.commands.request import TaskRequest, check_id, harmless
from orchestrator.core import repository_url
from orchestrator.core.errors import Conflict, Problem, Refused
from orchestrator.core.flow import Flow, compile_plan
from orchestrator.core.plan import Plan, PlanStep, validate
from orchestrator.core.priority import Priority
from orchestrator.core.redaction import LOOKS
from orchestrator.core.spending import price_missing
from orchestrator.core.states import Event
from orchestrator.db.events import EventDraft, append_events
from orchestrator.db.publishing import Publishable
from orchestrator.db.sql import Prepared, StepRef, TaskRef, dumps, one, statement
from orchestrator.db.transitions import step_event

PUSH_KEY: Final = "push"


class Misfit(Protocol):
    def __call__(
        self, name: str, model: str | None, /, *, approvals: bool
    ) -> tuple[str, Sequence[str]] | None: ...


Unpriced = Callable[[str | None, str | None, Sequence[str]], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Policy:
    """What this installation lets a request ask for.

    `misfit(agent, model, approvals=…)`: why they never go together, and the agents that would do.
    `unpriced(agent, model, words)`: with which models of a step a budget in dollars can't be kept, the ones
    that are chosen for it among them; `words` are the task's own.
    """

    max_attempts: int
    allow_local_repositories: bool
    agent_types: frozenset[str]
    allow_private_addresses: bool = False
    misfit: Misfit | None = None
    unpriced: Unpriced | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """A task's row is written. `created` False: the same id was submitted before, with the same request."""

    task_id: str
    workflow_id: str
    created: bool
    warnings: tuple[dict[str, str], ...]
    publish: Publication


_INSERT_TASK: Final = Prepared(
    "insert_task",
    """
    INSERT INTO tasks (tenant_id, id, external_id, title, description, priority, execution_mode,
        on_step_failure, request, warnings, root_id, created_by, deadline, requirements, stakeholders, labels,
        budget, max_duration, agent_type, model, repository_url, repository_branch, push, previous, status,
        waiting_on, waiting_since, paused_at)
    VALUES (:tenant, :task, :external_id, :title, :description, :priority, :mode, :on_step_failure,
        CAST(:request AS jsonb), CAST(:warnings AS jsonb), :task, :created_by, :deadline,
        CAST(:requirements AS jsonb), CAST(:stakeholders AS jsonb), CAST(:labels AS jsonb),
        CAST(:budget AS jsonb), :max_duration, :agent_type, :model, :url, :branch, :push,
        CAST(:previous AS jsonb),
        CASE WHEN :start THEN 'queued' ELSE 'pending_input' END, CASE WHEN :start THEN NULL ELSE 'paused' END,
        CASE WHEN :start THEN NULL ELSE now() END, CASE WHEN :start THEN NULL ELSE now() END)
    ON CONFLICT DO NOTHING
    RETURNING id
    """,
    deadline="timestamptz",
    max_duration="interval",
    push="boolean",
    start="boolean",
)
_EXISTING: Final = statement(
    """
    SELECT t.id, t.request, w.id AS workflow_id
    FROM (
        SELECT id, 1 AS place FROM tasks WHERE tenant_id = :tenant AND id = :task
        UNION ALL
        SELECT id, 2 FROM tasks WHERE tenant_id = :tenant AND external_id = :external_id
    ) found
    JOIN tasks t ON t.tenant_id = :tenant AND t.id = found.id
    JOIN workflows w ON w.tenant_id = t.tenant_id AND w.task_id = t.id AND w.number = t.workflow_number
    ORDER BY found.place LIMIT 1
    """
)


def submit(
    connection: Connection,
    request: TaskRequest,
    *,
    policy: Policy,
    tenant_id: str,
    task_id: str,
    created_by: str,
    now: datetime,
    previous: Any = None,
) -> Submitted:
    """Accepts a task: after the COMMIT it will end in exactly one terminal state.

    Raises Refused (`request-invalid` for an id that can't be one, `plan-…`, `repository-forbidden`,
    `agent-unknown`, `agent-unfit`, `mode-unavailable`) or Conflict (`task-exists`: the id is
    taken by another request).
    """
    ref = TaskRef(tenant_id, request.id or task_id)
    check_id(ref.task_id)
    url = _repository(request, policy)
    plan = _plan(request, policy)
    stored = LOOKS.value(request.model_dump(mode="json", exclude_unset=True))
    warnings = tuple(_warnings(request, policy, now))
    written = one(
        connection,
        _INSERT_TASK,
        tenant=tenant_id,
        task=ref.task_id,
        external_id=request.external_id,
        title=LOOKS.text(request.title or title_of(request.description)),
        description=LOOKS.text(request.description),
        priority=request.priority,
        mode=request.execution_mode,
        on_step_failure=request.on_step_failure,
        request=dumps(stored),
        warnings=dumps(warnings),
        created_by=created_by,
        deadline=request.deadline,
        requirements=dumps(request.requirements),
        stakeholders=dumps(request.stakeholders),
        labels=dumps(request.labels),
        budget=dumps(request.budget.model_dump(mode="json", exclude_none=True)),
        max_duration=request.budget.max_duration,
        agent_type=request.agent.type,
        model=request.model,
        url=url,
        branch=request.repository.branch if request.repository else None,
        push=bool(request.repository and request.repository.push),
        previous=dumps(LOOKS.value(harmless(previous))),
        start=request.start,
    )
    if written is None:
        return _existing(connection, ref, request, stored, warnings)
    started = begin(
        connection, ref, plan, request.priority, policy.max_attempts, created_by, start=request.start
    )
    publish = Publication(started=started) if request.start else NOTHING
    return Submitted(ref.task_id, started.workflow_id, True, warnings, publish)


def begin(
    connection: Connection,
    ref: TaskRef,
    plan: Plan,
    priority: str,
    max_attempts: int,
    by: str,
    *,
    start: bool,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> Started:
    """The first workflow of a task whose row was just written, and the first events; `facts` go with them."""
    started = write_workflow(
        connection, ref, 1, plan, compile_plan(plan), priority, max_attempts, by, start=start
    )
    status = "queued" if start else "pending_input"
    data = {"from": None, "to": status, "created_by": by, "priority": priority, **facts}
    paused = [] if start else _paused(plan, ref, started.workflow_id)
    append_events(
        connection, ref, [*paused, EventDraft("status", status, data, workflow_id=started.workflow_id)]
    )
    return started


def _paused(plan: Plan, ref: TaskRef, workflow_id: str) -> list[EventDraft]:
    """Steps that would be ready wait for a resume."""
    roots = (f"{workflow_id}.{place}" for place, step in enumerate(plan.steps, start=1) if not step.needs)
    return [
        step_event(Event.PAUSE, StepRef(ref.tenant_id, ref.task_id, workflow_id, step_id), None)
        for step_id in roots
    ]


def _existing(
    connection: Connection,
    ref: TaskRef,
    request: TaskRequest,
    stored: Mapping[str, Any],
    warnings: tuple[dict[str, str], ...],
) -> Submitted:
    row = one(connection, _EXISTING, tenant=ref.tenant_id, task=ref.task_id, external_id=request.external_id)
    if row is None:
        raise Conflict(
            "task-exists", f"Task {ref.task_id} is just being created.", "Try again.", retryable=True
        )
    if row["request"] != stored:
        raise Conflict(
            "task-exists",
            f"Task {row['id']} exists, with another request.",
            f"Choose another id, or look at it: orchestrator task status {row['id']}",
        )
    return Submitted(row["id"], row["workflow_id"], False, warnings, NOTHING)


def title_of(description: str) -> str:
    """The first line of a description, as long as fits a terminal."""
    first = description.strip().splitlines()[0] if description.strip() else "Untitled"
    return first if len(first) <= 80 else f"{first[:79]}…"  # noqa: PLR2004 - as wide as a terminal


def _warnings(request: TaskRequest, policy: Policy, now: datetime) -> list[dict[str, str]]:
    found = []
    if request.deadline is not None and request.deadline < now:
        detail = f"The deadline {request.deadline} had passed when the task was created: it doesn't bind."
        found.append({"code": "deadline-in-past", "detail": detail})
    if request.repository is None:
        found.append(
            {"code": "repository-defaulted", "detail": "No repository was named: it works in an empty one."}
        )
    if request.budget.max_cost_usd is not None and policy.unpriced is not None:
        words = (request.description, *request.requirements)
        runs = {
            (step.agent_type or request.agent.type, step.model or request.model)
            for step in request.plan_steps()
        }
        unpriced = {model for agent, model in runs for model in policy.unpriced(agent, model, words)}
        found += [{"code": "price-unknown", "detail": price_missing(model)} for model in sorted(unpriced)]
    return found


def _repository(request: TaskRequest, policy: Policy) -> str | None:
    if request.repository is None:
        return None
    path = request.repository.path
    text = request.repository.url or (str(Path(path).absolute()) if path and path.startswith("/") else path)
    return repository_url.check(
        text or "",
        allow_local=policy.allow_local_repositories,
        allow_private=policy.allow_private_addresses,
    ).canonical


def _plan(request: TaskRequest, policy: Policy) -> Plan:
    steps = request.plan_steps()
    _agents(request, steps, policy)
    _fits(request, steps, policy)
    if request.repository and request.repository.push:
        needed = {need for step in steps for need in step.needs}
        ends = tuple(step.key for step in steps if step.key not in needed)
        if any(step.key == PUSH_KEY for step in steps):
            raise Refused(
                "plan-invalid", f"A step may not be called {PUSH_KEY!r}: pushing is one.", "Rename it."
            )
        steps.append(PlanStep(PUSH_KEY, "Push the branch to the repository", ends, kind="integrate"))
    return validate(steps)


def _agents(request: TaskRequest, steps: list[PlanStep], policy: Policy) -> None:
    named = [("/agent/type", request.agent.type)]
    named += [(f"/steps/{number}/agent", step.agent_type) for number, step in enumerate(steps)]
    for pointer, name in named:
        if name is not None and name not in policy.agent_types:
            known = ", ".join(sorted(policy.agent_types))
            detail = f"{name!r} is no agent type of this version; there are {known}"
            raise Refused(
                "agent-unknown",
                f"{detail}.",
                "Leave it out and one is chosen, or see: orchestrator agent types",
                problems=(Problem(pointer, "agent-unknown", detail),),
            )


def _fits(request: TaskRequest, steps: list[PlanStep], policy: Policy) -> None:
    """An agent and a model that never go together would wait for each other for ever."""
    for number, step in enumerate(steps):
        name, model = step.agent_type or request.agent.type, step.model or request.model
        if name is None or policy.misfit is None:
            continue
        found = policy.misfit(name, model, approvals=bool(request.agent.tool_approval))
        if found is None:
            continue
        lacking, others = found
        pointer = f"/steps/{number}/agent" if step.agent_type else "/agent/type"
        fits = f"Take one of {', '.join(others)}, or leave the agent out" if others else "Leave the agent out"
        raise Refused(
            "agent-unfit",
            f"{name} can't do it: {lacking}.",
            f"{fits}.",
            problems=(Problem(pointer, "agent-unfit", lacking),),
        )


_INSERT_WORKFLOW: Final = Prepared(
    "insert_workflow",
    """
    INSERT INTO workflows (tenant_id, id, task_id, number) VALUES (:tenant, :workflow, :task, :number);
    INSERT INTO workflow_history (tenant_id, workflow_id, from_state, to_state)
    VALUES (:tenant, :workflow, NULL, 'pending');
    INSERT INTO plan_revisions (tenant_id, workflow_id, number, plan, created_by)
    VALUES (:tenant, :workflow, 1, CAST(:plan AS jsonb), :by);
    INSERT INTO steps (tenant_id, id, task_id, workflow_id, number, key, kind, description, spec, agent_type,
        model, priority, max_attempts, canvas, ready_at, published_at, status, waiting_on, waiting_since)
    SELECT :tenant, v.id, :task, :workflow, v.number, v.key, v.kind, v.description, v.spec, v.agent_type,
        v.model, :priority, :max_attempts, v.canvas,
        CASE WHEN v.root THEN now() END, CASE WHEN v.root THEN now() END,
        CASE WHEN v.root AND NOT :start THEN 'pending_input' ELSE 'queued' END,
        CASE WHEN v.root AND NOT :start THEN 'paused' END, CASE WHEN v.root AND NOT :start THEN now() END
    FROM jsonb_to_recordset(CAST(:steps AS jsonb)) AS v(id text, number int, key text, kind text,
        description text, spec jsonb, agent_type text, model text, canvas int, root boolean);
    INSERT INTO step_needs (tenant_id, step_id, need_id)
    SELECT :tenant, v.step, v.need FROM jsonb_to_recordset(CAST(:needs AS jsonb)) AS v(step text, need text)
    """,
    number="int",
    max_attempts="int",
    start="boolean",
)


def write_workflow(
    connection: Connection,
    ref: TaskRef,
    number: int,
    plan: Plan,
    flow: Flow,
    priority: str,
    max_attempts: int,
    by: str,
    *,
    start: bool,
) -> Started:
    """One run of a task: its phase, its plan and its steps, all queued; those that need nothing are ready."""
    workflow_id = f"workflow_{ref.task_id}_{number}"
    ids = {step.key: f"{workflow_id}.{place}" for place, step in enumerate(plan.steps, start=1)}
    heads = {key: place for place, canvas in enumerate(flow.canvases) if canvas.needs for key in canvas.heads}
    _INSERT_WORKFLOW.run(
        connection,
        {
            "tenant": ref.tenant_id,
            "task": ref.task_id,
            "workflow": workflow_id,
            "number": number,
            "plan": dumps({"steps": [plan_as_json(step) for step in plan.steps]}),
            "by": by,
            "priority": priority,
            "max_attempts": max_attempts,
            "start": start,
            "steps": dumps(
                [
                    {
                        "id": ids[step.key],
                        "number": place,
                        "key": step.key,
                        "kind": step.kind,
                        "description": LOOKS.text(step.description),
                        "spec": LOOKS.value(dict(step.spec)),
                        "agent_type": step.agent_type,
                        "model": step.model,
                        "canvas": heads.get(step.key),
                        "root": not step.needs,
                    }
                    for place, step in enumerate(plan.steps, start=1)
                ]
            ),
            "needs": dumps(
                [{"step": ids[step.key], "need": ids[need]} for step in plan.steps for need in step.needs]
            ),
        },
    )
    total = len(plan.steps)
    steps = {
        step.key: Publishable(
            StepRef(ref.tenant_id, ref.task_id, workflow_id, ids[step.key]),
            step.key,
            place,
            total,
            step.kind,
            Priority(priority),
            heads.get(step.key),
            None,
        )
        for place, step in enumerate(plan.steps, start=1)
    }
    return Started(ref, workflow_id, tuple(canvas for canvas in flow.canvases if not canvas.needs), steps)


def plan_as_json(step: PlanStep) -> dict[str, Any]:
    return {
        "key": step.key,
        "description": LOOKS.text(step.description),
        "needs": list(step.needs),
        "kind": step.kind,
        "agent_type": step.agent_type,
        "model": step.model,
        "estimate": None if step.estimate is None else step.estimate.total_seconds(),
        "spec": LOOKS.value(dict(step.spec)),
    }


def plan_from_json(plan: Mapping[str, Any]) -> Plan:
    """The plan of a stored revision; it was validated when it was written."""
    return Plan(
        tuple(
            PlanStep(
                **{
                    **step,
                    "needs": tuple(step["needs"]),
                    "estimate": None if step["estimate"] is None else timedelta(seconds=step["estimate"]),
                }
            )
            for step in plan["steps"]
        )
    )
