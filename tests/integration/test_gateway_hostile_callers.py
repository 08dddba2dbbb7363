"""What somebody with one good token can't do to others, to the budget, or to the gateway."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from orchestrator.core.assignment import ModelAccess
from orchestrator.db import spending
from tests.integration.gateway_server import MODEL, gateway_to
from tests.integration.ledger import Ledger, step
from tests.integration.stack import until
from tests.messages_server import Answer, opening, serving, text_block
from tests.model_server import model_server

SCRIPT = {"conversations": [{"turns": [{"text": "I read it all."}]}]}
ENDED = "SELECT * FROM model_calls WHERE ended_at IS NOT NULL"


@pytest.fixture
def claim(ledger: Ledger) -> Callable[..., Any]:
    def make(task: str = "t", **body: Any) -> Any:
        return ledger.take(ledger.task(task, step("a"), **body)["a"])

    return make


def body(path: str, **more: Any) -> dict[str, Any]:
    items = "input" if path.endswith("responses") else "messages"
    return {"model": MODEL, "stream": True, items: [{"role": "user", "content": "Hello."}], **more}


@contextlib.contextmanager
def opened(access: ModelAccess, path: str = "/v1/messages", **more: Any) -> Iterator[httpx2.Response]:
    """A call whose reply has begun, and that is left when the block is."""
    headers = {"authorization": f"Bearer {access.token}"}
    with (
        httpx2.Client(trust_env=False, timeout=20, headers=headers) as client,
        client.stream("POST", f"{access.base_url}{path}", json=body(path, **more)) as response,
    ):
        yield response


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/chat/completions"])
def test_who_leaves_calls_early_meets_the_budget_all_the_same(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], path: str
) -> None:
    """The provider writes on for a while, and thinks unseen: each call counts as one of usual length."""
    claimed = claim(budget={"max_tokens": 10_000})
    with model_server(SCRIPT) as model, gateway_to(ledger, model.url, tmp_path) as gateway:
        model.fault("stall", after=1, times=None)
        access = gateway.access(ledger, claimed)
        for number in range(1, 4):
            with opened(access, path, max_tokens=30_000) as response:
                assert response.status_code == 200
                next(response.iter_raw())
            until(lambda: len(ledger.rows(ENDED)) == number)  # noqa: B023
        with opened(access, path) as refused:
            assert refused.headers.get("x-orchestrator-code") == "budget-exhausted"
        assert len(model.sends()) == 3
    assert {call["outcome"] for call in ledger.rows(ENDED)} == {"cut"}
    assert all(row["output_tokens"] == 4096 for row in ledger.rows("SELECT * FROM usage"))


def test_a_call_that_is_left_has_read_what_its_provider_remembers(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    """Nobody but the provider knows how much that is, and it hasn't said so yet."""
    begun = 'data: {"type": "response.created", "response": {"usage": null}}\n\n'
    with (
        serving(Answer([begun], then="hang")) as provider,
        gateway_to(ledger, provider.url, tmp_path) as gateway,
    ):
        with opened(
            gateway.access(ledger, claim()), "/v1/responses", previous_response_id="resp_1"
        ) as response:
            next(response.iter_raw())
        (call,) = until(lambda: ledger.rows(ENDED))
    assert (call["input_tokens"], call["reserved_tokens"] < 10_000) == (100_000, True)


def test_who_doesn_t_read_has_cut_the_call_and_the_provider_has_not_failed(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    long = Answer([opening(), *text_block(0, *("x" * 100_000 for _ in range(200)))], then="hang")
    with (
        serving(long) as provider,
        gateway_to(ledger, provider.url, tmp_path, gateway_stall=timedelta(seconds=0.5)) as gateway,
    ):
        access, place = gateway.access(ledger, claim()), urlsplit(gateway.url)
        content = json.dumps(body("/v1/messages")).encode()
        with socket.create_connection((place.hostname, place.port)) as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.sendall(
                b"POST /v1/messages HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
                b"x-api-key: %b\r\ncontent-length: %d\r\n\r\n%b"
                % (access.token.encode(), len(content), content)
            )
            (call,) = until(lambda: ledger.rows(ENDED))
        assert (call["outcome"], call["error_code"]) == ("cut", "caller-stalled")
        assert call["output_tokens"] >= 4096
        assert ledger.rows("SELECT 1 FROM breakers WHERE failures > 0") == []


@pytest.mark.parametrize(
    ("answer", "more"),
    [
        (Answer(silent=True), {"stream": False}),
        (Answer([opening(), *text_block(0, "on and on")], then="ping"), {"stream": True}),
    ],
    ids=["whole", "streamed"],
)
def test_who_asks_for_more_than_fits_in_the_time_opens_nobody_s_circuit(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], answer: Answer, more: dict[str, Any]
) -> None:
    quick = {"gateway_first_byte": timedelta(seconds=0.5), "gateway_call": timedelta(seconds=0.5)}
    with serving(answer) as provider, gateway_to(ledger, provider.url, tmp_path, **quick) as gateway:
        access = gateway.access(ledger, claim())
        with contextlib.suppress(httpx2.RemoteProtocolError), opened(access, **more) as response:
            response.read()
        (call,) = until(lambda: ledger.rows(ENDED))
    assert (call["outcome"], call["error_code"]) == ("failed", "provider-timeout")
    assert ledger.rows("SELECT 1 FROM breakers WHERE failures > 0") == []


