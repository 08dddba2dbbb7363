"""The one place that commits and then publishes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import structlog
from celery.canvas import Signature

from orchestrator.bootstrap import Wiring
from orchestrator.commands import intervene
from orchestrator.commands.publication import Publication, following
from orchestrator.commands.submit import plan_from_json
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.flow import Canvas, compile_plan
from orchestrator.core.states import Event, Status
from orchestrator.db import claims, publishing, subtasks, sweep
from orchestrator.db.connect import Connection, SQLAlchemyError
from orchestrator.db.publishing import Publishable
from orchestrator.db.sql import StepRef, TaskRef
from orchestrator.db.waking import wake
from orchestrator.queues import canvas
from orchestrator.queues.canvas import Message
from orchestrator.queues.messages import Reference, finalize_label, step_label
from orchestrator.queues.names import TaskName
from orchestrator.queues.results import show

log: Final = structlog.get_logger(__name__)


class Publishes(Protocol):
    """What a command returns."""

    @property
    def publish(self) -> Publication: ...


T = TypeVar("T", bound=Publishes)


def perform(wiring: Wiring, work: Callable[[Connection], T]) -> T:
    """Runs a command in a transaction of its own, commits, then publishes what it made due.

    A broker that is away is logged, no more: what is due is in the rows, and the sweep publishes it.
    """
    with wiring.engine.begin() as connection:
        done = work(connection)
    publish(wiring, done.publish)
    return done


def publish(wiring: Wiring, due: Publication) -> None:
    """Publishes after the COMMIT. Never raises for the broker's or the database's sake."""
    try:
        if due.started is not None:
            for each in due.started.canvases:
                _send_canvas(wiring, each, due.started.steps)
        if due.released:
            release(wiring, due.released)
        for task in due.finished:
            resend_entry(wiring, task)
            _show_ended(wiring, task)
        for task, status in due.shown:
            _show(wiring, task, status)
        for task in due.awaited:
            _wake_parent(wiring, task)
        for task in due.forsaken:
            cancel_forsaken(wiring, task)
    except Exception as error:  # noqa: BLE001 - whatever the broker throws, the rows are committed
        log.warning("publish_failed", error=wiring.redactor.text(repr(error)), due=_ids(due))


def _ids(due: Publication) -> list[str]:
    started = [due.started.task.task_id] if due.started else []
    tasks = (*due.finished, *due.awaited, *due.forsaken)
    return [*started, *(step.step_id for step in due.released), *(task.task_id for task in tasks)]


def _wake_parent(wiring: Wiring, subtask: TaskRef) -> None:
    """In a transaction of its own: the parent's lock comes before the subtask's, which had to come first.

    A stopped process may hold the parent: it isn't waited for, since the sweep, which comes by here as well,
    wakes what was not woken.
    """
    with wiring.engine.begin() as connection:
        sweep.pass_by_locked(connection)
        woken = subtasks.wake_parent(connection, subtask)
    if woken is not None:
        released = (woken.step,) if woken.applied.released else ()
        publish(wiring, following(woken.step.task, woken.applied.settled, released))


def cancel_forsaken(wiring: Wiring, subtask: TaskRef) -> bool:
    """Nobody waits for it any more. False: it has ended meanwhile."""
    why = "the step that started it has ended"

    def work(connection: Connection) -> intervene.Intervened:
        sweep.pass_by_locked(connection)
        return intervene.cancel(connection, subtask.tenant_id, subtask.task_id, by="orchestrator", reason=why)

    try:
        perform(wiring, work)
    except OrchestratorError:
        return False
    return True


def _send_canvas(wiring: Wiring, which: Canvas, steps: Mapping[str, Publishable]) -> None:
    def signature_of(key: str) -> Signature[Any]:
        return step_signature(wiring, steps[key])

    canvas.compiled(which, signature_of, wiring.app).apply_async()


def release(wiring: Wiring, released: Sequence[StepRef]) -> None:
    """Sends steps that no canvas carries: as their last request was, as the canvas that they begin, or
    alone."""
    with wiring.engine.connect() as connection:
        found = publishing.queued(connection, released)
        plans = {
            step.step.task_id: publishing.workflow(connection, step.step.task)
            for step in found
            if step.canvas is not None and step.signature is None
        }
    sent: set[tuple[str, int]] = set()
    for step in found:
        workflow = plans.get(step.step.task_id)
        if step.signature is not None or step.canvas is None or workflow is None:
            send_step(wiring, step)
        elif (step.step.workflow_id, step.canvas) not in sent:
            sent.add((step.step.workflow_id, step.canvas))
            flow = compile_plan(plan_from_json(workflow[0]))
            _send_canvas(wiring, flow.canvases[step.canvas], workflow[1])


def send_step(wiring: Wiring, step: Publishable) -> None:
    """One step: its last request again, so that its chain and chord go on, or a message that stands alone."""
    label = step_label(step.step.task_id, step.kind, step.number, step.total)
    if step.signature is not None:
        destination = wiring.topology.destination(step.priority)
        canvas.sent_again(wiring.app, step.signature, destination, label).apply_async()
    else:
        step_signature(wiring, step).apply_async()


def step_signature(wiring: Wiring, step: Publishable) -> Signature[Any]:
    reference = Reference(
        str(TaskName.RUN_STEP),
        step.step.tenant_id,
        step.step.task_id,
        step.step.workflow_id,
        step.step.step_id,
    )
    message = Message(
        step.step.step_id,
        reference,
        wiring.topology.destination(step.priority),
        step_label(step.step.task_id, step.kind, step.number, step.total),
    )
    return canvas.signature(wiring.app, message, wiring.secret)


def hand_on_slot(wiring: Wiring) -> None:
    """A step gave its lease back: the one that waits longest for a slot is sent. The sweep does it, too."""
    if not wiring.settings.max_concurrent_workflows:
        return
    try:
        with wiring.engine.connect() as connection:
            waiting = claims.waiting_for_slot(connection, wiring.tenant_id)
        for step in waiting:
            with wiring.engine.begin() as connection:
                woken = wake(connection, step, Event.WAKE, {"why": "a slot may be free"})
            if woken is not None:
                publish(wiring, following(step.task, woken.settled, (step,)))
                return
    except SQLAlchemyError as error:
        log.warning("slot_not_handed_on", error=type(error).__name__)


def resend_entry(wiring: Wiring, task: TaskRef) -> None:
    """Wakes the caller's own message: the next delivery hands the end to Celery."""
    with wiring.engine.connect() as connection:
        found = publishing.entry(connection, task)
    if found is not None:
        stored, priority = found
        destination = wiring.topology.destination(priority)
        canvas.sent_again(wiring.app, stored, destination, finalize_label(task.task_id)).apply_async()


