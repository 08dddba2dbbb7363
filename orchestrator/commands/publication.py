"""What a command wants published once its transaction is committed."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.db.sql import StepRef, TaskRef


@dataclass(frozen=True, slots=True)
class Publication:
    """Ids alone: what is published is read from the rows after the COMMIT."""

    started: TaskRef | None = None
    """A workflow whose first canvases are to be sent."""
    released: tuple[StepRef, ...] = ()
    """Steps that became ready and that no canvas publishes."""
    finished: tuple[TaskRef, ...] = ()
    """Tasks that ended and whose caller waits in Celery."""


NOTHING = Publication()
