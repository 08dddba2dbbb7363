"""What a plan's graph is asked: its generations, its needs without those that others imply, its circles.

A graph is told by what each node needs; all that is needed are nodes of it, a few hundred at most. networkx
could answer as well, but brings three hundred modules and 11 MB into each process that can submit a plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

Needs = Mapping[str, Collection[str]]


def generations(needs: Needs) -> Iterator[tuple[str, ...]]:
    """Each one's nodes need nodes of earlier ones alone, one of the generation before included. Raises
    graphlib.CycleError."""
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    while sorter.is_active():
        ready = sorter.get_ready()
        yield ready
        sorter.done(*ready)


def reduced(needs: Needs) -> dict[str, frozenset[str]]:
    """What each node needs, but for what another of its needs needs already, however far back. Raises
    graphlib.CycleError."""
    bit = {key: 1 << place for place, key in enumerate(needs)}
    before: dict[str, int] = {}
    found: dict[str, frozenset[str]] = {}
    for generation in generations(needs):
        for key in generation:
            implied = direct = 0
            for need in needs[key]:
                implied |= before[need]
                direct |= bit[need]
            found[key] = frozenset(need for need in needs[key] if not implied & bit[need])
            before[key] = implied | direct
    return {key: found[key] for key in needs}


def knots(needs: Needs) -> Iterator[list[str]]:
    """Groups of two or more nodes that all need each other in the end, by their first members."""
    try:
        TopologicalSorter(needs).prepare()
    except CycleError:
        yield from _knots(needs)


def _knots(needs: Needs) -> Iterator[list[str]]:
    bit = {key: 1 << place for place, key in enumerate(needs)}
    leads_to = {key: sum(bit[need] for need in set(wanted)) for key, wanted in needs.items()}
    for way, its_bit in bit.items():
        for key, found in leads_to.items():
            if found & its_bit:
                leads_to[key] = found | leads_to[way]
    told: set[str] = set()
    for key in needs:
        knot = [other for other in needs if leads_to[key] & bit[other] and leads_to[other] & bit[key]]
        if len(knot) > 1 and key not in told:
            told.update(knot)
            yield knot


def circle(needs: Needs, knot: Collection[str]) -> list[str]:
    """One within a knot: each needs the next, the last the first, and none is there twice."""
    within = set(knot)
    path = {next(iter(knot)): None}
    while True:
        last = next(reversed(path))
        further = next(need for need in needs[last] if need in within and need != last)
        if further in path:
            keys = list(path)
            return keys[keys.index(further) :]
        path[further] = None
