from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings, strategies as st

from orchestrator.core.flow import (
    MAX_STEPS_PER_CANVAS,
    Chain,
    Flow,
    Fork,
    Join,
    Node,
    Single,
    compile_plan,
)
from orchestrator.core.plan import Plan, PlanStep, validate
from tests.flows import Joined, Successors, canvas_starts, successors_by_canvas

DAGS = Path(__file__).parent.parent / "data" / "dags"


def plan_of(**needs: str) -> Plan:
    """`plan_of(a="", b="a", c="a b")`: each key and what it needs."""
    return validate(PlanStep(key, "do", tuple(names.split())) for key, names in needs.items())


def keys_of(node: Node) -> Iterator[str]:
    if isinstance(node, Single):
        yield node.key
    for inner in inside(node):
        yield from keys_of(inner)


def inside(node: Node) -> tuple[Node, ...]:
    match node:
        case Single(_, beside):
            return beside
        case Chain(nodes):
            return nodes
        case Fork(branches):
            return branches
        case Join(header, body):
            return (*header, body)


class Simulated:
    """Runs a flow as Celery and the database would, durations in whole seconds; knows nothing of plans."""

    def __init__(self, flow: Flow, seconds: Mapping[str, int]) -> None:
        self.started: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self._seconds = seconds
        waiting = list(flow.canvases)
        while waiting:
            due = [canvas for canvas in waiting if canvas.needs <= self.ended.keys()]
            assert due, "some canvases are never released"
            for canvas in due:
                self.run(canvas.root, max((self.ended[need] for need in canvas.needs), default=0))
                waiting.remove(canvas)

    def run(self, node: Node, now: int) -> int:
        """Starts the node now and says when it ends."""
        match node:
            case Single(key, beside):
                assert key not in self.started, f"{key} starts twice"
                self.started[key] = now
                self.ended[key] = end = now + self._seconds[key]
                for branch in beside:
                    self.run(branch, end)
                return end
            case Chain(nodes):
                for each in nodes:
                    now = self.run(each, now)
                return now
            case Fork(branches):
                return max(self.run(branch, now) for branch in branches)
            case Join(header, body):
                return self.run(body, max(self.run(branch, now) for branch in header))


def assert_exact(plan: Plan, flow: Flow, seconds: Mapping[str, int]) -> None:
    """Every step starts in the very second in which the last step that it needs ends."""
    run = Simulated(flow, seconds)
    earliest = {key: max((run.ended[need] for need in needs), default=0) for key, needs in plan.needs.items()}
    assert run.started == earliest


def assert_successors_agree(plan: Plan, flow: Flow) -> None:
    """What a completion publishes needs that step alone, and what a chord starts needs its members."""
    ancestors = closure(plan)
    found = successors_by_canvas(flow)
    assert found.keys() == set(plan.keys)
    published: Counter[str] = Counter()
    chords: dict[frozenset[str], frozenset[str]] = {}
    for key, successors in found.items():
        published.update(successors.publishes)
        assert all(nearest(plan, ancestors, each) == {key} for each in successors.publishes)
        if successors.joined is not None:
            assert key in successors.joined.members
            chords[successors.joined.members] = successors.joined.starts
    for members, starts in chords.items():
        assert all(found[member].joined == Joined(members, starts) for member in members)
        assert all(nearest(plan, ancestors, each) == members for each in starts)
        published.update(starts)
    heads = {key for canvas in flow.canvases for key in canvas.heads}
    assert set(published) == set(plan.keys) - heads
    assert set(published.values()) <= {1}


def closure(plan: Plan) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}

    def visit(key: str) -> set[str]:
        if key not in found:
            found[key] = set(plan.needs[key]).union(*(visit(need) for need in plan.needs[key]))
        return found[key]

    for key in plan.keys:
        visit(key)
    return found


def nearest(plan: Plan, ancestors: Mapping[str, set[str]], key: str) -> set[str]:
    """The needs that no other need waits for."""
    return {
        need for need in plan.needs[key] if not any(need in ancestors[other] for other in plan.needs[key])
    }


