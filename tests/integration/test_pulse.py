"""A worker's heartbeat, where the rows that it writes are kept by others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.bootstrap import Wiring
from orchestrator.tasks.link import StepLink
from orchestrator.tasks.pulse import Pulse
from tests.integration.api_server import wired
from tests.integration.ledger import Ledger
from tests.integration.stack import until

LEASE = timedelta(seconds=2)


@pytest.fixture
def wiring(ledger: Ledger, tmp_path: Path) -> Iterator[Wiring]:
    made = wired(ledger.url, tmp_path, lease=LEASE)
    yield replace(made, settings=made.settings.model_copy(update={"sweep_every": timedelta(milliseconds=10)}))
    made.engine.dispose()


@contextmanager
def beating(wiring: Wiring, clean: Callable[[], None] = lambda: None) -> Iterator[Pulse]:
    pulse = Pulse(wiring, lambda _: pytest.fail("no slot"), lambda: None, clean, lambda _: None)
    try:
        yield pulse
    finally:
        pulse.end()


def test_a_row_that_somebody_keeps_holds_up_no_other_step(ledger: Ledger, wiring: Wiring) -> None:
    """As a worker with several slots does, while it merges what one of them has brought."""
    kept, other = (ledger.take(ledger.task(name)["work"], lease=LEASE) for name in ("kept", "other"))
    links = [StepLink(wiring, claimed) for claimed in (kept, other)]
    with beating(wiring) as pulse, ledger.engine.begin() as keeping:
        keeping.execute(text("SELECT 1 FROM tasks WHERE id = 'kept' FOR UPDATE"))
        keeping.execute(text("SELECT 1 FROM steps WHERE id = :id FOR UPDATE"), {"id": kept.step.step_id})
        links[0].log("stdout", "waits to be written")
        for claimed, link in zip((kept, other), links, strict=True):
            pulse.carry(claimed, link, "agent@host/1")
        first = ledger.step(other.step)["lease_until"]
        until(lambda: ledger.step(other.step)["lease_until"] > first + LEASE, "the other step's next lease")


def test_tidying_up_holds_up_no_lease(ledger: Ledger, wiring: Wiring) -> None:
    """A folder of many files, or a mirror that somebody fetches into, takes its time."""
    begun, enough = threading.Event(), threading.Event()

    def clean() -> None:
        begun.set()
        enough.wait()

    claimed = ledger.take(ledger.task("t")["work"], lease=LEASE)
    with beating(wiring, clean) as pulse:
        pulse.carry(claimed, StepLink(wiring, claimed), "agent@host/1")
        until(begun.is_set, "the tidying")
        first = ledger.step(claimed.step)["lease_until"]
        until(lambda: ledger.step(claimed.step)["lease_until"] > first + LEASE, "the step's next lease")
        enough.set()
