"""What a server that a provider's name leads to can't do to the gateway, its rows, or other runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from orchestrator.core.assignment import ModelAccess
from tests.integration.gateway_server import MODEL, REAL_KEY, gateway_to
from tests.integration.ledger import Ledger, step
from tests.integration.stack import until
from tests.messages_server import Answer, closing, opening, serving, text_block

STREAM = [opening(), *text_block(0, "I ", "read."), *closing("end_turn")]
ENDED = "SELECT * FROM model_calls WHERE ended_at IS NOT NULL"
MEBIBYTE = "x" * 1024 * 1024
JSON = {"content-type": "application/json"}


@pytest.fixture
def claim(ledger: Ledger) -> Callable[..., Any]:
    def make(task: str = "t", **body: Any) -> Any:
        return ledger.take(ledger.task(task, step("a"), **body)["a"])

    return make


def post(access: ModelAccess, path: str = "/v1/messages", stream: bool = True) -> httpx2.Response:
    body = {
        "model": MODEL,
        "max_tokens": 1000,
        "stream": stream,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    with httpx2.Client(trust_env=False, timeout=30) as client:
        return client.post(f"{access.base_url}{path}", json=body, headers={"x-api-key": access.token})


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v1/messages", Answer([opening(), "data: ", *[MEBIBYTE] * 20], then="hang")),
        ("/v1/messages", Answer([opening(), *[":\n" * 100_000] * 20], then="hang")),
        ("/v1/chat/completions", Answer(["data: ", *[MEBIBYTE] * 20], then="hang")),
        ("/v1/messages", Answer(['{"a": "', *[MEBIBYTE] * 20], headers=JSON, then="hang")),
        ("/v1/messages", Answer([f"data: {MEBIBYTE}\n\n"] * 40, then="hang")),
    ],
    ids=["a line", "lines", "a chunk whose end is looked at", "not streamed", "events"],
)
def test_a_reply_without_an_end_is_cut(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], path: str, answer: Answer
) -> None:
    """Without a bound the gateway would keep all of it, to understand it."""
    with serving(answer) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claim())
        with pytest.raises(httpx2.RemoteProtocolError):
            post(access, path)
        (call,) = until(lambda: ledger.rows(ENDED))
    assert (call["outcome"], call["error_code"]) == ("failed", "reply-too-long")


def test_a_provider_can_not_speak_in_the_gateway_s_name(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    claiming = Answer(
        status=402,
        error={"type": "billing_error", "message": "Pay."},
        headers={"x-orchestrator-code": "budget-exhausted", "x-ratelimit": "7"},
    )
    with serving(claiming) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        answer = post(gateway.access(ledger, claim()))
    assert answer.headers["x-ratelimit"] == "7"
    assert "x-orchestrator-code" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
def test_a_provider_that_shows_the_key_it_was_sent_shows_it_to_no_agent(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], path: str
) -> None:
    """As servers do that stand before others, when they can't make sense of one."""
    echoing = Answer(
        status=403,
        error={"type": "permission_error", "message": f"Bearer {REAL_KEY} may not do that."},
        headers={"x-debug": f"key={REAL_KEY}"},
    )
    with serving(echoing) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        answer = post(gateway.access(ledger, claim()), path)
        assert any(REAL_KEY in value for headers, _ in provider.requests for value in headers.values())
        (call,) = until(lambda: ledger.rows(ENDED))
    assert (answer.status_code, call["http_status"], call["outcome"]) == (403, 403, "failed")
    assert answer.json()["error"]["message"] == "Bearer [redacted] may not do that."
    assert REAL_KEY not in str(answer.headers)


def test_a_reply_that_is_encoded_unasked_is_not_unpacked(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    """A few kilobytes could be gigabytes."""
    packed = Answer(["x"], headers={"content-encoding": "gzip"})
    with serving(packed) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        answer = post(gateway.access(ledger, claim()))
    assert (answer.status_code, answer.headers["x-orchestrator-code"]) == (502, "provider-unreachable")


def test_what_a_provider_sets_in_one_run_is_not_sent_in_another(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    setting = Answer(STREAM, headers={"set-cookie": "run=one; path=/"})
    with serving(setting) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        for task in ("one", "two"):
            assert post(gateway.access(ledger, claim(task))).status_code == 200
    assert all("cookie" not in map(str.lower, headers) for headers, _ in provider.requests)


def _error(kind: Any) -> Answer:
    return Answer([opening(), f"data: {json.dumps({'type': 'error', 'error': {'type': kind}})}\n\n"])


@pytest.mark.parametrize(
    "answer",
    [
        Answer([opening(input_tokens=2**70, cache_read_input_tokens=2**70), *closing(output_tokens=2**70)]),
        Answer([opening(input_tokens=-5), *closing(output_tokens=-5)]),
        _error("a\0b\ud800"),
        _error(json.loads("[" * 900 + "]" * 900)),
        Answer(["data: " + "[" * 100_000 + "\n\n", 'data: {"type": "content_block_delta"}\n\n']),
        Answer([opening(), 'data: {"type": "content_block_start", "index": [], "content_block": 7}\n\n']),
    ],
    ids=["huge counts", "negative counts", "no text", "nested", "no JSON", "nonsense"],
)
def test_whatever_a_reply_says_its_call_is_settled(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], answer: Answer
) -> None:
    with serving(answer, Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claim())
        assert post(access).status_code == 200
        (call,) = until(lambda: ledger.rows(ENDED))
        assert post(access).status_code == 200
    assert call["error_code"] != "count-unusable", "what is written down needs no second try"
    assert min(call["input_tokens"], call["output_tokens"]) >= 0
    (budget,) = ledger.rows("SELECT spent_tokens, calls FROM budgets")
    assert budget["calls"] == 2


@pytest.mark.parametrize("status", [101, 199, 204, 206, 304, 307, 599, 999])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
def test_an_odd_status_ends_its_call_and_no_other(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], status: int, path: str
) -> None:
    odd = Answer(["x"], status=status, headers={"location": "http://127.0.0.1:1/", "upgrade": "h2c"})
    with (
        serving(odd, Answer(STREAM)) as provider,
        gateway_to(ledger, provider.url, tmp_path, gateway_first_byte=timedelta(seconds=1)) as gateway,
    ):
        access = gateway.access(ledger, claim())
        with contextlib.suppress(httpx2.HTTPError):
            assert post(access, path).status_code in {status, 502, 504}
        until(lambda: ledger.rows(ENDED))
        assert len(ledger.rows("SELECT 1 FROM usage")) == (status in {204, 206}), (
            "what may have been paid for"
        )
        assert post(access).status_code == 200
        assert len(provider.requests) == 2
