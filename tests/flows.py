"""What Celery does with a flow, step by step: which completion makes it publish what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.core.flow import Canvas, Chain, Flow, Fork, Join, Node, Single


@dataclass(frozen=True, slots=True)
class Joined:
    """A chord: when the last of `members` is completed Celery publishes `starts`."""

    members: frozenset[str]
    starts: frozenset[str]


@dataclass(frozen=True, slots=True)
class Successors:
    """What Celery publishes when a step completes: `publishes` at once, `joined` with the last member."""

    publishes: frozenset[str] = frozenset()
    joined: Joined | None = None


def successors_by_canvas(flow: Flow) -> dict[str, Successors]:
    """For each step what its completion makes Celery publish; whatever else gets ready is ours to send."""
    return dict(pair for canvas in flow.canvases for pair in _follow(canvas.root, frozenset(), None))


def canvas_starts(flow: Flow) -> frozenset[str]:
    """The steps that Celery starts: all but the heads of canvases that the database releases."""
    return frozenset(key for canvas in flow.canvases for key in canvas.keys) - {
        key for canvas in flow.canvases if canvas.needs for key in canvas.heads
    }


def _heads(node: Node) -> tuple[str, ...]:
    return Canvas(node, frozenset()).heads


def _ends(node: Node) -> Iterator[str]:
    match node:
        case Single(key):
            yield key
        case Chain(nodes):
            yield from _ends(nodes[-1])
        case Fork(branches):
            for branch in branches:
                yield from _ends(branch)
        case Join(_, body):
            yield from _ends(body)


def _follow(node: Node, after: frozenset[str], joined: Joined | None) -> Iterator[tuple[str, Successors]]:
    """`after`: what Celery publishes when this node ends; `joined`: the chord that counts its ends."""
    match node:
        case Single(key, beside):
            yield key, Successors(after.union(*map(_heads, beside)), joined)
            for branch in beside:
                yield from _follow(branch, frozenset(), None)
        case Chain(nodes):
            for each, following in pairwise(nodes):
                yield from _follow(each, frozenset(_heads(following)), None)
            yield from _follow(nodes[-1], after, joined)
        case Fork(branches):
            for branch in branches:
                yield from _follow(branch, after, joined)
        case Join(header, body):
            chord = Joined(
                frozenset(key for branch in header for key in _ends(branch)), frozenset(_heads(body))
            )
            for branch in header:
                yield from _follow(branch, frozenset(), chord)
            yield from _follow(body, after, joined)
