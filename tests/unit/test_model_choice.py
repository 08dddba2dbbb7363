from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from pydantic import ValidationError

from orchestrator.config import Settings
from orchestrator.core.model_choice import (
    Choice,
    ModelOptions,
    ModelPrice,
    ModelSelection,
    TaskType,
    another_may_answer,
    api_of,
    phase,
    select,
)
from orchestrator.core.recovery import ErrorClass
from orchestrator.engine.ports import Usage
from orchestrator.engine.prices import Price, cost, price, with_entered
from orchestrator.engine.providers.waiting import retry_after

SELECTION = ModelSelection("main", ("spare", "main", "last"), {TaskType.PLANNING: "planner"}, "because")


def test_the_choices_of_a_phase_are_its_own_model_the_primary_and_the_fallbacks() -> None:
    assert list(SELECTION.choices(TaskType.PLANNING)) == [
        Choice("planner", "the model for planning"),
        Choice("main", "because"),
        Choice("spare", "a fallback"),
        Choice("last", "a fallback"),
    ]
    assert [choice.model for choice in SELECTION.choices(TaskType.TESTING)] == ["main", "spare", "last"]
    assert SELECTION.models == ("main", "planner", "spare", "last")


def test_whoever_names_a_model_gets_it_in_every_phase() -> None:
    found = select("named", "default", ["spare"], {TaskType.TESTING: "tester"}, {"code": "coder"}, ["code"])
    assert [choice.model for choice in found.choices(TaskType.TESTING)] == ["named", "spare"]
    assert found.reasoning == "the task names it"


@pytest.mark.parametrize(
    ("requirements", "model", "reasoning"),
    [
        (["Creative writing, and some CODE"], "coder", "the task requires 'code'"),
        (["be creative"], "poet", "the task requires 'creative'"),
        (["decode it"], "default", "the default model"),
        ([], "default", "the default model"),
    ],
)
def test_the_first_rule_whose_word_is_required_counts(
    requirements: list[str], model: str, reasoning: str
) -> None:
    rules = {"code": "coder", "creative": "poet"}
    found = select(None, "default", rules=rules, requirements=requirements)
    assert (found.primary, found.reasoning) == (model, reasoning)


@pytest.mark.parametrize(
    ("latest_first", "expected"),
    [
        ([], TaskType.PLANNING),
        ([["read_file"], ["list_files"]], TaskType.PLANNING),
        ([["read_file"], ["edit_file"]], TaskType.IMPLEMENTATION),
        ([["run_command"], ["edit_file"]], TaskType.TESTING),
        ([["write_file", "run_command"]], TaskType.IMPLEMENTATION),
        ([["attempt_completion"], ["run_command"]], TaskType.REVIEW),
    ],
)
def test_the_phase_is_what_was_done_last(latest_first: list[list[str]], expected: TaskType) -> None:
    assert phase(latest_first) is expected
    assert phase(latest_first, reviews=True) is TaskType.CODE_REVIEW


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (ErrorClass.OVERLOADED, "circuit-open", True),
        (ErrorClass.RATE_LIMIT, "model-rate-limited", True),
        (ErrorClass.AUTH, "model-unauthorized", True),
        (ErrorClass.VALIDATION, "model-unknown", True),
        (ErrorClass.VALIDATION, "model-request-refused", False),
        (ErrorClass.CONTEXT_TOO_LONG, "context-too-long", False),
        (ErrorClass.CONTENT_REFUSED, "model-refused", False),
        (ErrorClass.LIMIT, "budget-exhausted", False),
        (ErrorClass.NETWORK, "run-token-invalid", False),
        (ErrorClass.NETWORK, "gateway-unready", False),
    ],
)
def test_a_fallback_is_asked_only_where_it_may_help(error: ErrorClass, code: str, expected: bool) -> None:
    assert another_may_answer(error, code) is expected


@pytest.mark.parametrize(
    ("model", "api"),
    [
        ("claude-sonnet-5-5", "messages"),
        ("gpt-5.2", "responses"),
        ("o3", "responses"),
        ("qwen3-coder", "chat"),
        ("anthropic/claude-sonnet-5-5", "chat"),
    ],
)
def test_the_api_follows_from_the_name_unless_it_is_said(model: str, api: str) -> None:
    assert api_of(model, ModelOptions()) == api
    assert api_of(model, ModelOptions(api="responses")) == "responses"


# ---- prices


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("claude-sonnet-5-5", True),
        ("claude-sonnet-4-20250514", True),
        ("gpt-4.1-2025-04-14", True),
        ("gpt-5-pro", False),
        ("gpt-5.6-sol", False),
        ("claude-sonnet-4-9", False),
        ("o3-pro", False),
        ("", False),
    ],
)
def test_a_price_is_of_exactly_that_model_or_of_its_dated_version(model: str, known: bool) -> None:
    assert (price(model) is not None) is known


