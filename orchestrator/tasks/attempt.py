"""The work between a claim and its record: workspace, agent, the commit that comes of it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final

import structlog

from orchestrator.agents.ports import Sessions, Transcripts
from orchestrator.bootstrap import Wiring
from orchestrator.core import run_token, task_id as task_ids
from orchestrator.core.assignment import Assignment, Budget, Limits, ModelAccess
from orchestrator.core.errors import OrchestratorError, Unavailable
from orchestrator.core.leave import RISKS
from orchestrator.core.recovery import ErrorClass, of_os_error
from orchestrator.core.redaction import Redactor
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.core.verdict import Broke, Done, NeedsInput, StopReason, Verdict, Waits, Yielded
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.db import connect, effects, run_tokens
from orchestrator.db.claims import Claimed
from orchestrator.db.connect import Connection
from orchestrator.db.effects import StoredFile
from orchestrator.db.journal import FenceLost, Scope
from orchestrator.engine.ports import Journal, LeaseLost
from orchestrator.tasks import choosing, subtasks
from orchestrator.tasks.circuits import AgentCircuit, laid_at_its_cause
from orchestrator.tasks.journal import PostgresJournal
from orchestrator.tasks.link import StepLink
from orchestrator.tasks.sessions import PostgresSessions
from orchestrator.tasks.transcripts import PostgresTranscripts
from orchestrator.workspaces import integrate
from orchestrator.workspaces.errors import ArtifactStoreUnavailable, MergeConflict
from orchestrator.workspaces.homes import HomeOwner
from orchestrator.workspaces.integrate import Conflict, Integrated
from orchestrator.workspaces.workspace import AttemptOwner, Workspace, patch

log: Final = structlog.get_logger(__name__)
_TOKEN_SLACK: Final = timedelta(minutes=10)
"""A token outlives the longest run by so much; it ends with its claim in any case."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What the agent left: the commit on its own start, where it changed something."""

    mirror: str
    start: str
    commit: str | None

    @property
    def result(self) -> str:
        """What steps that need this one build on."""
        return self.commit or self.start


