"""A worker's heartbeat, where the rows that it writes are kept by others."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.tasks.link import StepLink
from orchestrator.tasks.pulse import Pulse
from tests.integration.api_server import wired
from tests.integration.ledger import Ledger
from tests.integration.stack import until

LEASE = timedelta(seconds=2)


@pytest.fixture
def pulse(ledger: Ledger, tmp_path: Path) -> Iterator[Pulse]:
    wiring = wired(ledger.url, tmp_path, lease=LEASE)
    made = Pulse(wiring, lambda _: pytest.fail("no slot"), lambda: None, lambda: None, lambda _: None)
    yield made
    made.end()
    wiring.engine.dispose()


def test_a_row_that_somebody_keeps_holds_up_no_other_step(ledger: Ledger, pulse: Pulse) -> None:
    """As a worker with several slots does, while it merges what one of them has brought."""
    kept, other = (ledger.take(ledger.task(name)["work"], lease=LEASE) for name in ("kept", "other"))
    links = [StepLink(pulse._wiring, claimed) for claimed in (kept, other)]
    with ledger.engine.begin() as keeping:
        keeping.execute(text("SELECT 1 FROM tasks WHERE id = 'kept' FOR UPDATE"))
        keeping.execute(text("SELECT 1 FROM steps WHERE id = :id FOR UPDATE"), {"id": kept.step.step_id})
        links[0].log("stdout", "waits to be written")
        for claimed, link in zip((kept, other), links, strict=True):
            pulse.carry(claimed, link, "agent@host/1")
        first = ledger.step(other.step)["lease_until"]
        until(lambda: ledger.step(other.step)["lease_until"] > first + LEASE, "the other step's next lease")
    until(lambda: ledger.rows("SELECT 1 FROM logs"), "what the step said")
