"""Draining reaches two places: the rows, which running steps hear of, and the worker's own list of queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from orchestrator.bootstrap import Wiring
from orchestrator.commands import fleet
from orchestrator.commands.fleet import Drained

log: Final = structlog.get_logger(__name__)


def drain(wiring: Wiring, tenant_id: str, name: str, *, on: bool = True) -> Drained:
    """Lets a worker finish and take nothing new (or go on again); all of its slots drain together.

    With the broker away the rows alone are told: the workers' heartbeats find it there. Raises Unknown.
    """
    with wiring.engine.begin() as connection:
        drained = fleet.drain(connection, tenant_id, name, on=on)
    try:
        tell(wiring, drained.queues, drained.workers, rest=on)
    except Exception as error:  # noqa: BLE001 - whatever the broker throws, the rows are committed
        log.warning("workers_not_told", error=wiring.redactor.text(repr(error)), workers=drained.workers)
    return drained


def tell(wiring: Wiring, queues: Sequence[str], workers: Sequence[str], *, rest: bool) -> None:
    """Makes workers, by Celery's names, stop consuming these queues, or begin again. Twice is once."""
    control = wiring.app.control
    for queue in queues:
        if rest:
            control.cancel_consumer(queue, destination=list(workers))
        else:
            control.add_consumer(queue, destination=list(workers))
