"""The step's shell: take, work, record. No transaction is open while an agent works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final, NoReturn

import structlog
from celery import Task
from celery.exceptions import Ignore

from orchestrator.bootstrap import Wiring
from orchestrator.commands.publication import Publication, following
from orchestrator.core.bounds import CODES, Bound, error_of
from orchestrator.core.errors import Denied
from orchestrator.core.recovery import ErrorClass, next_delay
from orchestrator.core.states import TERMINAL, WAITS_QUEUED, Event, Status, WaitingOn
from orchestrator.core.verdict import Broke, Done, NeedsInput, StopReason, Verdict, Waits, Yielded
from orchestrator.db import agents, claims, completion, connect, effects, subtasks, transitions
from orchestrator.db.claims import Claimed, Refusal, Why
from orchestrator.db.connect import Connection, SQLAlchemyError
from orchestrator.db.sql import Direct, StepRef
from orchestrator.db.transitions import Applied
from orchestrator.queues.messages import opened
from orchestrator.tasks import attempt
from orchestrator.tasks.attempt import Desk, Finished
from orchestrator.tasks.bare import Bare
from orchestrator.tasks.evidence import keep_log
from orchestrator.tasks.link import StepLink
from orchestrator.tasks.patience import patiently
from orchestrator.tasks.publish import hand_on_slot, publish
from orchestrator.tasks.worker import Workplace
from orchestrator.workspaces.integrate import Conflict

log: Final = structlog.get_logger(__name__)


class StepFailed(Bare):
    """What Celery hears of a step that failed for good: a code and a sentence, no traceback, no payload."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)


