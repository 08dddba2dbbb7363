"""What a command wants published once its transaction is committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.core.flow import Canvas
from orchestrator.core.states import Status
from orchestrator.db.publishing import Publishable
from orchestrator.db.sql import StepRef, TaskRef
from orchestrator.db.transitions import Settled


@dataclass(frozen=True, slots=True)
class Started:
    """A new workflow: its first canvases are to be sent, `steps` has their messages by key."""

    task: TaskRef
    workflow_id: str
    canvases: tuple[Canvas, ...]
    steps: Mapping[str, Publishable]


@dataclass(frozen=True, slots=True)
class Publication:
    """What is due; of steps that were there before, ids alone: the rest is read after the COMMIT."""

    started: Started | None = None
    released: tuple[StepRef, ...] = ()
    """Steps that became ready and that no canvas publishes."""
    finished: tuple[TaskRef, ...] = ()
    """Tasks that ended and whose caller waits in Celery, or that have steps which Flower must hear of."""
    shown: tuple[tuple[TaskRef, Status], ...] = ()
    """Tasks whose status changed and whose caller watches them in Celery."""
    awaited: tuple[TaskRef, ...] = ()
    """Subtasks that ended: the steps that started them may go on."""
    forsaken: tuple[TaskRef, ...] = ()
    """Live subtasks whose parent's step ended: they are to be cancelled."""


NOTHING = Publication()


def following(task: TaskRef, settled: Settled, released: tuple[StepRef, ...] = ()) -> Publication:
    """What a transition makes due."""
    return Publication(
        released=released,
        finished=(task,)
        if settled.ended and (settled.watched or settled.status is not Status.COMPLETED)
        else (),
        shown=((task, settled.status),) if settled.watched and not settled.ended else (),
        awaited=(task,) if settled.ended and settled.of_parent else (),
        forsaken=settled.forsaken,
    )


def together(*parts: Publication) -> Publication:
    """Of changes of several tasks in one transaction; only one of them may have started a workflow."""
    return Publication(
        started=next((part.started for part in parts if part.started is not None), None),
        released=tuple(step for part in parts for step in part.released),
        finished=tuple(task for part in parts for task in part.finished),
        shown=tuple(change for part in parts for change in part.shown),
        awaited=tuple(task for part in parts for task in part.awaited),
        forsaken=tuple(task for part in parts for task in part.forsaken),
    )