def check(
    plan: Plan, seconds: Mapping[str, int] | None = None, most_steps: int = MAX_STEPS_PER_CANVAS
) -> Flow:
    flow = compile_plan(plan, most_steps)
    assert sorted(key for canvas in flow.canvases for key in keys_of(canvas.root)) == sorted(plan.keys)
    assert all(len(canvas.keys) <= most_steps for canvas in flow.canvases)
    assert_exact(plan, flow, seconds or {key: 3 + len(key) * 7 % 5 for key in plan.keys})
    assert_successors_agree(plan, flow)
    return flow


def only(flow: Flow) -> Node:
    (canvas,) = flow.canvases
    assert canvas.needs == frozenset()
    return canvas.root


def test_a_single_step_is_a_canvas() -> None:
    assert only(check(plan_of(a=""))) == Single("a")


def test_steps_in_a_row_are_a_chain() -> None:
    assert only(check(plan_of(a="", b="a", c="a b"))) == Chain((Single("a"), Single("b"), Single("c")))


def test_steps_that_need_the_same_one_are_a_fork_after_it() -> None:
    assert only(check(plan_of(p="", a="p", b="p"))) == Chain((Single("p"), Fork((Single("a"), Single("b")))))


def test_a_join_is_a_chord() -> None:
    expected = Chain((Single("p"), Join((Single("a"), Single("b")), Single("end"))))
    assert only(check(plan_of(p="", a="p", b="p", end="a b"))) == expected


def test_roots_that_join_start_in_one_canvas() -> None:
    assert only(check(plan_of(a="", b="", end="a b"))) == Join((Single("a"), Single("b")), Single("end"))


def test_steps_with_the_same_needs_are_the_body_of_one_chord() -> None:
    expected = Join((Single("a"), Single("b")), Fork((Single("x"), Single("y"))))
    assert only(check(plan_of(a="", b="", x="a b", y="b a"))) == expected


def test_a_chord_may_be_a_branch_of_another_chords_header() -> None:
    flow = check(plan_of(a="", b="", m="a b", c="", end="m c"))
    inner = Join((Single("a"), Single("b")), Single("m"))
    assert only(flow) == Join((Single("c"), inner), Single("end"))


def test_what_nobody_waits_for_hangs_beside_the_step_that_starts_it() -> None:
    """A fork inside the header would make the chord's body wait for the side branch."""
    flow = check(plan_of(p="", a="p", side="a", more="side", b="p", end="a b"))
    branch = Single("a", beside=(Chain((Single("side"), Single("more"))),))
    assert only(flow) == Chain((Single("p"), Join((branch, Single("b")), Single("end"))))


def test_a_step_that_two_joins_need_is_counted_by_one_and_the_other_is_released() -> None:
    flow = check(plan_of(a="", b="", c="", left="a b", right="b c"))
    assert {canvas.needs for canvas in flow.canvases} == {frozenset(), frozenset("bc")}
    assert canvas_starts(flow) == set("abc") | {"left"}


def test_of_two_joins_that_need_the_same_step_the_one_that_releases_more_becomes_the_chord() -> None:
    flow = check(plan_of(a="", b="", c="", left="a b", r1="b c", r2="b c"))
    assert canvas_starts(flow) == set("abc") | {"r1", "r2"}


def test_joins_that_cross_are_released_rather_than_made_to_wait() -> None:
    flow = check(plan_of(p="", q="", p1="p", p2="p", q1="q", q2="q", x="p1 q1", y="p2 q2"))
    assert len(canvas_starts(flow)) == 7


def test_a_chord_may_send_one_of_its_steps_to_the_database_if_more_are_won_by_it() -> None:
    """Inside another chord's header, Celery would make `x` and `y` wait for `aside`."""
    flow = check(plan_of(a="", b="", c="", m="a b", aside="a b", x="m c", y="m c"))
    assert canvas_starts(flow) == set("abcmxy")
    even = check(plan_of(a="", b="", c="", m="a b", aside="a b", x="m c"))
    assert canvas_starts(even) == set("abcm") | {"aside"}


def test_a_need_that_another_need_implies_costs_nothing() -> None:
    assert check(plan_of(a="", b="a", c="b a", d="c b a")) == check(plan_of(a="", b="a", c="b", d="c"))


