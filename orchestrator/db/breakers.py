"""Circuit breakers that all processes share: rows, changed under their lock by the rule in `core.breaker`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.breaker import BreakerState, Circuit, CircuitBreaker, Refused
from orchestrator.db.sql import Direct, Prepared, one, rows, statement

_COLUMNS: Final = "kind, name, state, failures, successes, opened_at, probing_until, reason, updated_at"


class BreakerKind(StrEnum):
    PROVIDER = "provider"
    AGENT_TYPE = "agent_type"


class Tried(StrEnum):
    """How a try ended, as far as a breaker cares."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABANDONED = "abandoned"
    """Nothing is known: whoever asked hung up."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """One row, as a door shows it."""

    kind: BreakerKind
    name: str
    circuit: Circuit
    reason: str | None
    updated_at: datetime


_LOCKED: Final = statement(
    f"""
    SELECT {_COLUMNS}, clock_timestamp() AS now FROM breakers
    WHERE tenant_id = :tenant AND kind = :kind AND name = :name FOR UPDATE
    """
)
_STATE: Final = Prepared(
    "breaker_state",
    "SELECT state FROM breakers WHERE tenant_id = :tenant AND kind = :kind AND name = :name",
)
_PUT: Final = statement(
    """
    INSERT INTO breakers (tenant_id, kind, name, state, failures, successes, opened_at, probing_until, reason)
    VALUES (:tenant, :kind, :name, :state, :failures, :successes, :opened_at, :probing_until, :reason)
    ON CONFLICT (tenant_id, kind, name) DO UPDATE SET state = excluded.state, failures = excluded.failures,
        successes = excluded.successes, opened_at = excluded.opened_at,
        probing_until = excluded.probing_until, reason = excluded.reason, updated_at = clock_timestamp()
    """
)
_MAKE: Final = statement(
    "INSERT INTO breakers (tenant_id, kind, name) VALUES (:tenant, :kind, :name) ON CONFLICT DO NOTHING"
)
_ALL: Final = statement(f"SELECT {_COLUMNS} FROM breakers WHERE tenant_id = :tenant ORDER BY kind, name")
_RESET: Final = statement(
    """
    UPDATE breakers SET state = 'closed', failures = 0, successes = 0, opened_at = NULL,
        probing_until = NULL, reason = NULL, updated_at = clock_timestamp()
    WHERE tenant_id = :tenant AND kind = :kind AND name = :name RETURNING 1
    """
)


def state(
    connection: Connection | Direct, tenant_id: str, kind: BreakerKind, name: str
) -> BreakerState | None:
    """A look without a lock. None: it has never failed."""
    row = one(connection, _STATE, tenant=tenant_id, kind=str(kind), name=name)
    return None if row is None else BreakerState(row["state"])


def ask(
    connection: Connection, tenant_id: str, kind: BreakerKind, name: str, rule: CircuitBreaker
) -> Refused | None:
    """Whether one more may try; None: it may, and when the circuit was open it is the probe."""
    row = _locked(connection, tenant_id, kind, name)
    if row is None:
        return None
    before = _circuit(row)
    after = rule.ask(before, row["now"])
    if isinstance(after, Refused):
        return after
    if after != before:
        _put(connection, tenant_id, kind, name, after, row["reason"])
    return None


def record(
    connection: Connection,
    tenant_id: str,
    kind: BreakerKind,
    name: str,
    rule: CircuitBreaker,
    tried: Tried,
    reason: str | None = None,
) -> None:
    """Tells how a try ended; `reason` of a failure is shown to people."""
    row = _locked(connection, tenant_id, kind, name)
    if row is None:
        if tried is not Tried.FAILED:
            return
        connection.execute(_MAKE, {"tenant": tenant_id, "kind": kind, "name": name})
        row = _locked(connection, tenant_id, kind, name)
        assert row is not None  # noqa: S101 - made just now, or by another
    before = _circuit(row)
    match tried:
        case Tried.SUCCEEDED:
            after, why = rule.succeeded(before), row["reason"]
        case Tried.FAILED:
            after, why = rule.failed(before, row["now"]), reason
        case Tried.ABANDONED:
            after, why = rule.abandoned(before), row["reason"]
    if after != before:
        kept = None if after.state is BreakerState.CLOSED and not after.failures else why
        _put(connection, tenant_id, kind, name, after, kept)


def breakers(connection: Connection, tenant_id: str) -> tuple[Breaker, ...]:
    """All that have ever seen a failure."""
    return tuple(
        Breaker(BreakerKind(row["kind"]), row["name"], _circuit(row), row["reason"], row["updated_at"])
        for row in rows(connection, _ALL, tenant=tenant_id)
    )


def reset(connection: Connection, tenant_id: str, kind: BreakerKind, name: str) -> bool:
    """Closes it; False: there is none of that name."""
    return one(connection, _RESET, tenant=tenant_id, kind=kind, name=name) is not None


def _locked(connection: Connection, tenant_id: str, kind: BreakerKind, name: str) -> dict[str, Any] | None:
    return one(connection, _LOCKED, tenant=tenant_id, kind=kind, name=name)


def _circuit(row: dict[str, Any]) -> Circuit:
    return Circuit(
        BreakerState(row["state"]),
        row["failures"],
        row["successes"],
        row["opened_at"],
        row["probing_until"],
    )


def _put(
    connection: Connection,
    tenant_id: str,
    kind: BreakerKind,
    name: str,
    circuit: Circuit,
    reason: str | None,
) -> None:
    connection.execute(
        _PUT,
        {
            "tenant": tenant_id,
            "kind": kind,
            "name": name,
            "state": circuit.state,
            "failures": circuit.failures,
            "successes": circuit.successes,
            "opened_at": circuit.opened_at,
            "probing_until": circuit.probing_until,
            "reason": reason,
        },
    )
