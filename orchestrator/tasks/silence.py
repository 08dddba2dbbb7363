"""What becomes of questions that nobody answered in time, as their task's policy says."""

from __future__ import annotations

from typing import Final

import structlog

from orchestrator.bootstrap import Wiring
from orchestrator.commands import answer
from orchestrator.commands.publication import following
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.verdict import OnSilence
from orchestrator.db import silence, sweep
from orchestrator.db.connect import Connection, SQLAlchemyError
from orchestrator.db.silence import Unanswered
from orchestrator.tasks.publish import perform, publish

log: Final = structlog.get_logger(__name__)
POLICY: Final = "policy"
"""Who answered, when nobody did."""


def end_silence(wiring: Wiring) -> int:
    """How many questions had their end; each in a transaction of its own."""
    with wiring.engine.connect() as connection:
        found = silence.unanswered(connection)
    return sum(_end(wiring, late) for late in found)


def _end(wiring: Wiring, late: Unanswered) -> bool:
    try:
        return _default(wiring, late) if late.then is OnSilence.DEFAULT else _fail(wiring, late)
    except OrchestratorError:
        return False  # a person was faster
    except SQLAlchemyError as error:
        log.warning("sweep_stumbled", question=late.question_id, error=type(error).__name__)
        return False


def _default(wiring: Wiring, late: Unanswered) -> bool:
    def work(connection: Connection) -> answer.Answered:
        sweep.pass_by_locked(connection)
        said = late.default or ""
        return answer.answer(connection, late.step.tenant_id, late.question_id, said, by=POLICY)

    perform(wiring, work)
    return True


def _fail(wiring: Wiring, late: Unanswered) -> bool:
    with wiring.engine.begin() as connection:
        sweep.pass_by_locked(connection)
        applied = silence.fail_unanswered(connection, late)
    if applied is None:
        return False
    publish(wiring, following(late.step.task, applied.settled))
    return True
