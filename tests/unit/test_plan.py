from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from orchestrator.core.errors import Refused
from orchestrator.core.plan import (
    MAX_STEPS,
    Plan,
    PlanStep,
    critical_path,
    estimate,
    parallel_groups,
    validate,
)


def steps(**needs: str) -> list[PlanStep]:
    """`steps(a="", b="a", c="a b")`: each key and what it needs."""
    return [PlanStep(key, f"do {key}", tuple(names.split())) for key, names in needs.items()]


def refusal(given_steps: list[PlanStep]) -> Refused:
    with pytest.raises(Refused) as caught:
        validate(given_steps)
    return caught.value


def pointed(error: Refused) -> list[tuple[str, str]]:
    return [(problem.pointer, problem.code) for problem in error.problems]


def test_a_valid_plan_keeps_its_steps_in_their_order() -> None:
    plan = validate(steps(b="", a="b", c="b a"))
    assert plan.keys == ("b", "a", "c")
    assert plan.needs == {"b": frozenset(), "a": frozenset({"b"}), "c": frozenset({"a", "b"})}


def test_a_plan_without_steps_is_refused() -> None:
    assert refusal([]).code == "plan-empty"


def test_a_plan_of_the_limit_is_accepted_and_one_more_step_refused() -> None:
    many = [PlanStep(f"s{number}", "do") for number in range(MAX_STEPS + 1)]
    assert len(validate(many[:-1]).steps) == MAX_STEPS
    error = refusal(many)
    assert error.code == "plan-too-large"
    assert str(MAX_STEPS) in error.message


def test_an_unknown_need_is_pointed_at() -> None:
    error = refusal(steps(a="", b="", c="a nope"))
    assert error.code == "plan-invalid"
    assert pointed(error) == [("/steps/2/needs/1", "unknown-need")]
    assert "'nope'" in error.message


def test_a_step_that_needs_itself_is_pointed_at() -> None:
    assert pointed(refusal(steps(a="a"))) == [("/steps/0/needs/0", "self-need")]


def test_a_need_that_is_named_twice_is_pointed_at_once() -> None:
    assert pointed(refusal(steps(a="", b="a a a"))) == [("/steps/1/needs/1", "duplicate-need")]


def test_a_second_step_of_the_same_id_is_pointed_at() -> None:
    assert pointed(refusal([*steps(a="", b=""), *steps(a="")])) == [("/steps/2/id", "duplicate-id")]


@pytest.mark.parametrize("key", ["", " a", "-a", "a b", "a/b", "ä", "a\n", "x" * 81])
def test_an_id_of_other_characters_or_too_long_is_refused(key: str) -> None:
    assert pointed(refusal([PlanStep(key, "do")])) == [("/steps/0/id", "invalid-id")]


@pytest.mark.parametrize("key", ["1", "a", "A.b_c:d-e", "x" * 80])
def test_an_id_of_the_documented_characters_is_accepted(key: str) -> None:
    assert validate([PlanStep(key, "do")]).keys == (key,)


def test_all_faults_are_told_at_once() -> None:
    error = refusal([*steps(a="b a"), PlanStep("a!", "do")])
    assert pointed(error) == [
        ("/steps/1/id", "invalid-id"),
        ("/steps/0/needs/0", "unknown-need"),
        ("/steps/0/needs/1", "self-need"),
    ]


def test_a_circle_is_named_and_pointed_at() -> None:
    error = refusal(steps(start="", a="start b", b="a"))
    assert error.code == "plan-cycle"
    assert "a -> b -> a" in error.message
    assert pointed(error) == [("/steps/1/needs/1", "cycle")]


def test_each_of_two_circles_is_named() -> None:
    error = refusal(steps(a="b", b="c", c="a", x="y", y="x a"))
    assert [problem.detail for problem in error.problems] == ["a -> b -> c -> a", "x -> y -> x"]


def minutes(plan: dict[str, tuple[int | None, str]]) -> Plan:
    return validate(
        PlanStep(key, "do", tuple(needs.split()), estimate=None if time is None else timedelta(minutes=time))
        for key, (time, needs) in plan.items()
    )


def test_the_critical_path_follows_the_longest_estimates() -> None:
    plan = minutes({"d": (1, "b c"), "a": (1, ""), "b": (9, "a"), "c": (2, "a"), "late": (3, "a")})
    assert critical_path(plan) == ("a", "b", "d")
    assert estimate(plan).sequential == timedelta(minutes=16)
    assert estimate(plan).parallel == timedelta(minutes=11)


def test_without_estimates_the_critical_path_has_the_most_steps() -> None:
    plan = minutes({"a": (None, ""), "b": (None, "a"), "c": (None, "b"), "d": (None, "a")})
    assert critical_path(plan) == ("a", "b", "c")
    assert estimate(plan).parallel == timedelta(0)


def test_parallel_groups_are_the_generations_in_the_plans_order() -> None:
    plan = validate(steps(z="", a="", m="z", b="a z", last="m b"))
    assert parallel_groups(plan) == (("z", "a"), ("m", "b"), ("last",))


@given(st.lists(st.lists(st.integers(0, 11), max_size=4, unique=True), min_size=1, max_size=12))
def test_a_plan_is_accepted_exactly_if_its_steps_can_be_put_in_an_order(needs: list[list[int]]) -> None:
    known = range(len(needs))
    given_steps = [
        PlanStep(f"s{number}", "do", tuple(f"s{need}" for need in found if need in known and need != number))
        for number, found in enumerate(needs)
    ]
    done: set[str] = set()
    while ready := [step for step in given_steps if step.key not in done and done.issuperset(step.needs)]:
        done |= {step.key for step in ready}
    if len(done) == len(given_steps):
        plan = validate(given_steps)
        place = {key: number for number, group in enumerate(parallel_groups(plan)) for key in group}
        assert all(place[need] < place[step.key] for step in plan.steps for need in step.needs)
    else:
        for problem in refusal(given_steps).problems:
            circle = problem.detail.split(" -> ")
            by_key = {step.key: step for step in given_steps}
            assert circle[0] == circle[-1]
            assert all(after in by_key[before].needs for before, after in pairwise(circle))
