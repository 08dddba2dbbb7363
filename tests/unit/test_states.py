"""The table of events, and the function from steps to task."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given, strategies as st

from orchestrator.core import states
from orchestrator.core.states import (
    LIVE,
    PHASES,
    RULES,
    TERMINAL,
    TERMINAL_PHASES,
    WAITS_FOR_MACHINE,
    WAITS_FOR_PERSON,
    WAITS_QUEUED,
    Event,
    Phase,
    Status,
    StepView,
    WaitingOn,
    task_status,
)

step_views = st.builds(StepView, status=st.sampled_from(Status), claimed=st.booleans(), ready=st.booleans())


def test_every_event_has_a_rule() -> None:
    assert set(RULES) == set(Event)


def test_nothing_leads_out_of_an_end() -> None:
    assert not [event for event, rule in RULES.items() if rule.sources & TERMINAL]


def test_every_live_status_can_be_left_and_every_status_reached() -> None:
    assert {source for rule in RULES.values() for source in rule.sources} == LIVE
    assert {rule.to for rule in RULES.values()} | {Status.QUEUED} == set(Status)


def test_from_every_live_status_a_cancel_and_a_failure_lead_to_an_end() -> None:
    assert RULES[Event.CANCEL].sources == RULES[Event.FAIL].sources == LIVE


def test_what_is_waited_for_belongs_to_one_status() -> None:
    parts = (WAITS_FOR_PERSON, WAITS_FOR_MACHINE, WAITS_QUEUED)
    assert frozenset().union(*parts) == set(WaitingOn)
    assert sum(map(len, parts)) == len(WaitingOn)


def test_only_the_worker_that_holds_the_lease_ends_a_step_well() -> None:
    assert RULES[Event.SUCCEED].sources == {Status.RUNNING}
    assert RULES[Event.SUCCEED].leased is True


def test_a_workflow_ends_from_every_phase_and_from_no_end() -> None:
    for phase, to in PHASES.items():
        if phase in TERMINAL_PHASES:
            assert not to
        else:
            assert Phase.FAILED in to
    assert Phase.CANCELLED in PHASES[Phase.VALIDATION_RUNNING]


def test_a_task_without_steps_is_queued() -> None:
    assert task_status([]) is Status.QUEUED


@given(st.lists(step_views, min_size=1, max_size=8), st.booleans())
def test_a_task_ends_exactly_when_all_its_steps_have(steps: list[StepView], going_on: bool) -> None:
    ended = all(step.status in TERMINAL for step in steps)
    assert (task_status(steps, on_failure_continue=going_on) in TERMINAL) is ended


@given(st.lists(step_views, min_size=1, max_size=8), st.booleans(), st.randoms())
def test_the_order_of_steps_means_nothing(steps: list[StepView], going_on: bool, random: object) -> None:
    shuffled = list(steps)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    before = task_status(steps, on_failure_continue=going_on)
    assert task_status(shuffled, on_failure_continue=going_on) is before


@given(st.lists(step_views, min_size=1, max_size=8))
def test_a_task_waits_for_a_person_only_if_nothing_else_can_move(steps: list[StepView]) -> None:
    moving = [
        step
        for step in steps
        if step.status is Status.RUNNING or (step.status is Status.QUEUED and step.ready)
    ]
    asks = any(step.status is Status.PENDING_INPUT for step in steps)
    assert (task_status(steps) is Status.PENDING_INPUT) == (asks and not moving)


@given(st.lists(step_views, min_size=1, max_size=8), st.booleans())
def test_a_failed_step_fails_its_task_unless_that_goes_on_with_something(
    steps: list[StepView], going_on: bool
) -> None:
    ended = [StepView(step.status, True, True) for step in steps if step.status in TERMINAL]
    statuses = {step.status for step in ended}
    if Status.FAILED in statuses:
        wanted = Status.COMPLETED if going_on and Status.COMPLETED in statuses else Status.FAILED
        assert task_status(ended, on_failure_continue=going_on) is wanted


WAYS_ON = {
    WaitingOn.QUESTION: "an answer, or its time",
    WaitingOn.TOOL_APPROVAL: "an answer, or its time",
    WaitingOn.BUDGET: "an answer, or its time",
    WaitingOn.SUBTASK: "the end of the last of its subtasks, or the sweep",
    WaitingOn.RATE_LIMIT: "the sweep, when the time has come",
    WaitingOn.CIRCUIT_BREAKER: "the sweep, when the time has come",
    WaitingOn.PAUSED: "a resume",
    WaitingOn.ESCALATION: "a resume",
    WaitingOn.SLOT: "the end of another workflow's step, or the sweep",
    WaitingOn.AGENT: "a new worker, or the sweep after a while",
    WaitingOn.RETRY_BACKOFF: "the sweep, when the time has come",
}
"""Each is shown by a test on real rows; a cancel and a deadline end them all."""


def test_whatever_the_code_sets_a_step_to_wait_for_has_a_way_on() -> None:
    said = "".join(
        path.read_text()
        for folder in ("db", "commands", "tasks", "engine", "agents")
        for path in (Path(states.__file__).parents[1] / folder).glob("*.py")
    )
    set_by_python = {WaitingOn[name] for name in re.findall(r"WaitingOn\.([A-Z_]+)\b", said)}
    set_by_sql = {WaitingOn(value) for value in re.findall(r"waiting_on = (?:CASE .*THEN )?'(\w+)'", said)}
    assert set_by_python | set_by_sql == WAYS_ON.keys()