class Desk:
    """One claim's journal, workspace and access to models, opened when the agent asks for them."""

    def __init__(self, wiring: Wiring, claimed: Claimed, link: StepLink, boot_id: str) -> None:
        self._wiring = wiring
        self._claimed = claimed
        self._link = link
        self._owner = AttemptOwner(
            claimed.step.task_id, claimed.step.step_id, claimed.attempt, os.getpid(), boot_id
        )
        self._workspace: Workspace | None = None
        self._mirror: str | None = None
        self._origin: str | None = None
        """What the repository itself has: bundles hold what is on top of it."""

    def open_journal(self, assignment: Assignment) -> Journal:
        claimed = self._claimed
        scope = Scope(claimed.step, claimed.fence, claimed.attempt, claimed.conflicts)
        delegate = partial(self._delegate, models_of(self._wiring, assignment))
        return PostgresJournal(self._wiring.engine, scope, self._wiring.redactor, delegate)

    def open_access(self, assignment: Assignment) -> ModelAccess:
        """A token that is good as long as this claim holds; see `bootstrap.Desk`."""
        settings, claimed = self._wiring.settings, self._claimed
        if not settings.gateway_url:
            raise Unavailable(
                "gateway-missing",
                "Live models are called through the gateway, and this worker knows of none:"
                " ORCHESTRATOR_GATEWAY_URL is not set.",
                "Start one where the keys are: orchestrator gateway   `orchestrator up` does it by itself.",
            )
        token = run_token.new()
        scope = Scope(claimed.step, claimed.fence, claimed.attempt, claimed.conflicts)
        try:
            with self._wiring.engine.begin() as connection:
                run_tokens.issue(
                    connection,
                    scope,
                    sha256=run_token.digest(token),
                    agent_type=assignment.agent_type,
                    models=models_of(self._wiring, assignment),
                    lifetime=settings.max_wall_time + _TOKEN_SLACK,
                )
        except FenceLost:
            raise LeaseLost from None
        return ModelAccess(settings.gateway_url.rstrip("/"), token)

    def open_sessions(self, assignment: Assignment) -> Sessions:  # noqa: ARG002 - a desk is one claim's
        claimed = self._claimed
        scope = Scope(claimed.step, claimed.fence, claimed.attempt, claimed.conflicts)
        return PostgresSessions(self._wiring.engine, scope, self._wiring.redactor)

    def open_transcripts(self, assignment: Assignment) -> Transcripts:  # noqa: ARG002 - a desk is one claim's
        claimed, wiring = self._claimed, self._wiring
        return PostgresTranscripts(wiring.engine, claimed.step, claimed.fence, wiring.redactor)

    @contextmanager
    def open_workspace(self, assignment: Assignment) -> Iterator[Workspace]:
        self._wiring.workspaces.check_disk()
        try:
            mirror, start = self._start()
            checkpoint = self.open_journal(assignment).load().checkpoint
        except FenceLost:
            raise LeaseLost from None
        except MergeConflict as conflict:
            raise WorkspaceFault(
                "needs-conflict",
                f"What the step needs can't be merged: {', '.join(conflict.files)}",
                ErrorClass.VALIDATION,
            ) from None
        self._mirror = mirror
        self._workspace = self._wiring.workspaces.open(self._owner, mirror, start, checkpoint=checkpoint)
        warning = self._wiring.workspaces.sandbox.warning
        if warning:
            self._link.log("system", f"{warning}\n")
        try:
            yield self._workspace
        finally:
            self._workspace.close()

    def _start(self) -> tuple[str, str]:
        claimed, workspaces = self._claimed, self._wiring.workspaces
        stop, login = self._link.stop, login_of(self._wiring, claimed)
        if claimed.base_commit is None:
            where = claimed.repository_url, claimed.repository_branch
            base = workspaces.fetch(*where, credentials=login, stop=stop)
            with self._wiring.engine.begin() as connection:
                commit = effects.fix_base(connection, claimed.step, claimed.fence, base.commit)
        else:
            commit = claimed.base_commit
        origin = claimed.origin_commit or commit
        mirror = workspaces.mirrors.prepare(claimed.repository_url, origin, credentials=login, stop=stop)
        if commit != origin:
            workspaces.bundles.ensure(mirror, commit)
        if claimed.conflicts and claimed.tip_commit:
            start = claimed.tip_commit
            workspaces.bundles.ensure(mirror, start)
        else:
            results = [row["result_commit"] for row in claimed.needs if row["result_commit"]]
            start = workspaces.start_commit(mirror, commit, results)
        self._origin = origin
        with self._wiring.engine.begin() as connection:
            effects.fix_start(connection, claimed.step, claimed.fence, start)
        return mirror, start

    def finish(self, summary: str) -> Finished | None:
        """Commits what the agent changed and puts it where every worker finds it; None: it opened no
        workspace."""
        if self._workspace is None or self._mirror is None:
            return None
        start = self._workspace.start
        title = summary.strip().splitlines()[0][:72] if summary.strip() else self._claimed.key
        commit = self._workspace.result(title, self._trailers(), start)
        finished = Finished(self._mirror, start, commit)
        self._store(finished.result)
        return finished

    def hand_over(self) -> None:
        """At a park or slice: the last checkpoint goes where another worker finds it."""
        if self._workspace is None or self._mirror is None:
            return
        claimed = self._claimed
        scope = Scope(claimed.step, claimed.fence, claimed.attempt, claimed.conflicts)
        journal = PostgresJournal(self._wiring.engine, scope, self._wiring.redactor)
        checkpoint = journal.load().checkpoint
        if checkpoint is not None:
            self._store(checkpoint)

    def partial_patch(self) -> StoredFile | None:
        """What an agent that was stopped had changed, as evidence."""
        if self._workspace is None:
            return None
        commit = self._workspace.result("Stopped before it was done", self._trailers(), self._workspace.start)
        if commit is None:
            return None
        text = self._workspace.patch(self._workspace.start, commit)
        return _store_text(self._wiring, f"{self._claimed.key}.partial.patch", "patch", text)

    def remove_workspace(self) -> None:
        """The attempt is over: its commits stay, its folder goes."""
        if self._workspace is not None:
            try:
                self._wiring.workspaces.remove(self._owner)
            except FAULTS as fault:
                log.warning("workspace_left", step=self._claimed.step.step_id, error=type(fault).__name__)

    def remove_home(self) -> None:
        """The step is over, and with it its agent's sessions."""
        step = self._claimed.step
        try:
            self._wiring.workspaces.homes.remove(HomeOwner(step.task_id, step.step_id))
        except FAULTS as fault:
            log.warning("home_left", step=step.step_id, error=type(fault).__name__)

    def _store(self, commit: str) -> None:
        assert self._mirror is not None  # noqa: S101 - callers opened it
        if self._origin and commit != self._origin:
            self._wiring.workspaces.bundles.store(self._mirror, commit, self._origin)

    def _delegate(
        self,
        models: Sequence[str],
        scope: Scope,
        requests: Sequence[SubtaskRequest],
        checkpoint: str | None,
    ) -> None:
        """Subtasks that start from this workspace's checkpoint, which any machine may need from now on."""
        start = checkpoint or (self._workspace.start if self._workspace else None)
        if start is not None:
            self._store(start)
        subtasks.start(self._wiring, scope, requests, start, models)

    def _trailers(self) -> dict[str, str]:
        step = self._claimed.step
        return {"Task": step.task_id, "Workflow": step.workflow_id, "Step": step.step_id}


