"""The body of a new task: what is accepted, and what is said about what isn't."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import nan
from typing import Any

import pytest
from hypothesis import given, strategies as st

from orchestrator.commands.request import DEEPEST, MAX_DESCRIPTION, check_body, parse
from orchestrator.core.errors import OrchestratorError, Refused

FINE = {"description": "Fix it"}


def refused(body: Any) -> Refused:
    with pytest.raises(Refused) as found:
        parse(body)
    return found.value


def test_a_description_is_enough() -> None:
    assert parse("Fix it") == parse(FINE)
    (step,) = parse(FINE).plan_steps()
    assert (step.key, step.description, step.needs) == ("work", "Fix it", ())


def test_an_account_s_name_is_part_of_an_address_and_a_password_is_refused() -> None:
    for url in ("ssh://git@forge.example/a.git", "git@forge.example:a.git"):
        asked = parse({"description": "x", "repository": {"url": url}})
        assert asked.repository is not None
        assert asked.repository.url == url
    with pytest.raises(Refused) as found:
        parse({"description": "x", "repository": {"url": "https://ci:secret@forge.example/a.git"}})
    assert found.value.code == "repository-forbidden"


def test_words_are_read_as_people_write_them() -> None:
    assert parse({**FINE, "priority": "NORMAL"}).priority == "medium"
    assert parse({**FINE, "execution_mode": "AUTO"}).execution_mode == "auto"
    budget = parse({**FINE, "budget": {"max_duration": "30m", "max_cost_usd": "1.50"}}).budget
    assert (budget.max_duration, budget.max_cost_usd) == (timedelta(minutes=30), Decimal("1.50"))
    assert parse({**FINE, "deadline": "2027-01-31"}).deadline == datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC)
    assert parse({**FINE, "deadline": "2027-01-31T10:00:00"}).deadline == datetime(
        2027, 1, 31, 10, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/description"),
        ({"description": ""}, "/description"),
        ({"description": 7}, "/description"),
        ({"description": "x" * (MAX_DESCRIPTION + 1)}, "/description"),
        ({"description": "bell \x07"}, "/description"),
        ({"description": "turned \u202e round"}, "/description"),
        ({**FINE, "title": "two\nlines"}, "/title"),
        ({**FINE, "priority": "urgent"}, "/priority"),
        ({**FINE, "priority": 1}, "/priority"),
        ({**FINE, "id": "no spaces allowed"}, "/id"),
        ({**FINE, "id": "../etc"}, "/id"),
        ({**FINE, "id": "-x"}, "/id"),
        ({**FINE, "id": "x" * 81}, "/id"),
        ({**FINE, "id": "x\n"}, "/id"),
        ({**FINE, "x_note": ["bell \x07"]}, ""),
        ({**FINE, "steps": [{"id": "a", "description": "A", "spec": {"a": ["\0"]}}]}, "/steps/0/spec"),
        ({**FINE, "steps": [{"id": "a", "description": "A", "spec": {"\x1b": 1}}]}, "/steps/0/spec"),
        ({**FINE, "steps": [{"id": "a", "description": "A", "spec": {"a": "x" * 65_536}}]}, "/steps/0/spec"),
        ({**FINE, "steps": [{"id": "a", "description": "A", "spec": {"a": nan}}]}, "/steps/0/spec"),
        ({**FINE, "repository": {}}, "/repository"),
        ({**FINE, "repository": {"url": "https://x/y", "path": "/y"}}, "/repository"),
        ({**FINE, "budget": {"max_tokens": 0}}, "/budget/max_tokens"),
        ({**FINE, "budget": {"max_duration": "a while"}}, "/budget/max_duration"),
        ({**FINE, "steps": []}, "/steps"),
        ({**FINE, "steps": [{"id": "a", "description": ""}]}, "/steps/0/description"),
        ({**FINE, "labels": {"a": "two\nlines"}}, "/labels/a"),
        ({**FINE, "on_step_failure": "ignore"}, "/on_step_failure"),
    ],
)
def test_each_fault_is_named_by_its_place(body: dict[str, Any], pointer: str) -> None:
    found = refused(body)
    assert found.code == "request-invalid"
    assert pointer in [problem.pointer for problem in found.problems]


def test_all_faults_are_named_at_once() -> None:
    found = refused({"description": "", "priority": "urgent", "budget": {"max_turns": -1}})
    assert {problem.pointer for problem in found.problems} == {
        "/description",
        "/priority",
        "/budget/max_turns",
    }


def test_a_typing_error_is_not_silent_and_a_caller_s_own_field_is() -> None:
    assert "unknown field 'prioritty'" in refused({**FINE, "prioritty": "high"}).message
    parse({**FINE, "x_ticket": 7})
    assert "unknown field 'pish'" in refused({**FINE, "repository": {"path": "/r", "pish": True}}).message


@pytest.mark.parametrize(
    "body",
    [
        {"execution_mode": "dry-run"},
        {"execution_mode": "strict"},
        {"gates": ["tests"]},
        {"depends_on": ["other"]},
        {"parent_id": "other"},
        {"callback_url": "https://example.org/hook"},
        {"project": "web"},
        {"validate_only": True},
    ],
)
def test_what_is_not_built_yet_is_said_to_be_so(body: dict[str, Any]) -> None:
    found = refused({**FINE, **body})
    assert found.code == "mode-unavailable"
    assert found.problems[0].pointer == f"/{next(iter(body))}"


def test_a_priority_that_there_is_not_is_told_the_choice() -> None:
    (problem,) = refused({**FINE, "priority": "{urgent}"}).problems
    assert problem.code == "invalid-priority"
    assert problem.detail == "priority must be one of critical, high, medium, low (got '{urgent}')"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({**FINE, "x_blob": "é" * 600}, "body-too-large"),
        ({**FINE, "x_blob": "é" * 100}, None),
        ("y" * 1001, "body-too-large"),
        ({**FINE, "x_deep": [[[[[[[[]]]]]]]] * 2}, None),
        ({**FINE, "x_odd": {1, 2}}, "request-malformed"),
        ({**FINE, "x_odd": nan}, "request-malformed"),
        ({**FINE, "x_odd": "\ud800"}, "request-malformed"),
        ({**FINE, "deadline": datetime(2030, 1, 1, tzinfo=UTC)}, None),
    ],
)
def test_a_body_that_comes_another_way_meets_the_limits_of_rest(body: Any, code: str | None) -> None:
    if code is None:
        check_body(body, 1000)
        return
    with pytest.raises(Refused) as found:
        check_body(body, 1000)
    assert found.value.code == code


def test_a_body_that_goes_round_or_too_deep_is_malformed() -> None:
    round_and_round: list[Any] = []
    round_and_round.append(round_and_round)
    deep: list[Any] = []
    for _ in range(DEEPEST):
        deep = [deep]
    for body in (round_and_round, deep):
        with pytest.raises(Refused) as found:
            check_body({**FINE, "x_round": body}, 10_000)
        assert found.value.code == "request-malformed"


def test_errors_do_not_show_what_was_sent() -> None:
    found = refused({**FINE, "budget": {"max_tokens": "hunter2"}})
    assert "hunter2" not in str(found)
    assert not [problem for problem in found.problems if "hunter2" in problem.detail]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["description", "steps", "budget", "repository", "agent", "deadline", "labels", "id"]
)


@given(st.dictionaries(fields | st.text(max_size=10), json_values, max_size=5))
def test_whatever_is_sent_is_accepted_or_refused_in_our_own_words(body: dict[str, Any]) -> None:
    try:
        parse(body).plan_steps()
    except OrchestratorError as error:
        said = error
    else:
        return
    assert said.code
    assert said.hint


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"budget": {"max_cost_usd": "abc"}},
            "must be an amount of US dollars above 0: write 2 or 0.50",
        ),
        ({"budget": {"max_cost_usd": -1}}, "must be an amount of US dollars above 0: write 2 or 0.50"),
        ({"budget": {"max_tokens": "many"}}, "must be a number of tokens above 0: write 500000"),
        ({"budget": {"max_duration": "soon"}}, "must be a span of time of at most 30 days: write 30m,"),
        ({"deadline": "tomorrow"}, "must be a date or a time: write 2030-01-31 or"),
        ({"execution_mode": "fast"}, "must be 'auto', 'strict' or 'dry_run'"),
        ({"on_question_timeout": {"after": "2h", "then": "ask"}}, "must be 'wait', 'fail' or 'default'"),
        ({"title": 7}, "must be a text"),
        ({"description": "a" * 100_001}, "must have at most 100000 characters, and has 100001"),
        ({"description": ""}, "must have at least 1 characters, and has 0"),
        ({"agent": {"tool_approval": ["a b"]}}, "must be the name of a class of risk or a tool: write"),
    ],
)
def test_a_fault_is_told_in_a_persons_words_with_an_example(body: dict[str, Any], said: str) -> None:
    error = refused({**FINE, **body})
    assert said in error.message
    assert "nput" not in error.message + error.problems[0].detail
    assert "valid" not in error.message
