"""Chooses the kind of agent for a step, by rule, and says why. Pure: what is known comes in as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.agents.readiness import Readiness
from orchestrator.agents.types import AGENT_TYPES, AgentType, Capability

_SPECIALTY: Final = 0.5
_LANGUAGE: Final = 0.25
_LOAD: Final = 0.5
_FAILED: Final = "failed here"
_FAILED_HERE: Final = 2.0
"""A kind that failed at this very step comes after every other that fits."""
_OUTCOME: Final = 3.0
_EXPECTED: Final = 0.8
_ENOUGH: Final = 5
"""Ended steps below which a rate says nothing."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a step asks of its agent. `named`: the kind that the request names; `model`: the model's name."""

    named: str | None = None
    task_type: str | None = None
    languages: frozenset[str] = frozenset()
    capabilities: tuple[str, ...] = ()
    model: str | None = None
    approvals: bool = False
    """Some of its calls wait for a person's leave."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a kind: its slots and how many work with it now, how its last steps ended, and how
    often it failed at this one."""

    slots: int = 0
    busy: int = 0
    completed: int = 0
    failed: int = 0
    failed_here: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """`reason` for people; `considered`: the score of each kind that would have done."""

    name: str
    reason: str
    considered: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoSuitableAgent:
    """Nobody here can do it. `missing`: kind → what keeps it from doing so, and what to do."""

    missing: Mapping[str, Sequence[str]]

    def detail(self, wanted: Wanted) -> dict[str, Any]:
        """As a step that waits shows it."""
        asked = {"agent": wanted.named, "capabilities": list(wanted.capabilities)}
        shown = {name: list(lines) for name, lines in self.missing.items()}
        return {**{key: value for key, value in asked.items() if value}, "missing": shown}


def select(
    wanted: Wanted,
    ready: Iterable[Readiness],
    tags: frozenset[str] = frozenset(),
    known: Mapping[str, Record] | None = None,
) -> Choice | NoSuitableAgent:
    """The kind that fits best, or the named one if it fits. `tags`: what this worker offers besides its
    agents, such as `gpu`; `known` says nothing of a kind that it doesn't name."""
    known = known or {}
    scores: dict[str, tuple[float, list[str]]] = {}
    missing: dict[str, list[str]] = {}
    for one in ready:
        kind = one.kind
        if wanted.named not in {None, kind.name} or (wanted.named is None and kind.preference < 0):
            continue
        if lacking := list(_lacking(one, wanted, tags)):
            missing[kind.name] = lacking
        else:
            scores[kind.name] = _score(kind, wanted, known.get(kind.name, Record()))
    if not scores:
        return NoSuitableAgent(missing or {wanted.named or "any": ["no such kind of agent here"]})
    best = max(scores, key=lambda name: scores[name][0])
    return Choice(
        best, _reason(best, wanted, scores, missing), {name: round(s, 2) for name, (s, _) in scores.items()}
    )


def _lacking(one: Readiness, wanted: Wanted, tags: frozenset[str]) -> Iterable[str]:
    for gap in one.missing:
        yield f"{gap.what}: {gap.do}"
    for word in wanted.capabilities:
        if not one.kind.offers(word) and word not in tags:
            yield f"it doesn't offer {word!r}, and neither does this worker"
    yield from _never(one.kind, wanted.model, approvals=wanted.approvals)


def _never(kind: AgentType, model: str | None, *, approvals: bool) -> Iterable[str]:
    """What no installation changes."""
    if approvals and Capability.APPROVALS not in kind.capabilities:
        yield "it asks nobody's leave, which this task requires: take another kind, or no tool_approval"
    if not speaks_to(kind, model):
        yield f"it doesn't speak to {provider_of(model)}, whose model {model} is"


def misfit(name: str, model: str | None, *, approvals: bool) -> tuple[str, Sequence[str]] | None:
    """Why no agent of that kind will ever do a step with this model, and the kinds that would."""
    kind = AGENT_TYPES.get(name)
    lacking = None if kind is None else next(iter(_never(kind, model, approvals=approvals)), None)
    if lacking is None:
        return None
    others = [kind for kind in AGENT_TYPES.values() if kind.preference >= 0]
    return lacking, [kind.name for kind in others if not list(_never(kind, model, approvals=approvals))]


def speaks_to(kind: AgentType, model: str | None) -> bool:
    """Whether that kind can use the model, as far as its name tells."""
    provider = provider_of(model)
    return provider is None or not kind.providers or provider in kind.providers


def provider_of(model: str | None) -> str | None:
    """Whose model it is, as far as its name tells."""
    if model is None:
        return None
    if model.startswith("claude"):
        return "anthropic"
    return "openai" if model.startswith(("gpt-", "o1", "o3", "o4", "codex")) else None


def _score(kind: AgentType, wanted: Wanted, record: Record) -> tuple[float, list[str]]:
    score, why = kind.preference, []
    if wanted.task_type and wanted.task_type in kind.specialties:
        score += _SPECIALTY
        why.append(f"good at {wanted.task_type}")
    if matched := wanted.languages & kind.languages:
        score += _LANGUAGE
        why.append(f"made for {', '.join(sorted(matched))}")
    if record.slots:
        score -= _LOAD * min(1.0, record.busy / record.slots)
    ended = record.completed + record.failed
    if ended >= _ENOUGH:
        score += _OUTCOME * (record.completed / ended - _EXPECTED)
        why.append(f"{record.completed} of its last {ended} steps completed")
    if record.failed_here:
        score -= _FAILED_HERE * record.failed_here
        times = "once" if record.failed_here == 1 else f"{record.failed_here} times"
        why.append(f"{_FAILED} {times}")
    return score, why


def _reason(
    best: str,
    wanted: Wanted,
    scores: Mapping[str, tuple[float, list[str]]],
    missing: Mapping[str, Sequence[str]],
) -> str:
    if wanted.named is not None:
        return "the request names it"
    why = scores[best][1] or ["preferred where nothing speaks against it"]
    if why[0].startswith(_FAILED):
        why = [f"the best that is left, though it {why[0]}"]
    others = [
        f"{name} ({'; '.join(said) or 'less preferred'})"
        for name, (_, said) in scores.items()
        if name != best
    ]
    others += [f"{name} (can't: {lines[0]})" for name, lines in missing.items()]
    return "; ".join(why) + (f". Instead of {', '.join(others)}" if others else "")