# --- bodies -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def half_sent(access: ModelAccess, path: str = "/v1/messages") -> Iterator[socket.socket]:
    """The head of a request, whose body is asked for before it is sent."""
    place = urlsplit(access.base_url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        connection.sendall(
            b"POST %b HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
            b"x-api-key: %b\r\ncontent-length: 1000000\r\nexpect: 100-continue\r\n\r\n"
            % (path.encode(), access.token.encode())
        )
        yield connection


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/messages/count_tokens"])
def test_nothing_of_a_stranger_s_body_is_waited_for(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], path: str
) -> None:
    claimed = claim()
    with gateway_to(ledger, "http://127.0.0.1:1", tmp_path) as gateway:
        ended = gateway.access(ledger, claimed)
        ledger.expire(claimed.step)
        for token in ("ort_" + "x" * 43, ended.token):
            with half_sent(ModelAccess(gateway.url, token), path) as connection:
                assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_a_run_that_sends_halves_of_requests_keeps_nobody_but_itself_from_calling(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spending, "MOST_AT_ONCE", 2)
    with model_server(SCRIPT) as model, gateway_to(ledger, model.url, tmp_path) as gateway:
        flooding, other = gateway.access(ledger, claim("a")), gateway.access(ledger, claim("b"))

        def status(access: ModelAccess) -> int:
            with opened(access, max_tokens=10) as response:
                response.read()
                return response.status_code

        counting = "/v1/messages/count_tokens"
        with half_sent(flooding) as one, half_sent(flooding, counting) as two:
            for connection in (one, two):
                assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            assert status(flooding) == 429
            assert status(other) == 200
        until(lambda: status(flooding) == 200)


@pytest.mark.parametrize("inner", [b"[]," * 3_000_000, b"[" * 200], ids=["wide", "deep"])
def test_a_body_that_would_fill_the_memory_as_objects_is_refused_for_good(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], inner: bytes
) -> None:
    content = b'{"model": "%b", "messages": [%b1%b]}' % (
        MODEL.encode(),
        inner,
        b"]" * (200 * (inner[1:2] == b"[")),
    )
    with gateway_to(ledger, "http://127.0.0.1:1", tmp_path) as gateway:
        answer = httpx2.post(
            f"{gateway.url}/v1/messages",
            content=content,
            headers={"x-api-key": gateway.access(ledger, claim()).token},
            timeout=20,
            trust_env=False,
        )
    assert (answer.status_code, answer.headers["x-orchestrator-code"]) == (400, "request-malformed")


# --- counting tokens ----------------------------------------------------------------------------------------


def count(access: ModelAccess) -> str | None:
    """The code of its refusal; None: it was passed on."""
    with httpx2.Client(trust_env=False, timeout=20) as client:
        answer = client.post(
            f"{access.base_url}/v1/messages/count_tokens",
            json={"model": MODEL, "messages": []},
            headers={"x-api-key": access.token},
        )
    return answer.headers.get("x-orchestrator-code")


def test_tokens_are_counted_under_the_same_bounds_as_calls_are_made(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Answer(['{"input_tokens": 42}'], headers={"content-type": "application/json"})
    with serving(counted) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claim("free"))
        poor = gateway.access(ledger, claim("poor", budget={"max_tokens": 10}))
        ledger.run("UPDATE budgets SET spent_tokens = 10 WHERE root_id = 'poor'")
        assert count(access) is None
        assert count(poor) == "budget-exhausted"

        ledger.run(
            "INSERT INTO throttles (provider, model, until_at, status) "
            "VALUES ('anthropic', :model, now() + interval '1 hour', 429)",
            model=MODEL,
        )
        assert count(access) == "provider-throttled"
        ledger.run("DELETE FROM throttles")

        ledger.run(
            "INSERT INTO breakers (kind, name, state, opened_at) "
            "VALUES ('provider', 'anthropic', 'open', now() - interval '1 hour')"
        )
        assert count(access) == "circuit-open"
        (breaker,) = ledger.rows("SELECT state FROM breakers")
        assert breaker["state"] == "open", "what is not settled must not be the probe"
        ledger.run("DELETE FROM breakers")

        monkeypatch.setattr(spending, "MOST_AT_ONCE", 0)
        assert count(access) == "too-many-calls"
        assert len(provider.requests) == 1
