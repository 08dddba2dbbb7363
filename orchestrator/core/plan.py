"""A plan: the validated DAG of a workflow's steps, and what can be said about it before it runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import networkx as nx

from orchestrator.core.errors import Problem, Refused

MAX_STEPS: Final = 500
MAX_KEY_LENGTH: Final = 80
_KEY: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.:-]{{0,{MAX_KEY_LENGTH - 1}}}")
_KEY_RULE: Final = f"1 to {MAX_KEY_LENGTH} letters, digits or _ . : - (a letter or digit first)"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One unit of a plan. `key` is the step's `id` in a request and unique within the plan.

    `needs` holds the keys whose completion it waits for; `spec` is JSON-able and belongs to the step's kind.
    """

    key: str
    description: str
    needs: tuple[str, ...] = ()
    kind: str = "agent"
    agent_type: str | None = None
    model: str | None = None
    estimate: timedelta | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps that passed `validate`, in the order in which they were given: a step's number is its place."""

    steps: tuple[PlanStep, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(step.key for step in self.steps)

    @property
    def needs(self) -> dict[str, frozenset[str]]:
        return {step.key: frozenset(step.needs) for step in self.steps}


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a plan takes; a step without an estimate counts as nothing."""

    sequential: timedelta
    parallel: timedelta
    """With as many agents as it can use: the length of the critical path."""


def validate(steps: Iterable[PlanStep]) -> Plan:
    """The plan of these steps.

    Raises Refused with a JSON pointer per fault (`/steps/2/needs/0`): `plan-empty`, `plan-too-large` (over
    500 steps), `plan-invalid` (ids and needs), `plan-cycle` (a circle of needs, each of them named).
    """
    given = tuple(steps)
    if not given:
        raise Refused("plan-empty", "The plan has no steps.", "Give at least one step, or leave `steps` out.")
    if len(given) > MAX_STEPS:
        raise Refused(
            "plan-too-large",
            f"The plan has {len(given)} steps; at most {MAX_STEPS} are accepted.",
            "Split the work into several tasks.",
            (Problem("/steps", "too-many", f"{len(given)} steps, at most {MAX_STEPS}"),),
        )
    problems = tuple(_faults(given))
    if problems:
        raise Refused(
            "plan-invalid",
            f"The plan is not valid: {problems[0].detail}.",
            "Correct the steps that `problems` points to.",
            problems,
        )
    circles = tuple(_circles(given))
    if circles:
        raise Refused(
            "plan-cycle",
            f"The plan's steps wait for one another: {circles[0].detail}.",
            "Remove one of the needs in each circle.",
            circles,
        )
    return Plan(given)


def critical_path(plan: Plan) -> tuple[str, ...]:
    """The keys of the longest way through the plan, by estimates and, where they are equal, by steps."""
    length: dict[str, tuple[timedelta, int]] = {}
    before: dict[str, str | None] = {}
    by_key = {step.key: step for step in plan.steps}
    for key in _in_order(plan):
        step = by_key[key]
        best = max(step.needs, key=length.__getitem__, default=None)
        time, count = length[best] if best is not None else (timedelta(0), 0)
        length[key] = (time + (step.estimate or timedelta(0)), count + 1)
        before[key] = best
    path: list[str] = []
    end: str | None = max(plan.keys, key=length.__getitem__)
    while end is not None:
        path.append(end)
        end = before[end]
    return tuple(reversed(path))


def parallel_groups(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """Generations: each group's steps need only steps of earlier groups. In the plan's order."""
    place = {key: number for number, key in enumerate(plan.keys)}
    return tuple(
        tuple(sorted(group, key=place.__getitem__)) for group in nx.topological_generations(graph(plan))
    )


def estimate(plan: Plan) -> Estimate:
    times = {step.key: step.estimate or timedelta(0) for step in plan.steps}
    return Estimate(
        sequential=sum(times.values(), timedelta(0)),
        parallel=sum((times[key] for key in critical_path(plan)), timedelta(0)),
    )


def graph(plan: Plan) -> nx.DiGraph[str]:
    """Nodes in the plan's order; an edge leads from what is needed to what needs it."""
    found: nx.DiGraph[str] = nx.DiGraph()
    found.add_nodes_from(plan.keys)
    found.add_edges_from((need, step.key) for step in plan.steps for need in step.needs)
    return found


def _in_order(plan: Plan) -> Iterator[str]:
    yield from (key for group in parallel_groups(plan) for key in group)


def _faults(steps: Sequence[PlanStep]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for number, step in enumerate(steps):
        at = f"/steps/{number}/id"
        if not _KEY.fullmatch(step.key):
            yield Problem(at, "invalid-id", f"step id {step.key[: MAX_KEY_LENGTH + 1]!r} is not {_KEY_RULE}")
        if step.key in first:
            yield Problem(
                at, "duplicate-id", f"step id {step.key!r} is already used by step {first[step.key] + 1}"
            )
        first.setdefault(step.key, number)
    for number, step in enumerate(steps):
        yield from _faulty_needs(number, step, first)


def _faulty_needs(number: int, step: PlanStep, known: Mapping[str, int]) -> Iterator[Problem]:
    seen: Counter[str] = Counter()
    for place, need in enumerate(step.needs):
        at = f"/steps/{number}/needs/{place}"
        seen[need] += 1
        if need == step.key:
            yield Problem(at, "self-need", f"step {step.key!r} needs itself")
        elif need not in known:
            yield Problem(
                at,
                "unknown-need",
                f"step {step.key!r} needs {need[:MAX_KEY_LENGTH]!r}, which is not in the plan",
            )
        elif seen[need] == 2:  # noqa: PLR2004 - the second mention is the fault
            yield Problem(at, "duplicate-need", f"step {step.key!r} names {need!r} twice")


def _circles(steps: Sequence[PlanStep]) -> Iterator[Problem]:
    """One circle of each knot of steps, written `a -> b -> a`: each needs the next."""
    needed_by: nx.DiGraph[str] = nx.DiGraph((step.key, need) for step in steps for need in step.needs)
    place = {step.key: number for number, step in enumerate(steps)}
    knots = [knot for knot in nx.strongly_connected_components(needed_by) if len(knot) > 1]
    for knot in sorted(knots, key=lambda knot: min(place[key] for key in knot)):
        within: nx.DiGraph[str] = nx.DiGraph(
            (step.key, need) for step in steps if step.key in knot for need in step.needs if need in knot
        )
        circle = [key for key, _ in nx.find_cycle(within)]
        turn = circle.index(min(circle, key=place.__getitem__))
        named = [*circle[turn:], *circle[: turn + 1]]
        start = steps[place[named[0]]]
        yield Problem(
            f"/steps/{place[start.key]}/needs/{start.needs.index(named[1])}", "cycle", " -> ".join(named)
        )
