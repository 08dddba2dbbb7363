"""What a command wants published once its transaction is committed."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.states import Status
from orchestrator.db.sql import StepRef, TaskRef
from orchestrator.db.transitions import Settled


@dataclass(frozen=True, slots=True)
class Publication:
    """Ids alone: what is published is read from the rows after the COMMIT."""

    started: TaskRef | None = None
    """A workflow whose first canvases are to be sent."""
    released: tuple[StepRef, ...] = ()
    """Steps that became ready and that no canvas publishes."""
    finished: tuple[TaskRef, ...] = ()
    """Tasks that ended and whose caller waits in Celery."""
    shown: tuple[tuple[TaskRef, Status], ...] = ()
    """Tasks whose status changed and whose caller watches them in Celery."""


NOTHING = Publication()


def following(task: TaskRef, settled: Settled, released: tuple[StepRef, ...] = ()) -> Publication:
    """What a transition makes due."""
    return Publication(
        released=released,
        finished=(task,) if settled.ended else (),
        shown=((task, settled.status),) if settled.watched else (),
    )