def test_each_kind_of_token_has_its_price() -> None:
    usage = Usage(1_000_000, 100_000, 2_000_000, 400_000)
    assert cost("claude-sonnet-4-5", usage) == Decimal("6.6")  # 3 + 1.5 + 0.6 + 1.5
    assert cost("gpt-4.1", usage) == Decimal("4.6")  # 2 + 0.8 + 1 + 0.8
    assert cost("nobody-knows", usage) is None


def test_what_is_cached_for_an_hour_costs_twice_the_input_unless_it_is_said() -> None:
    usage = Usage(cache_write_tokens=400_000, cache_write_hour_tokens=300_000)
    assert cost("claude-sonnet-4-5", usage) == Decimal("2.175")  # 0.1 * 3.75 + 0.3 * 6
    said = with_entered({"mine": ModelPrice(Decimal(2), Decimal(4), None, Decimal(3), Decimal(10))})
    assert cost("mine", usage, said) == Decimal("3.3")
    some = with_entered({"mine": ModelPrice(Decimal(2), Decimal(4), None, Decimal(3))})
    assert cost("mine", usage, some) == Decimal("1.74")


def test_a_long_request_has_the_price_of_a_long_one_as_a_whole() -> None:
    assert cost("claude-haiku-5-5", Usage(100_000, 100_000)) == Decimal("0.06")
    assert cost("claude-haiku-5-5", Usage(50_000, 100_000, 50_001)) == Decimal("0.27750005")


def test_an_entered_price_wins_and_caching_saves_nothing_unless_it_is_said() -> None:
    prices = with_entered(
        {
            "mine": ModelPrice(Decimal(2), Decimal(4)),
            "gpt-5": ModelPrice(Decimal(1), Decimal(1), Decimal("0.5")),
        }
    )
    assert prices["mine"] == Price(Decimal(2), Decimal(4), Decimal(2), Decimal(2))
    assert cost("mine", Usage(1_000_000, 0, 1_000_000), prices) == Decimal(4)
    assert cost("gpt-5", Usage(0, 0, 1_000_000), prices) == Decimal("0.5")
    assert "gpt-4.1" in prices


# ---- settings


def test_models_are_set_as_json_or_as_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_FALLBACK_MODELS", "gpt-5, claude-haiku-4-5")
    monkeypatch.setenv("ORCHESTRATOR_TASK_MODELS", '{"planning": "claude-opus-5-5"}')
    monkeypatch.setenv("ORCHESTRATOR_MODEL_RULES", '{"creative": "gpt-5"}')
    monkeypatch.setenv("ORCHESTRATOR_MODEL_OPTIONS", '{"qwen3": {"api": "chat", "native_tools": false}}')
    monkeypatch.setenv("ORCHESTRATOR_PRICES", '{"qwen3": {"input": "0.2", "output": "0.6"}}')
    monkeypatch.setenv("ORCHESTRATOR_TASK_ID_HEADERS", '["X-Task-Id", "X-KILOCODE-TASK-ID"]')
    settings = Settings()
    assert settings.fallback_models == ["gpt-5", "claude-haiku-4-5"]
    assert settings.task_models == {TaskType.PLANNING: "claude-opus-5-5"}
    assert settings.model_rules == {"creative": "gpt-5"}
    assert settings.model_options == {"qwen3": ModelOptions(api="chat", native_tools=False)}
    assert settings.prices == {"qwen3": ModelPrice(Decimal("0.2"), Decimal("0.6"))}
    assert settings.task_id_headers == ["X-Task-Id", "X-KILOCODE-TASK-ID"]


@pytest.mark.parametrize("name", ["TASK_MODELS", "MODEL_RULES", "MODEL_OPTIONS", "PRICES", "FALLBACK_MODELS"])
def test_an_empty_setting_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ORCHESTRATOR_{name}", "")
    assert not getattr(Settings(), name.lower())


def test_an_unknown_kind_of_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_TASK_MODELS", '{"dreaming": "x"}')
    with pytest.raises(ValidationError):
        Settings()


# ---- how long to wait

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:30 GMT"}, 30),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:30 GMT", "date": "Sun, 01 Mar 2026 12:00:20 GMT"}, 10),
        ({"retry-after": "Sun, 01 Mar 2026 11:00:00 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "9s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9 moons"}, None),
        (
            {
                "anthropic-ratelimit-tokens-remaining": "0",
                "anthropic-ratelimit-tokens-reset": "2026-03-01T12:01:00Z",
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-03-01T12:00:10Z",
            },
            60,
        ),
        ({"retry-after": "3", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h"}, 3),
    ],
)
def test_the_server_s_wish_is_read_in_every_spelling(headers: dict[str, str], seconds: float | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert retry_after(headers, NOW) == expected
