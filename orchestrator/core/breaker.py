"""A circuit breaker, as a pure function of what was seen: the rows that all processes share hold the rest.

closed ── failure_threshold failures in a row ──► open
open ── recovery_timeout over ──► half_open, which lets one probe through at a time
half_open ── success_threshold probes succeed ──► closed;  one fails ──► open
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Circuit:
    """What is remembered of one provider or type of agent."""

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    """In a row: those that opened it, and the probes that failed since. Zero once it is closed again."""
    successes: int = 0
    """Of probes, while half open."""
    opened_at: datetime | None = None
    probing_until: datetime | None = None
    """While half open: somebody tries, and is given up on then."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Not now; perhaps after `retry_after`."""

    retry_after: timedelta


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """The rule. `probe_timeout` is when a probe that never reported counts as gone."""

    failure_threshold: int = 5
    recovery_timeout: timedelta = timedelta(seconds=30)
    success_threshold: int = 2
    probe_timeout: timedelta = timedelta(minutes=2)

    def ask(self, circuit: Circuit, now: datetime) -> Circuit | Refused:
        """Whether one more may try at `now`; if so, what to remember from here on."""
        match circuit.state:
            case BreakerState.CLOSED:
                return circuit
            case BreakerState.OPEN:
                reopens = (circuit.opened_at or now) + self.recovery_timeout
                if now < reopens:
                    return Refused(reopens - now)
                return replace(
                    circuit,
                    state=BreakerState.HALF_OPEN,
                    successes=0,
                    probing_until=now + self.probe_timeout,
                )
            case BreakerState.HALF_OPEN:
                if circuit.probing_until is not None and now < circuit.probing_until:
                    return Refused(min(circuit.probing_until - now, self.recovery_timeout))
                return replace(circuit, probing_until=now + self.probe_timeout)

    def succeeded(self, circuit: Circuit) -> Circuit:
        """After a try that worked. One that began before the circuit opened changes nothing."""
        match circuit.state:
            case BreakerState.CLOSED:
                return Circuit()
            case BreakerState.OPEN:
                return circuit
            case BreakerState.HALF_OPEN:
                if circuit.successes + 1 >= self.success_threshold:
                    return Circuit()
                return replace(circuit, successes=circuit.successes + 1, probing_until=None)

    def failed(self, circuit: Circuit, now: datetime) -> Circuit:
        match circuit.state:
            case BreakerState.CLOSED if circuit.failures + 1 < self.failure_threshold:
                return replace(circuit, failures=circuit.failures + 1)
            case BreakerState.OPEN:
                return circuit
            case _:
                return Circuit(BreakerState.OPEN, failures=circuit.failures + 1, opened_at=now)

    def abandoned(self, circuit: Circuit) -> Circuit:
        """After a try that says nothing, since whoever asked hung up: the next one may probe."""
        return replace(circuit, probing_until=None)
