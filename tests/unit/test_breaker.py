"""A circuit breaker's rule, and what it tells people meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from orchestrator.core.breaker import BreakerState, Circuit, CircuitBreaker, Refused

RULE = CircuitBreaker(failure_threshold=3, recovery_timeout=timedelta(seconds=30), success_threshold=2)
THEN = datetime(2026, 1, 1, tzinfo=UTC)


def opened() -> Circuit:
    circuit = Circuit()
    for _ in range(3):
        circuit = RULE.failed(circuit, THEN)
    assert circuit.state is BreakerState.OPEN
    return circuit


def asked(circuit: Circuit, now: datetime) -> Circuit:
    found = RULE.ask(circuit, now)
    assert not isinstance(found, Refused)
    return found


def test_its_count_is_that_of_all_failures_since_it_was_closed() -> None:
    circuit, now = opened(), THEN
    assert circuit.failures == 3
    for failures in (4, 5):
        assert RULE.ask(circuit, now + timedelta(seconds=29)) == Refused(timedelta(seconds=1))
        now += timedelta(seconds=30)
        circuit = asked(circuit, now)
        assert (circuit.state, circuit.failures) == (BreakerState.HALF_OPEN, failures - 1)
        circuit = RULE.failed(circuit, now)
        assert (circuit.state, circuit.failures, circuit.opened_at) == (BreakerState.OPEN, failures, now)


def test_probes_in_a_row_close_it_and_one_that_fails_makes_them_begin_anew() -> None:
    later = [THEN + timedelta(seconds=30 * number) for number in range(1, 4)]
    circuit = RULE.succeeded(asked(opened(), later[0]))
    assert (circuit.state, circuit.successes) == (BreakerState.HALF_OPEN, 1)
    circuit = asked(RULE.failed(circuit, later[0]), later[1])
    assert circuit.successes == 0
    circuit = RULE.succeeded(asked(RULE.succeeded(circuit), later[2]))
    assert circuit == Circuit()
