"""Gives a claimed step its kind of agent: the one that the request names, or one by rule, with the reason.

A choice holds for its attempt, wherever that goes on. After an attempt that broke it is made anew, with what
is known by then; a worker's death and a provider's faults are not held against an agent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from orchestrator.agents.readiness import NO_KEY, Readiness
from orchestrator.agents.selection import Choice, NoSuitableAgent, Record, Wanted, select, speaks_to
from orchestrator.agents.types import AGENT_TYPES, LANGUAGES
from orchestrator.bootstrap import Wiring
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Waits
from orchestrator.db import choices
from orchestrator.db.claims import Claimed
from orchestrator.db.connect import Connection
from orchestrator.tasks.link import StepLink

DEFAULT: Final = "engine"
"""The kind of a step whose row names none and that has begun."""
_ELSEWHERE: Final = timedelta(seconds=3)
"""How soon another worker, which has what this one lacks, may take the step."""
_NOWHERE: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class _Before:
    """What was chosen by rule for an earlier attempt; `failed`: kind → attempts that broke by its fault."""

    kind: str
    attempt: int
    failed: Mapping[str, int] = field(default_factory=dict)


def choose(wiring: Wiring, claimed: Claimed, link: StepLink) -> str | Waits:
    """The kind's name, or that the step waits for an agent, with what is missing."""
    before = _before(claimed.spec)
    named = claimed.task_agent_type if before else claimed.agent_type or claimed.task_agent_type
    if claimed.resumed and named is None:
        named = _goes_on_with(wiring, claimed, before)
    wanted = Wanted(
        named=named,
        task_type=_text(claimed.spec.get("task_type")),
        languages=frozenset(claimed.capabilities) & LANGUAGES,
        capabilities=tuple(claimed.capabilities),
        model=claimed.model or claimed.task_model,
        approvals=bool(claimed.approvals),
    )
    tags = wiring.settings.worker_capabilities
    found = select(wanted, wiring.agents.values(), tags)
    if isinstance(found, NoSuitableAgent):
        return _waits(wiring, claimed, wanted, found)
    if named is None and len(found.considered) > 1:
        return _among_several(wiring, claimed, wanted, before)
    if not claimed.resumed:
        link.mention("agent", {"agent": found.name, "reason": found.reason})
    return found.name


def _goes_on_with(wiring: Wiring, claimed: Claimed, before: _Before | None) -> str | None:
    """The kind that this attempt was begun with; None: it only waited until now."""
    if before is not None and before.attempt == claimed.attempt:
        return before.kind
    with wiring.engine.connect() as connection:
        return DEFAULT if choices.has_begun(connection, claimed.step) else None


def _among_several(wiring: Wiring, claimed: Claimed, wanted: Wanted, before: _Before | None) -> str:
    """With what the rows know; the choice is kept, for the worker that goes on may have other agents."""
    with wiring.engine.begin() as connection:
        failed = _failed(connection, claimed, before)
        known = {
            name: Record(**facts, failed_here=failed.get(name, 0))
            for name, facts in choices.known(connection, claimed.step.tenant_id).items()
        }
        labels = choices.labels(connection, claimed.step)
        asked = Wanted(
            task_type=wanted.task_type or labels.get("type"),
            languages=wanted.languages | ({labels.get("language", "").lower()} & LANGUAGES),
            capabilities=wanted.capabilities,
            model=wanted.model,
            approvals=wanted.approvals,
        )
        chosen = select(asked, wiring.agents.values(), wiring.settings.worker_capabilities, known)
        assert isinstance(chosen, Choice)  # noqa: S101 - the same kinds fitted a moment ago
        kept = {
            "agent": chosen.name,
            "reason": chosen.reason,
            "considered": dict(chosen.considered),
            "attempt": claimed.attempt,
            "failed": dict(failed),
        }
        choices.choose(connection, claimed.step, claimed.fence, chosen.name, kept)
    return chosen.name


def _failed(connection: Connection, claimed: Claimed, before: _Before | None) -> Mapping[str, int]:
    if before is None:
        return {}
    blamed = choices.is_blamed(connection, claimed.step, before.attempt)
    return Counter(before.failed) + Counter({before.kind: int(blamed)})


def _before(spec: Mapping[str, Any]) -> _Before | None:
    """The spec came with the request: what in it looks like ours need not be."""
    kept = spec.get(choices.KEPT)
    if not isinstance(kept, Mapping) or kept.get("agent") not in AGENT_TYPES:
        return None
    attempt, failed = kept.get("attempt"), kept.get("failed")
    if not isinstance(attempt, int) or not isinstance(failed, Mapping):
        return None
    counts = {name: times for name, times in failed.items() if isinstance(times, int)}
    return _Before(str(kept["agent"]), attempt, counts)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _waits(wiring: Wiring, claimed: Claimed, wanted: Wanted, found: NoSuitableAgent) -> Waits:
    with wiring.engine.connect() as connection:
        others = choices.offered_elsewhere(connection, claimed.step.tenant_id, None)
    kinds = [
        kind
        for kind in AGENT_TYPES.values()
        if (kind.name == wanted.named or (wanted.named is None and kind.preference >= 0))
        and speaks_to(kind, wanted.model)
        and not _lacks_key(wiring.agents.get(kind.name))
    ]
    elsewhere = any(
        kind.name in offers and all(kind.offers(word) or word in offers for word in wanted.capabilities)
        for offers in others
        for kind in kinds
    )
    detail = {**found.detail(wanted), "elsewhere": elsewhere}
    return Waits(WaitingOn.AGENT, detail, _ELSEWHERE if elsewhere else _NOWHERE)


def _lacks_key(here: Readiness | None) -> bool:
    """What another worker said that it offers, it said when there was a key."""
    return here is not None and any(gap.what == NO_KEY for gap in here.missing)
