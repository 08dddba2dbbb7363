"""Which step is started by which: the search for chords that lose no exactness, behind `core.flow`.

The forest is made of events (a canvas is sent, a step completes, a chord's header has ended) and of units
that start at an event: a step, or a chord with the units of its header. Needed steps become a chord if

- none of them is counted by another chord already (a Celery task has one chord at most);
- they can be reached from one common event by ways that no other chord's header encloses, since Celery starts
  a header at one moment and counts each of its branches where that branch ends;
- what must travel together in one canvas stays within the limit.

All other joins begin canvases of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

from orchestrator.core.plan import Plan, graph


@dataclass(eq=False, slots=True)
class Event:
    """`needs`: the steps completed by then; `of`: whose end it is, None when a canvas is sent."""

    needs: frozenset[str]
    of: Unit | None = None
    children: list[Unit] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Unit:
    """A step (`key`), or a chord over `members` whose header starts at the same event as the unit."""

    at: Event
    done: Event
    key: str | None = None
    members: frozenset[str] = frozenset()
    header: tuple[Unit, ...] = ()
    in_header: bool = False
    carries: bool = False
    """Whether a chord around it counts this step, or one that it leads to."""
    weight: int = 1
    """How many steps can't be cut off it: itself, or all the ways through the header."""


def grow(plan: Plan, most_steps: int) -> tuple[Unit, ...]:
    """The roots of all canvases, none of over `most_steps` steps; those that start at once come first."""
    reduced = nx.transitive_reduction(graph(plan))
    needs = {key: frozenset(reduced.pred[key]) for key in plan.keys}
    generations = [set(group) for group in nx.topological_generations(reduced)]
    return _split(_Forest(needs, generations, most_steps).grown(), most_steps)


class _Forest:
    def __init__(
        self, needs: Mapping[str, frozenset[str]], generations: Sequence[set[str]], most_steps: int
    ) -> None:
        self._needs = needs
        self._most_steps = most_steps
        self._units: dict[str, Unit] = {}
        self._starts = [Event(frozenset())]
        self._joins = self._in_order(generations)
        self._claims = self._claimed()

    def grown(self) -> list[Unit]:
        """The units that no event of another unit starts, before any is split."""
        for group in self._joins:
            for members, keys in group.items():
                at = self._released(members, keys)
                for key in keys:
                    self._units[key] = unit = _unit(at, frozenset({key}), key=key)
                    at.children.append(unit)
        return [unit for start in self._starts for unit in start.children]

    def _in_order(self, generations: Sequence[set[str]]) -> list[dict[frozenset[str], list[str]]]:
        """Per generation the sets of needs and the steps that have them, in the plan's order."""
        groups: list[dict[frozenset[str], list[str]]] = []
        for generation in generations:
            group: dict[frozenset[str], list[str]] = {}
            for key in (key for key in self._needs if key in generation):
                group.setdefault(self._needs[key], []).append(key)
            groups.append(group)
        return groups

    def _claimed(self) -> dict[str, frozenset[str]]:
        """Which join shall count a step that several need: the one that releases the most steps."""
        joins = [
            (members, keys) for group in self._joins for members, keys in group.items() if len(members) > 1
        ]
        joins.sort(key=lambda join: (-len(join[1]), len(join[0])))
        claims: dict[str, frozenset[str]] = {}
        for members, _ in joins:
            if claims.keys().isdisjoint(members):
                claims.update(dict.fromkeys(members, members))
        return claims

    def _released(self, members: frozenset[str], keys: Sequence[str]) -> Event:
        """The event that starts the steps that need exactly `members`."""
        if not members:
            return self._starts[0]
        if len(members) == 1:
            return self._units[next(iter(members))].done
        chord = self._chord(members, len(keys))
        if chord is not None:
            return chord.done
        self._claims = {key: claim for key, claim in self._claims.items() if claim != members}
        self._starts.append(Event(members))
        return self._starts[-1]

    def _chord(self, members: frozenset[str], gain: int) -> Unit | None:
        if any(self._claims.get(key, members) != members for key in members):
            return None
        found = _common(self._units[key] for key in members)
        if found is None:
            return None
        at, ways = found
        tops = [unit for unit in at.children if unit in ways]
        weight = sum(unit.weight for unit in ways)
        cut_off = [kid for unit in ways if unit.key is None for kid in unit.done.children if kid not in ways]
        if any(unit.carries for unit in tops) or not _fits(at, tops, weight + 1, self._most_steps):
            return None
        if sum(_heads(kid) for kid in cut_off) >= gain:
            return None
        for kid in cut_off:
            self._starts.append(_cut(kid))
        return _joined(at, tops, ways, members, weight)