def models_of(wiring: Wiring, assignment: Assignment) -> list[str]:
    """What the run may use: the models of its selection, and what the installation allows every run.

    A name with its provider before it is that model, too: agents that need it so send the rest of it.
    """
    own = wiring.models_for(assignment).models
    bare = [name.partition("/")[2] for name in own if "/" in name]
    # Names come from requests: only the installation's own entries may be patterns.
    named = [glob.escape(name) for name in (*own, *bare)]
    return list(dict.fromkeys([*named, *wiring.settings.run_models]))


def login_of(wiring: Wiring, claimed: Claimed) -> dict[str, str] | None:
    """What a git that talks to the task's repository needs, and nothing else may see."""
    return wiring.credentials.environment(claimed.repository_credential, claimed.repository_url)


def assignment_of(wiring: Wiring, claimed: Claimed, agent_type: str) -> Assignment:
    """What an agent of that kind is told: the installation's limits of each step, the request's budget of
    all of them."""
    settings, asked = wiring.settings, claimed.budget
    limits = Limits(
        turns=settings.max_turns,
        consecutive_mistakes=settings.max_mistakes,
        tokens=settings.max_tokens,
        cost_usd=settings.max_cost_usd,
        wall_time=settings.max_wall_time,
    )
    cost = asked.get("max_cost_usd")
    budget = Budget(asked.get("max_turns"), asked.get("max_tokens"), None if cost is None else Decimal(cost))
    return Assignment(
        tenant_id=claimed.step.tenant_id,
        task_id=claimed.step.task_id,
        workflow_id=claimed.step.workflow_id,
        step_id=claimed.step.step_id,
        step_key=claimed.key,
        step_number=claimed.number,
        step_total=claimed.total,
        kind=claimed.kind,
        attempt=claimed.attempt,
        fence=claimed.fence,
        task_description=claimed.task_description,
        description=claimed.description,
        agent_type=agent_type,
        model=claimed.model or claimed.task_model,
        limits=limits,
        budget=budget,
        spec=claimed.spec,
        context=_context(claimed),
        approvals=_approvals(claimed.approvals or ()),
    )


def _approvals(asked: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in asked for name in (RISKS if each == "*" else (each,))))