def run_step(task: Task[Any, Any], workplace: Workplace, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """One delivery of a step's message. Returns when Celery should go on with what follows; else raises."""
    wiring = workplace.wiring
    try:
        reference = opened(str(task.name), arguments, wiring.secret)
    except Denied as forged:
        log.error("message_refused", celery_id=task.request.id, reason=forged.message)  # noqa: TRY400
        raise Ignore from None
    step = StepRef(reference.tenant_id, reference.task_id, reference.workflow_id, reference.step_id)
    with workplace.slot() as agent_id:
        taken = _take(task, wiring, step, agent_id)
        if isinstance(taken, Refusal):
            return _refused(task, step, taken)
        link = StepLink(wiring, taken)
        workplace.pulse.carry(taken, link, agent_id)
        status = None
        try:
            if taken.fence > 1:
                # Flower keeps the state that it thinks is later; a retry is the one that lets it start anew.
                _say(task, "task-retried", "task-started")
            if taken.watched:
                publish(wiring, Publication(shown=((step.task, Status.RUNNING),)))
            desk = Desk(wiring, taken, link, workplace.boot_id)
            verdict, finished = attempt.work(wiring, taken, link, desk)
            link.flush()
            status = _record(task, wiring, taken, link, desk, verdict, finished)
        finally:
            workplace.pulse.put_down(taken)
            if status is not Status.COMPLETED:  # completing freed the slot in its own transaction
                _free(wiring, agent_id, step)
    return _tell(task, step, status, verdict)


# --- take ---------------------------------------------------------------------------------------------------


def _take(task: Task[Any, Any], wiring: Wiring, step: StepRef, agent_id: str) -> Claimed | Refusal:
    try:
        return take(wiring, step, agent_id, request_signature(task))
    except SQLAlchemyError as error:
        # The row says that it is ready, so the sweep sends it again when Postgres is back.
        log.warning("claim_impossible", step=step.step_id, error=type(error).__name__)
        raise Ignore from None


def take(
    wiring: Wiring, step: StepRef, agent_id: str, signature: Mapping[str, Any] | None
) -> Claimed | Refusal:
    """Claims for a slot that has nothing else in hand; waits for a Postgres that is away. Raises
    SQLAlchemyError."""
    at_once = wiring.settings.max_concurrent_workflows
    in_doubt = False

    def claim() -> Claimed | Refusal:
        nonlocal in_doubt
        if in_doubt:
            with wiring.engine.begin() as connection:
                undone = claims.take_back(connection, step, agent_id)
            if undone is not None:
                publish(wiring, following(step.task, undone.settled))
        in_doubt = True
        with connect.at_once(wiring.engine) as direct:
            claimed = claims.claim(
                direct,
                step,
                lease=wiring.settings.lease,
                agent_id=agent_id,
                signature=signature,
                workflows_at_once=at_once,
            )
        in_doubt = False
        if claimed is not None:
            return claimed
        with wiring.engine.begin() as connection:
            return claims.refusal(
                connection, step, agent_id=agent_id, signature=signature, workflows_at_once=at_once
            )

    def claim_or_wait() -> Claimed | Refusal:
        found = claim()
        if isinstance(found, Refusal) and found.why is Why.SLOT:
            # Whoever gave a slot back meanwhile may have looked for waiting rows before this one said that it
            # waits; whoever does from now on finds it.
            return claim()
        return found

    return patiently(claim_or_wait, wiring.settings.lease)


def request_signature(task: Task[Any, Any]) -> dict[str, Any]:
    """The request as a signature that can be stored and sent again."""
    request = task.request
    args, kwargs = tuple(request.args or ()), dict(request.kwargs or {})
    found: dict[str, Any] = dict(task.signature_from_request(request, args, kwargs))
    return found


def _free(wiring: Wiring, agent_id: str, step: StepRef) -> None:
    try:
        with wiring.engine.begin() as connection:
            agents.idle(connection, step.tenant_id, agent_id, step.step_id)
    except SQLAlchemyError as error:
        log.warning("slot_not_freed", agent=agent_id, error=type(error).__name__)


# --- record -------------------------------------------------------------------------------------------------


def _record(
    task: Task[Any, Any],
    wiring: Wiring,
    claimed: Claimed,
    link: StepLink,
    desk: Desk,
    verdict: Verdict,
    finished: Finished | None,
) -> Status | None:
    """Applies the verdict, commits, publishes. None: the claim was lost, and nothing was written."""

    def apply() -> tuple[Applied | None, Status]:
        try:
            return _apply(task, wiring, claimed, desk, verdict, finished)
        except SQLAlchemyError:
            raise
        except Exception as fault:  # the result could not be put where it belongs, and the row is to say so
            log.exception("result_not_kept", step=claimed.step.step_id)
            return _break(wiring, claimed, attempt.broke(fault))

    try:
        applied, status = patiently(apply, wiring.settings.lease)
        if applied is None:
            applied, status = patiently(lambda: _read_back(wiring, claimed), wiring.settings.lease)
    except SQLAlchemyError as error:
        log.warning("record_impossible", step=claimed.step.step_id, error=type(error).__name__)
        return None
    if applied is None:
        return None
    status = applied.instead or status
    if status in TERMINAL or (isinstance(verdict, Broke) and verdict.error is ErrorClass.STORAGE):
        desk.remove_workspace()  # also where the disk is full, since the next attempt gets one of its own
    if status in TERMINAL:
        desk.remove_home()
    released = tuple(
        StepRef(claimed.step.tenant_id, claimed.step.task_id, claimed.step.workflow_id, step_id)
        for step_id in applied.released
    )
    link.flush()
    if applied.settled.ended:
        keep_log(wiring, claimed.step)
    publish(wiring, following(claimed.step.task, applied.settled, released))
    hand_on_slot(wiring)
    return status


def _read_back(wiring: Wiring, claimed: Claimed) -> tuple[Applied | None, Status]:
    """A COMMIT whose reply was lost had succeeded if the row has moved on under our own fence."""
    with wiring.engine.connect() as connection:
        found = claims.look(connection, claimed.step)
    if found is not None and found.status is not Status.RUNNING and found.fence == claimed.fence:
        ended = found.task_ended
        settled = transitions.Settled(found.task_status, ended=ended, watched=ended, of_parent=ended)
        return Applied(settled), found.status
    return None, Status.QUEUED


def _apply(
    task: Task[Any, Any],
    wiring: Wiring,
    claimed: Claimed,
    desk: Desk,
    verdict: Verdict,
    finished: Finished | None,
) -> tuple[Applied | None, Status]:
    step, fence = claimed.step, claimed.fence
    match verdict:
        case Done():
            return _complete(task, wiring, claimed, desk, verdict, finished)
        case NeedsInput(ask):
            with wiring.engine.begin() as connection:
                return effects.ask(connection, step, fence, ask), Status.PENDING_INPUT
        case Yielded(reason):
            return _yield(wiring, claimed, desk, reason)
        case Waits():
            return _wait(wiring, claimed, verdict)
        case Broke():
            return _break(wiring, claimed, verdict)


def _complete(
    task: Task[Any, Any],
    wiring: Wiring,
    claimed: Claimed,
    desk: Desk,
    done: Done,
    finished: Finished | None,
) -> tuple[Applied | None, Status]:
    step, fence = claimed.step, claimed.fence

    def succeed(connection: Connection | Direct, branch_commit: str | None) -> Applied | None:
        return completion.succeed(
            connection,
            step,
            fence,
            summary=done.summary,
            result=done.result,
            commit=finished.result if finished else None,
            branch_commit=branch_commit,
            carried=carried(task),
        )

    if finished is None or finished.commit is None:
        with connect.at_once(wiring.engine) as direct:
            if (applied := succeed(direct, None)) is not None:
                return applied, Status.COMPLETED
    with wiring.engine.begin() as connection:
        branch_commit: str | None = None
        if finished is not None and finished.commit is not None:
            if not claims.holds(connection, step, fence):
                return None, Status.QUEUED
            merged = attempt.merge(connection, wiring, claimed, finished, done.summary)
            if isinstance(merged, Conflict):
                desk.remove_workspace()
                return _conflict(wiring, connection, claimed, merged)
            branch_commit = merged
        return succeed(connection, branch_commit), Status.COMPLETED


def _conflict(
    wiring: Wiring, connection: Connection, claimed: Claimed, conflict: Conflict
) -> tuple[Applied | None, Status]:
    """One more run on the new tip, with the conflict shown; the second time a person must look."""
    step, fence = claimed.step, claimed.fence
    times = effects.count_conflict(connection, step, fence, wiring.redactor.text(conflict.text))
    if times >= attempt.ESCALATE_AFTER:
        detail = {"why": "conflict", "files": list(conflict.files)}
        applied = transitions.park(connection, step, fence, Event.ASK, WaitingOn.ESCALATION, detail)
        return applied, Status.PENDING_INPUT
    return transitions.give_back(connection, step, fence, "conflict"), Status.QUEUED


_LOOK_AGAIN: Final = timedelta(seconds=30)
"""When a step that waits in the queue looks by itself whether what it needs is back."""


def _wait(wiring: Wiring, claimed: Claimed, waits: Waits) -> tuple[Applied | None, Status]:
    step, fence = claimed.step, claimed.fence
    with wiring.engine.begin() as connection:
        if waits.on is WaitingOn.SUBTASK:
            return subtasks.park(connection, step, fence, waits.detail), Status.RUNNING
        if waits.on in WAITS_QUEUED:
            after = waits.wake_after or _LOOK_AGAIN
            queued = transitions.wait_in_queue(connection, step, fence, waits.on, waits.detail, after)
            return queued, Status.QUEUED
        applied = transitions.park(
            connection, step, fence, Event.WAIT, waits.on, waits.detail, wake_after=waits.wake_after
        )
        return applied, Status.RUNNING


_ENDS: Final = frozenset({StopReason.CANCEL, StopReason.DEADLINE, StopReason.DURATION})
"""Stops after which the step doesn't go on: what it had changed is kept as a patch."""


def _yield(wiring: Wiring, claimed: Claimed, desk: Desk, reason: StopReason) -> tuple[Applied | None, Status]:
    step, fence = claimed.step, claimed.fence
    if reason is StopReason.LEASE_LOST:
        return None, Status.QUEUED
    evidence = _evidence(desk) if reason in _ENDS else None
    with wiring.engine.begin() as connection:
        if evidence is not None and claims.holds(connection, step, fence):
            effects.add_artifact(connection, step, evidence)
        match reason:
            case StopReason.DEADLINE | StopReason.DURATION:
                return transitions.fail(connection, step, fence, error_of(Bound(reason))), Status.FAILED
            case StopReason.CANCEL:
                reason_given = effects.cancel_reason(connection, step.task)
                return transitions.cancel_step(connection, step, fence, reason_given), Status.CANCELLED
            case StopReason.PAUSE:
                return transitions.obey_pause(connection, step, fence), Status.QUEUED
            case _:
                return transitions.give_back(connection, step, fence, reason), Status.QUEUED


def _evidence(desk: Desk) -> effects.StoredFile | None:
    try:
        return desk.partial_patch()
    except attempt.FAULTS as error:
        log.warning("no_partial_patch", error=type(error).__name__)
        return None


def _break(wiring: Wiring, claimed: Claimed, broke: Broke) -> tuple[Applied | None, Status]:
    step, fence = claimed.step, claimed.fence
    error = {
        "code": broke.code,
        "message": wiring.redactor.text(broke.message)[:2000],
        "class": broke.error,
        "recoverable": broke.retryable and broke.error is not ErrorClass.VALIDATION,
    }
    delay: timedelta | None = None
    if broke.retryable:
        delay = next_delay(broke.error, claimed.attempt, claimed.max_attempts, broke.retry_after)
    with wiring.engine.begin() as connection:
        if delay is None:
            return transitions.fail(connection, step, fence, error), Status.FAILED
        return transitions.retry_later(connection, step, fence, error, delay), Status.QUEUED


# --- what Celery hears --------------------------------------------------------------------------------------


def carried(task: Task[Any, Any]) -> frozenset[str]:
    """Ids of the steps that Celery publishes by itself when this request returns: links, chain, chord."""
    request = task.request
    following = [*(request.callbacks or ()), *((request.chain or ())[-1:]), *filter(None, [request.chord])]
    return frozenset(_ids(following))


def _ids(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        options = value.get("options")
        if isinstance(options, Mapping) and isinstance(options.get("task_id"), str):
            yield options["task_id"]
        for key, inner in value.items():
            if key != "parent":
                yield from _ids(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _ids(inner)


def _tell(task: Task[Any, Any], step: StepRef, status: Status | None, verdict: Verdict) -> dict[str, Any]:
    if status is Status.COMPLETED:
        return {"task_id": step.task_id, "step_id": step.step_id, "status": status.value}
    if status is Status.FAILED:
        raise StepFailed(_code_of(verdict), f"step {step.step_id} failed").bare() from None
    return _ignore(task, step, status)


def _code_of(verdict: Verdict) -> str:
    """Why a step failed, as far as its agent knows; the row knows the rest."""
    match verdict:
        case Broke():
            return verdict.code
        case Yielded(StopReason.DEADLINE | StopReason.DURATION as reason):
            return CODES[Bound(reason)]
    return "failed"


def _refused(task: Task[Any, Any], step: StepRef, refusal: Refusal) -> dict[str, Any]:
    if refusal.why is Why.COMPLETED and refusal.successors_unclaimed:
        return {"task_id": step.task_id, "step_id": step.step_id, "status": "completed"}
    log.info("claim_refused", step=step.step_id, why=refusal.why)
    if refusal.why is Why.TAKEN:
        raise Ignore from None  # the one that runs says all there is to say under this id
    return _ignore(task, step, refusal.status)


_FLOWER: Final = {
    Status.COMPLETED: "task-succeeded",
    Status.FAILED: "task-failed",
    Status.CANCELLED: "task-revoked",
    Status.QUEUED: "task-retried",
}


def _ignore(task: Task[Any, Any], step: StepRef, status: Status | None) -> NoReturn:
    """Ends a delivery without a result; a bare `Ignore` would show STARTED for ever."""
    if status is not None:
        meta = {"task_id": step.task_id, "status": status.value}
        state = None if status is Status.COMPLETED else (status.value.upper(), meta)
        before = ("task-retried",) if status is Status.CANCELLED else ()  # to Flower ours come after REVOKED
        _say(task, *before, _FLOWER.get(status, f"task-{status.value}"), state=state)
    raise Ignore from None


def _say(task: Task[Any, Any], *events: str, state: tuple[str, Mapping[str, Any]] | None = None) -> None:
    """Tells those who watch Celery. With the broker away they don't hear it; raising would be worse."""
    try:
        if state is not None:
            task.update_state(state=state[0], meta=dict(state[1]))
        for event in events:
            task.send_event(event)
    except Exception as error:  # noqa: BLE001 - whatever the broker throws: the row says it all
        log.warning("state_not_told", celery_id=task.request.id, error=type(error).__name__)