def _show(wiring: Wiring, task: TaskRef, status: Status) -> None:
    """The caller's message takes the task's status, in Celery's results and in Flower."""
    show(wiring.app, task.task_id, status.value)
    with wiring.engine.connect() as connection:
        agent_id = publishing.last_agent(connection, task)
    if agent_id is not None:
        _tell_flower(wiring, agent_id, task.task_id, f"task-{status.value}")


def _show_ended(wiring: Wiring, task: TaskRef) -> None:
    """Tells Flower of steps that were ended while parked: no delivery of theirs is there to say it.

    Flower takes a state of ours for a later one than REVOKED, and a retry for a new start.
    """
    with wiring.engine.connect() as connection:
        cancelled, failed = publishing.cancelled(connection, task), publishing.failed_late(connection, task)
    for step_id, agent_id in cancelled:
        _tell_flower(wiring, agent_id, step_id, "task-retried", "task-revoked")
    for step_id, agent_id, code in failed:
        _tell_flower(wiring, agent_id, step_id, "task-retried", "task-failed", exception=code)


def _tell_flower(wiring: Wiring, agent_id: str, celery_id: str, *events: str, **said: str) -> None:
    """Under the name of the agent's worker, or Flower would show this process as one more worker."""
    worker = agent_id.rpartition("/")[0]
    with wiring.app.events.default_dispatcher(hostname=worker) as dispatcher:
        for event in events:
            dispatcher.send(event, uuid=celery_id, **said)