def _context(claimed: Claimed) -> dict[str, Any]:
    context: dict[str, Any] = {"needs": {row["key"]: row["summary"] or "" for row in claimed.needs}}
    if claimed.requirements:
        context["requirements"] = list(claimed.requirements)
    if claimed.previous is not None:
        context["previous"] = claimed.previous
    if claimed.conflicts:
        context["conflict"] = claimed.spec.get("conflict") or "Another step changed the same lines."
    return context


def work(wiring: Wiring, claimed: Claimed, link: StepLink, desk: Desk) -> tuple[Verdict, Finished | None]:
    """Lets the agent work. Whatever it throws is a verdict here: nothing an agent does ends a worker."""
    finished = None
    try:
        if claimed.kind == "integrate":
            return push(wiring, claimed, link), None
        chosen = choosing.choose(wiring, claimed, link)
        if isinstance(chosen, Waits):
            return chosen, None
        assignment = assignment_of(wiring, claimed, chosen)
        circuit = AgentCircuit(wiring, assignment.agent_type)
        if (waits := circuit.ask()) is not None:
            return waits, None
        try:
            said = _agents_word(wiring, assignment, link, desk)
            verdict = laid_at_its_cause(wiring, claimed.step, claimed.fence, said)
        except BaseException:
            circuit.abandon()  # else its trial would keep the type closed to all until it expires
            raise
        circuit.tell(verdict)
        if isinstance(verdict, Done):
            finished = desk.finish(verdict.summary)
        else:
            desk.hand_over()
    except FAULTS as fault:
        if link.stop.is_hard() and link.stop.reason is not None:
            return Yielded(link.stop.reason), None  # a git that the stop ended
        return broke(fault), None
    except Exception as error:
        if connect.is_lost(error):
            log.warning("database_lost", step=claimed.step.step_id, error=type(error).__name__)
            return Yielded(StopReason.OUTAGE), None
        log.exception("agent_crashed", step=claimed.step.step_id)
        return broke(error), None
    return verdict, finished


def without_secrets(verdict: Verdict, redactor: Redactor) -> Verdict:
    """Before anything is made of what an agent says: a row, an event, the subject of a commit."""
    match verdict:
        case Done(summary, result):
            return Done(redactor.text(summary), redactor.value(dict(result)))
        case NeedsInput(ask):
            default = None if ask.default is None else redactor.text(ask.default)
            options = tuple(map(redactor.text, ask.options))
            return NeedsInput(replace(ask, text=redactor.text(ask.text), options=options, default=default))
        case Broke():
            return replace(verdict, message=redactor.text(verdict.message))
        case Waits():
            return replace(verdict, detail=redactor.value(dict(verdict.detail)))
        case Yielded():
            return verdict


def _agents_word(wiring: Wiring, assignment: Assignment, link: StepLink, desk: Desk) -> Verdict:
    agent = wiring.make_agent(wiring, desk)
    try:
        with link.grace.over_agent():
            return without_secrets(agent.work(assignment, link), wiring.redactor)
    except FAULTS:
        raise
    except Exception as error:
        if connect.is_lost(error):
            raise
        log.exception("agent_crashed", step=assignment.step_id)
        return broke(error)


FAULTS: Final = (WorkspaceFault, OrchestratorError, OSError)
"""What goes wrong with the machine and the stores around an agent: disk full, store away, git broke."""


def broke(fault: Exception) -> Broke:
    """What went wrong, as a verdict; its message isn't redacted yet."""
    match fault:
        case WorkspaceFault():
            return Broke(fault.code, fault.message, fault.error)
        case ArtifactStoreUnavailable():
            return Broke(fault.code, fault.message, ErrorClass.STORAGE)
        case OrchestratorError():
            kind = ErrorClass.RESOURCE if fault.retryable else ErrorClass.VALIDATION
            return Broke(fault.code, fault.message, kind)
        case OSError():
            text = f"the workspace failed: {fault.strerror or fault}"
            return Broke("workspace-io", text, of_os_error(fault))
        case _:
            return Broke("agent-crashed", f"{type(fault).__name__}: {fault}", ErrorClass.INTERNAL)