def test_a_chain_over_the_limit_goes_on_in_another_canvas() -> None:
    plan = validate(PlanStep(f"s{n}", "do", (f"s{n - 1}",) if n else ()) for n in range(120))
    flow = check(plan)
    assert [len(canvas.keys) for canvas in flow.canvases] == [50, 50, 20]
    assert [canvas.needs for canvas in flow.canvases] == [frozenset(), frozenset({"s49"}), frozenset({"s99"})]


def test_a_join_that_is_wider_than_a_canvas_is_released() -> None:
    roots = [PlanStep(f"r{n}", "do") for n in range(60)]
    flow = check(validate([*roots, PlanStep("end", "do", tuple(step.key for step in roots))]))
    assert len(canvas_starts(flow)) == 60


def test_equal_plans_give_equal_flows() -> None:
    plan = load(DAGS / "mapping.json")[0]
    assert compile_plan(plan) == compile_plan(load(DAGS / "mapping.json")[0])


def test_the_shell_learns_what_celery_publishes() -> None:
    flow = compile_plan(plan_of(p="", a="p", side="a", b="p", end="a b", last="end"))
    found = successors_by_canvas(flow)
    joined = Joined(frozenset("ab"), frozenset({"end"}))
    assert found == {
        "p": Successors(publishes=frozenset("ab")),
        "a": Successors(publishes=frozenset({"side"}), joined=joined),
        "b": Successors(joined=joined),
        "side": Successors(),
        "end": Successors(publishes=frozenset({"last"})),
        "last": Successors(),
    }


@st.composite
def needs(draw: st.DrawFn) -> list[set[int]]:
    """Random DAGs of four kinds: sparse, dense, layered, and grown by forks and joins."""
    size = draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["sparse", "dense", "layers", "grown"]))
    most = {"sparse": 2, "dense": 6}.get(kind, 3)
    found: list[set[int]] = [set()]
    layer, before = 0, 0
    open_ends = {0}
    for number in range(1, size):
        if kind == "layers":
            if draw(st.integers(0, 3)) == 0:
                before, layer = layer, number
            choice = range(before, layer) or range(number)
        elif kind == "grown":
            choice = sorted(open_ends)  # type: ignore[assignment]
        else:
            choice = range(number)
        got = draw(st.sets(st.sampled_from(choice), min_size=kind == "grown", max_size=most))
        if draw(st.booleans()):
            open_ends -= got
        open_ends.add(number)
        found.append(set(got))
    return found


@settings(max_examples=250, deadline=None)
@given(needs(), st.sampled_from([1, 2, 3, 5, 8, 50]), st.data())
def test_every_step_starts_exactly_when_its_last_need_completes(
    found: list[set[int]], most_steps: int, data: st.DataObject
) -> None:
    plan = validate(PlanStep(f"s{n}", "do", tuple(f"s{m}" for m in sorted(of))) for n, of in enumerate(found))
    seconds = {key: data.draw(st.integers(0, 99)) for key in plan.keys}
    flow = check(plan, seconds, most_steps)
    event(f"started by canvases: {len(canvas_starts(flow)) * 10 // len(plan.keys) * 10} %")


def load(path: Path) -> tuple[Plan, dict[str, int]]:
    steps: list[dict[str, Any]] = json.loads(path.read_text())["steps"]
    plan = validate(PlanStep(step["id"], "do", tuple(step["needs"])) for step in steps)
    return plan, {step["id"]: round(step["seconds"] * 1000) for step in steps}


def dags() -> list[Path]:
    more = os.environ.get("ORCHESTRATOR_TEST_DATA")
    return sorted([*DAGS.glob("*.json"), *(Path(more, "dags").glob("*.json") if more else ())])


@pytest.mark.parametrize("path", dags(), ids=lambda path: path.stem)
def test_of_a_real_shape_at_least_four_of_five_steps_are_started_by_celery(path: Path) -> None:
    plan, seconds = load(path)
    flow = check(plan, seconds)
    assert len(canvas_starts(flow)) >= 0.8 * len(plan.keys)
