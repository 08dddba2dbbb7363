"""Draining reaches two places: the rows, which running steps hear of, and the worker's own list of queues."""

from __future__ import annotations

from orchestrator.bootstrap import Wiring
from orchestrator.commands import fleet
from orchestrator.commands.fleet import Drained


def drain(wiring: Wiring, tenant_id: str, name: str, *, on: bool = True) -> Drained:
    """Lets a worker finish and take nothing new (or go on again); all of its slots drain together."""
    with wiring.engine.begin() as connection:
        drained = fleet.drain(connection, tenant_id, name, on=on)
    control = wiring.app.control
    for queue in drained.queues:
        if on:
            control.cancel_consumer(queue, destination=list(drained.workers))
        else:
            control.add_consumer(queue, destination=list(drained.workers))
    return drained