def push(wiring: Wiring, claimed: Claimed, link: StepLink) -> Verdict:
    """Moves the branch in the task's own repository; written down before, confirmed after, by
    compare-and-swap."""
    task_id, tip = claimed.step.task_id, claimed.tip_commit
    if tip is None or claimed.repository_url is None or claimed.base_commit is None:
        return Done("There was nothing to push.")
    ref, key = f"refs/heads/{task_ids.branch(task_id)}", f"push:{claimed.step.step_id}"
    workspaces, login = wiring.workspaces, login_of(wiring, claimed)
    mirror = workspaces.mirrors.prepare(
        claimed.repository_url, claimed.base_commit, credentials=login, stop=link.stop
    )
    workspaces.bundles.ensure(mirror, tip)
    with wiring.engine.begin() as connection:
        effects.write_effect(
            connection, claimed.step, claimed.fence, key, "push", {"ref": ref, "commit": tip}
        )
        ours = effects.pushed(connection, claimed.step.task)
    there = workspaces.mirrors.remote_ref(
        claimed.repository_url, mirror, ref, credentials=login, stop=link.stop
    )
    integrate.push(
        workspaces.mirrors.git(mirror),
        workspaces.mirrors.reach,
        claimed.repository_url,
        ref=ref,
        new=tip,
        expected=there if there in ours else None,  # an earlier run's may be replaced, a stranger's may not
        credentials=login,
        stop=link.stop,
    )
    with wiring.engine.begin() as connection:
        effects.confirm_effect(connection, claimed.step.tenant_id, key, {})
    return Done(f"Pushed {tip[:12]} to {ref}.")


def merge(
    connection: Connection, wiring: Wiring, claimed: Claimed, finished: Finished, summary: str
) -> str | Conflict | None:
    """Puts the result on the task's branch; the caller holds the task's lock. None: it changed nothing.

    Postgres knows where the branch ends; the reference follows, so a reference that a killed worker moved is
    simply moved on.
    """
    if finished.commit is None:
        return None
    workspaces, step = wiring.workspaces, claimed.step
    git = workspaces.mirrors.git(finished.mirror)
    row = effects.branch_ends(connection, step.task)
    tip = row.tip or row.base
    workspaces.bundles.ensure(finished.mirror, tip)
    title = summary.strip().splitlines()[0][:72] if summary.strip() else claimed.key
    trailers = {"Task": step.task_id, "Workflow": step.workflow_id, "Step": step.step_id}
    merged = integrate.integrate(
        git, base=row.base, tip=tip, commit=finished.commit, message=title, trailers=trailers
    )
    match merged:
        case Conflict():
            return merged
        case Integrated(commit, created=False) if commit == tip and row.tip is None:
            return None
    ref = f"refs/heads/{task_ids.branch(step.task_id)}"
    integrate.move(git, ref, merged.commit, git.ref(ref))
    workspaces.mirrors.keep(finished.mirror, merged.commit)
    workspaces.bundles.store(finished.mirror, merged.commit, claimed.origin_commit or row.base)
    effects.set_tip(connection, step.task, merged.commit)
    effects.add_artifact(
        connection,
        step,
        _store_text(wiring, "task.patch", "patch", patch(git, row.base, merged.commit, 8 * 1024**2)),
    )
    return merged.commit


def _store_text(wiring: Wiring, name: str, kind: str, text: str) -> StoredFile:
    stored = wiring.artifacts.put(wiring.redactor.text(text).encode())
    media = "text/x-diff" if kind == "patch" else "text/plain"
    return StoredFile(kind, name, media, stored.size, stored.sha256, stored.key)


ESCALATE_AFTER: Final = 2
"""Conflicts of one step after which a person must look."""
