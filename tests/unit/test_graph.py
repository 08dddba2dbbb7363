"""Graphs of needs, compared with what networkx says of the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import networkx as nx
from hypothesis import given, strategies as st

from orchestrator.core import graph

Needs = dict[str, tuple[str, ...]]


@st.composite
def any_graphs(draw: st.DrawFn) -> Needs:
    keys = [f"n{number}" for number in range(draw(st.integers(1, 9)))]
    wanted = st.lists(st.sampled_from(keys), max_size=4, unique=True)
    return {key: tuple(need for need in draw(wanted) if need != key) for key in keys}


@st.composite
def acyclic(draw: st.DrawFn) -> Needs:
    """Told in another order than they can be done in."""
    found: Needs = {}
    for number in range(draw(st.integers(1, 12))):
        earlier = st.lists(st.sampled_from(sorted(found)), max_size=5, unique=True) if found else st.just([])
        found[f"n{number}"] = tuple(draw(earlier))
    return {key: found[key] for key in draw(st.permutations(list(found)))}


def as_networkx(needs: Mapping[str, tuple[str, ...]]) -> nx.DiGraph[str]:
    """An edge leads from what is needed to what needs it."""
    found: nx.DiGraph[str] = nx.DiGraph()
    found.add_nodes_from(needs)
    found.add_edges_from((need, key) for key, wanted in needs.items() for need in wanted)
    return found


@given(acyclic())
def test_generations_are_those_of_networkx(needs: Needs) -> None:
    theirs = [set(group) for group in nx.topological_generations(as_networkx(needs))]
    assert [set(group) for group in graph.generations(needs)] == theirs


@given(acyclic())
def test_needs_that_others_imply_are_left_out_as_by_networkx_and_the_order_stays(needs: Needs) -> None:
    theirs = nx.transitive_reduction(as_networkx(needs))
    assert graph.reduced(needs) == {key: frozenset(theirs.pred[key]) for key in needs}
    assert list(graph.reduced(needs)) == list(needs)


@given(any_graphs())
def test_knots_are_networkx_s_components_and_each_has_a_circle(needs: Needs) -> None:
    theirs = {frozenset(one) for one in nx.strongly_connected_components(as_networkx(needs)) if len(one) > 1}
    knots = list(graph.knots(needs))
    assert {frozenset(knot) for knot in knots} == theirs
    assert len(knots) == len(theirs)
    for knot in knots:
        circle = graph.circle(needs, knot)
        assert len(set(circle)) == len(circle) > 1
        assert set(circle) <= set(knot)
        assert all(after in needs[before] for before, after in pairwise([*circle, circle[0]]))