def _unit(at: Event, completed: frozenset[str], key: str | None = None) -> Unit:
    unit = Unit(at=at, done=Event(completed), key=key)
    unit.done.of = unit
    return unit


def _joined(
    at: Event, tops: Sequence[Unit], ways: Iterable[Unit], members: frozenset[str], weight: int
) -> Unit:
    chord = _unit(at, members)
    chord.members, chord.header, chord.weight = members, tuple(tops), weight
    for unit in ways:
        unit.carries = True
    for top in tops:
        top.in_header = True
        at.children.remove(top)
    at.children.append(chord)
    return chord


def _common(members: Iterable[Unit]) -> tuple[Event, list[Unit]] | None:
    """The nearest event that leads to all members, and the units on the ways from it; None: no such event."""
    lines = [list(_line(unit)) for unit in members]
    shared = set.intersection(*({unit.at for unit in line} for line in lines))
    at = next((unit.at for unit in lines[0] if unit.at in shared), None)
    if at is None:
        return None
    ways: dict[Unit, None] = {}
    for line in lines:
        for unit in line:
            ways[unit] = None
            if unit.at is at:
                break
    return at, list(ways)


def _line(unit: Unit) -> Iterator[Unit]:
    """A unit and those that lead to it, up to the header that encloses them."""
    while not unit.in_header:
        yield unit
        if unit.at.of is None:
            return
        unit = unit.at.of


def _fits(at: Event, used: Sequence[Unit], weight: int, most_steps: int) -> bool:
    """Whether a chord of this weight over `used`, and each chord that starts no more, stay in the limit."""
    while weight <= most_steps and at.of is not None and at.of.key is None:
        least = min([weight, *(_least(kid) for kid in at.children if kid not in used)])
        used, weight, at = (at.of,), at.of.weight + least, at.of.at
    return weight <= most_steps


def _least(unit: Unit) -> int:
    """The fewest steps that a canvas with this unit has; a chord has a body."""
    if unit.key is not None:
        return 1
    return unit.weight + min((_least(kid) for kid in unit.done.children), default=1)


def _heads(unit: Unit) -> int:
    return 1 if unit.key is not None else sum(_heads(head) for head in unit.header)


def _cut(unit: Unit) -> Event:
    """Makes the unit the beginning of a canvas, released by what it needs."""
    unit.at.children.remove(unit)
    unit.at = Event(unit.at.needs, children=[unit])
    return unit.at


def _split(roots: Iterable[Unit], most_steps: int) -> tuple[Unit, ...]:
    """All canvases: what doesn't fit into one any more begins another."""
    canvases: list[Unit] = []
    waiting = list(roots)
    while waiting:
        canvases.extend(waiting)
        waiting = [late for root in waiting for late in _trimmed(root, most_steps)]
    return tuple(canvases)


def _trimmed(root: Unit, most_steps: int) -> list[Unit]:
    """Cuts off what is too much, and returns it; follows each branch to its end before it takes the next."""
    left = most_steps - _least(root)
    late: list[Unit] = []
    paid: set[Unit] = set()
    open_units = [root]
    while open_units:
        unit = open_units.pop()
        kids = unit.done.children
        if unit not in paid and unit is not root and not unit.carries:
            if _least(unit) > left:
                _cut(unit)
                late.append(unit)
                continue
            left -= _least(unit)
        if unit.key is None and not any(kid.carries for kid in kids):
            paid.add(min(kids, key=_least))
        fixed = [kid for kid in kids if kid in paid or kid.carries]
        open_units.extend(kid for kid in reversed(kids) if kid not in fixed)
        open_units.extend(fixed)
        open_units.extend(unit.header)
    return late
