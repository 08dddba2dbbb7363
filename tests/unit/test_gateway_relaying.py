"""What is written down of a call that was left, or that broke off."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from orchestrator.db.run_tokens import Run
from orchestrator.db.spending import Ended, Tokens
from orchestrator.db.sql import StepRef
from orchestrator.engine.prices import Price
from orchestrator.gateway.dialects import CHAT, MESSAGES, RESPONSES, Dialect, Request
from orchestrator.gateway.observing import Observer
from orchestrator.gateway.relaying import Call, cost_of, reserved

RUN = Run(StepRef("default", "t", "w", "s"), "t", "sha", 1, 0, "engine", ())


def ended(max_output: int | None, *, said: bytes = b"", asked: bytes = b"{}", **more: Any) -> Ended:
    request = Request("m", True, max_output, {}, asked)
    observer = Observer(MESSAGES, streamed=True)
    list(observer.feed(said))
    outgoing = httpx2.Request("POST", "http://provider")
    call = Call("c", RUN, MESSAGES, request, outgoing, (9, 4096), observer, sent=True, status=200, **more)
    return call.ended({"m": Price(Decimal(4_000_000), Decimal(0))})


@pytest.mark.parametrize(
    ("seconds", "max_output", "output"),
    [(1, 30_000, 4096), (200, 30_000, 10_000), (10_000, 30_000, 30_000), (10_000, None, 128_000)],
)
def test_who_leaves_late_pays_for_what_a_model_may_have_thought_unseen(
    seconds: float, max_output: int | None, output: int
) -> None:
    used = ended(max_output, lasted=seconds).used
    assert used is not None
    assert (used.input, used.output, used.estimated) == (9, output, True)


def test_a_reply_that_its_provider_broke_off_is_paid_for_as_far_as_it_came() -> None:
    used = ended(30_000, lasted=600, cut=False, error="provider-unreachable").used
    assert used is not None
    assert used.output == 1


def test_what_a_provider_calls_an_error_is_fit_for_a_terminal() -> None:
    said = b'data: {"type": "error", "error": {"type": "\\u001b[2Jover\\nloaded"}}\n\n'
    assert ended(10, said=said).error_code == "??2Jover?loaded"


@pytest.mark.parametrize(
    ("asked", "usd_per_token"),
    [
        ({}, 4),
        ({"note": 'He wrote "cache_control" and "1h".'}, 4),
        ({"cache_control": {"type": "ephemeral"}}, 5),
        ({"system": [{"cache_control": {"type": "ephemeral", "ttl": "5m"}}]}, 5),
        ({"system": [{"cache_control": {"type": "ephemeral", "ttl": "1h"}}]}, 8),
    ],
)
def test_a_call_reserves_what_its_input_costs_at_most(asked: dict[str, Any], usd_per_token: int) -> None:
    """Written to a cache it is dearer than read plainly, and for an hour twice as dear."""
    tokens = reserved(Request("m", True, None, asked, json.dumps(asked).encode()), (9, 0))
    assert tokens.total == 9
    assert cost_of("m", tokens, {"m": Price(Decimal(4_000_000), Decimal(0))}) == 9 * usd_per_token


@pytest.mark.parametrize(
    ("asked", "told", "cost_usd"),
    [
        ("5m", {"ephemeral_1h_input_tokens": 30, "ephemeral_5m_input_tokens": 70}, 30 * 8 + 70 * 5),
        ("1h", {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 100}, 100 * 5),
        ("1h", {"ephemeral_1h_input_tokens": 999}, 100 * 8),
        ("5m", None, 100 * 5),
        ("1h", None, 100 * 8),
    ],
)
def test_what_is_cached_for_an_hour_is_dearer_also_where_nobody_says_for_how_long_it_is(
    asked: str, told: object, cost_usd: int
) -> None:
    usage = {"input_tokens": 0, "cache_creation_input_tokens": 100, "cache_creation": told}
    start = {"type": "message_start", "message": {"usage": usage}}
    stop = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1}}
    said = "".join(f"data: {json.dumps(event)}\n\n" for event in (start, stop, {"type": "message_stop"}))
    marked = json.dumps({"system": [{"cache_control": {"type": "ephemeral", "ttl": asked}}]})
    settled = ended(10, said=said.encode(), asked=marked.encode())
    assert settled.used is not None
    assert (settled.used.cache_write, settled.cost_usd) == (100, cost_usd)


@pytest.mark.parametrize(
    ("dialect", "asked", "answered"),
    [(RESPONSES, "input_tokens", "output_tokens"), (CHAT, "prompt_tokens", "completion_tokens")],
)
def test_what_openai_writes_to_its_cache_is_counted_as_that(
    dialect: Dialect, asked: str, answered: str
) -> None:
    details = {"cached_tokens": 20, "cache_write_tokens": 70}
    usage = {asked: 100, f"{asked}_details": details, answered: 5}
    observer = Observer(dialect, streamed=False)
    list(observer.feed(json.dumps({"usage": usage}).encode()))
    observer.close()
    assert observer.tokens(9) == Tokens(input=10, output=5, cache_read=20, cache_write=70)


def test_what_is_cached_is_as_dear_where_escapes_spell_it() -> None:
    body = rb'{"cach\u0065_control": {"type": "ephemeral", "ttl": "\u0031\u0068"}}'
    assert reserved(Request("m", True, None, {}, body), (9, 1)) == Tokens(
        output=1, cache_write=9, cache_write_hour=9
    )
