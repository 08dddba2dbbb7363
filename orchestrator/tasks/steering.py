"""What people say to a task that runs, on its way into a step's conversation."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.redaction import Redactor
from orchestrator.db import effects, journal
from orchestrator.db.connect import Engine, at_once
from orchestrator.db.journal import Scope
from orchestrator.engine.ports import Heard
from orchestrator.tasks.fenced import fenced


def has_messages(engine: Engine, scope: Scope) -> bool:
    with at_once(engine) as direct:
        return effects.has_messages(direct, scope.step)


def hear(engine: Engine, scope: Scope, redactor: Redactor, before: int) -> Sequence[Heard]:
    """Takes messages up and journals them, before the turn or prompt of that number, in one transaction.
    Raises LeaseLost."""
    if not has_messages(engine, scope):
        return ()
    with fenced(engine) as connection:
        taken = effects.take_messages(connection, scope.step, scope.fence)
        heard = [Heard(before, redactor.text(text)) for text in taken]
        for message in heard:
            journal.append(connection, scope, "heard", before, {"text": message.text})
    return heard
