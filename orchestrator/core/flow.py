"""The pure half of the compiler: what of a plan Celery moves along by itself, and what the database releases.

A `Flow` is a tuple of canvases. A canvas is a tree of four nodes, each with one start and one end:

    Single(key, beside)    one step; when it completes `beside` starts too, and nothing waits for that
    Chain(nodes)           each node starts when the one before it ends
    Fork(branches)         all start together; ends when all have ended
    Join(header, body)     a chord: the header's branches start together, the body when all of them have ended

The rule that everything here serves: no step waits for a step that it does not need. What this tree can't say
exactly (a step that feeds two joins, joins that cross) begins a canvas of its own, which is released from the
database as soon as its `needs` are completed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from orchestrator.core.forest import Unit, grow
from orchestrator.core.plan import Plan

MAX_STEPS_PER_CANVAS: Final = 50
"""Every member of a chord's header carries what comes after it: about 300 bytes by steps by width."""


@dataclass(frozen=True, slots=True)
class Single:
    key: str
    beside: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Fork:
    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Join:
    header: tuple[Node, ...]
    body: Node


Node = Single | Chain | Fork | Join


@dataclass(frozen=True, slots=True)
class Canvas:
    """One tree. Sent at once if `needs` is empty, else when all steps of `needs` are completed."""

    root: Node
    needs: frozenset[str]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(_keys(self.root))

    @property
    def heads(self) -> tuple[str, ...]:
        """The steps that start when the canvas is sent; all of them become ready at the same moment."""
        return tuple(_heads(self.root))


@dataclass(frozen=True, slots=True)
class Flow:
    """Every step of the plan is in exactly one canvas; those that start at once come first."""

    canvases: tuple[Canvas, ...]


def compile_plan(plan: Plan, most_steps: int = MAX_STEPS_PER_CANVAS) -> Flow:
    """The flow with as many steps started by Celery as this compiler finds; equal plans give equal flows."""
    return Flow(tuple(Canvas(_node(unit, frozenset()), unit.at.needs) for unit in grow(plan, most_steps)))


def _node(unit: Unit, waited_for: frozenset[str]) -> Node:
    """The tree of a unit; `waited_for` are the steps that the chord around it counts."""
    kids = unit.done.children
    if unit.key in waited_for:
        onward, aside = [], kids
    elif waited_for:
        onward, aside = [kid for kid in kids if kid.carries], [kid for kid in kids if not kid.carries]
    else:
        onward, aside = kids, []
    after = [_node(kid, waited_for) for kid in onward]
    if unit.key is None:
        return Join(tuple(_node(head, unit.members) for head in unit.header), _together(after))
    step = Single(unit.key, tuple(_node(kid, frozenset()) for kid in aside))
    if not after:
        return step
    rest = _together(after)
    return Chain((step, *rest.nodes) if isinstance(rest, Chain) else (step, rest))


def _together(nodes: list[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else Fork(tuple(nodes))


def _keys(node: Node) -> Iterator[str]:
    match node:
        case Single(key, beside):
            yield key
            inner: tuple[Node, ...] = beside
        case Chain(nodes):
            inner = nodes
        case Fork(branches):
            inner = branches
        case Join(header, body):
            inner = (*header, body)
    for each in inner:
        yield from _keys(each)


def _heads(node: Node) -> Iterator[str]:
    match node:
        case Single(key):
            yield key
        case Chain(nodes):
            yield from _heads(nodes[0])
        case Fork(branches) | Join(branches, _):
            for branch in branches:
                yield from _heads(branch)
