"""What the official SDKs make of each fault of the model server: what a provider has to expect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from orchestrator.modelserver.faults import Kind
from tests.integration.test_model_server import CHAT, MESSAGES, RESPONSES, SCRIPT, claude, gpt
from tests.model_server import RunningModel, model_server

Ask = Callable[[RunningModel, float], Coroutine[Any, Any, str | None]]
"""The reason why the reply ended; None when the stream was over without one. A read has so many seconds."""
PATIENT, QUICK = 20.0, 1.0


async def messages_stream(model: RunningModel, seconds: float) -> str | None:
    async with claude(model, timeout=seconds) as client, client.messages.stream(**MESSAGES) as stream:
        message = await stream.get_final_message()
        return str(message.stop_reason) if message.stop_reason else None


async def messages_whole(model: RunningModel, seconds: float) -> str | None:
    async with claude(model, timeout=seconds) as client:
        return str((await client.messages.create(**MESSAGES)).stop_reason)


async def responses_stream(model: RunningModel, seconds: float) -> str | None:
    last = None
    async with gpt(model, timeout=seconds) as client:
        async for event in await client.responses.create(**RESPONSES, stream=True):
            last = event.type
    ended = {"response.completed", "response.incomplete", "response.failed"}
    return last.removeprefix("response.") if last in ended else None


async def responses_whole(model: RunningModel, seconds: float) -> str | None:
    async with gpt(model, timeout=seconds) as client:
        return str((await client.responses.create(**RESPONSES)).status)


async def chat_stream(model: RunningModel, seconds: float) -> str | None:
    reason = None
    async with gpt(model, timeout=seconds) as client:
        async for chunk in await client.chat.completions.create(**CHAT, stream=True):
            reason = chunk.choices[0].finish_reason if chunk.choices else reason
    return reason


async def chat_whole(model: RunningModel, seconds: float) -> str | None:
    async with gpt(model, timeout=seconds) as client:
        return str((await client.chat.completions.create(**CHAT)).choices[0].finish_reason)


ASKS: dict[str, Ask] = {
    ask.__name__: ask
    for ask in (messages_stream, messages_whole, responses_stream, responses_whole, chat_stream, chat_whole)
}


@dataclass(frozen=True)
class Raised:
    """An error's class, and the status, type and code that it says; None: whatever."""

    error: type[BaseException]
    status: int | None = None
    code: str | None = None


def refused(
    claude_error: type[BaseException],
    gpt_error: type[BaseException],
    status: int,
    kind: str,
    code: str | None,
    gpt_status: int | None = None,
) -> dict[str, Raised]:
    gpt_raised = Raised(gpt_error, gpt_status or status, code)
    return {
        name: Raised(claude_error, status, kind) if name.startswith("messages") else gpt_raised
        for name in ASKS
    }


def mixed(stream: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """By the API's name, for its streams and its whole replies."""
    return {
        **{f"{api}_stream": found for api, found in stream.items()},
        **{f"{api}_whole": found for api, found in whole.items()},
    }


def apis(messages: Any, responses: Any, chat: Any) -> dict[str, Any]:
    return {"messages": messages, "responses": responses, "chat": chat}


A, O = anthropic, openai  # noqa: E741 - the table is read better so
NO_CONNECTION = apis(Raised(A.APIConnectionError), Raised(O.APIConnectionError), Raised(O.APIConnectionError))
TOO_SLOW = apis(Raised(A.APITimeoutError), Raised(O.APITimeoutError), Raised(O.APITimeoutError))
GOOD = mixed(apis("tool_use", "completed", "tool_calls"), apis("tool_use", "completed", "tool_calls"))

EXPECTED: dict[Kind, dict[str, Any]] = {
    Kind.RATE_LIMIT: refused(
        A.RateLimitError, O.RateLimitError, 429, "rate_limit_error", "rate_limit_exceeded"
    ),
    Kind.SERVER_ERROR: refused(A.InternalServerError, O.InternalServerError, 500, "api_error", None),
    Kind.OVERLOADED: refused(
        A.OverloadedError, O.InternalServerError, 529, "overloaded_error", None, gpt_status=503
    ),
    Kind.UNAUTHORIZED: refused(
        A.AuthenticationError, O.AuthenticationError, 401, "authentication_error", "invalid_api_key"
    ),
    Kind.FORBIDDEN: refused(
        A.PermissionDeniedError, O.PermissionDeniedError, 403, "permission_error", "permission_denied"
    ),
    Kind.BILLING: refused(
        A.BadRequestError,
        O.RateLimitError,
        400,
        "invalid_request_error",
        "insufficient_quota",
        gpt_status=429,
    ),
    Kind.BAD_REQUEST: refused(A.BadRequestError, O.BadRequestError, 400, "invalid_request_error", None),
    Kind.MODEL_UNKNOWN: refused(A.NotFoundError, O.NotFoundError, 404, "not_found_error", "model_not_found"),
    Kind.CONFLICT: refused(A.ConflictError, O.ConflictError, 409, "conflict_error", None),
    Kind.TOO_LARGE: refused(A.ContentTooLargeError, O.APIStatusError, 413, "request_too_large", None),
    Kind.TIMED_OUT: refused(A.GatewayTimeoutError, O.InternalServerError, 504, "timeout_error", None),
    Kind.CONTEXT_TOO_LONG: refused(
        A.BadRequestError, O.BadRequestError, 400, "invalid_request_error", "context_length_exceeded"
    ),
    Kind.PREVIOUS_RESPONSE_NOT_FOUND: refused(
        A.BadRequestError, O.BadRequestError, 400, "invalid_request_error", "previous_response_not_found"
    ),
    Kind.BAD_GATEWAY: {
        name: Raised(A.InternalServerError if name.startswith("messages") else O.InternalServerError, 502)
        for name in ASKS
    },
    Kind.HANG: mixed(TOO_SLOW, TOO_SLOW),
    Kind.CLOSE: mixed(NO_CONNECTION, NO_CONNECTION),
    # Messages' SDK lets the errors of its HTTP client through in mid-stream; OpenAI's names them anew.
    Kind.STALL: mixed({**TOO_SLOW, "messages": Raised(httpx2.ReadTimeout)}, TOO_SLOW),
    # No SDK ends a stream that shows signs of life: that takes a deadline of the caller's own.
    Kind.STALL_ALIVE: mixed(apis(*[Raised(TimeoutError)] * 3), TOO_SLOW),
    Kind.CUT: mixed({**NO_CONNECTION, "messages": Raised(httpx2.RemoteProtocolError)}, NO_CONNECTION),
    Kind.RESET: mixed({**NO_CONNECTION, "messages": Raised(httpx2.ReadError)}, NO_CONNECTION),
    # A stream that ends too early ends like any other: only what is missing tells.
    Kind.TRUNCATED: mixed(apis(None, None, None), NO_CONNECTION),
    Kind.GARBAGE: mixed(apis(*[Raised(json.JSONDecodeError)] * 3), apis(*[Raised(json.JSONDecodeError)] * 3)),
    Kind.GARBAGE_BYTES: mixed(
        apis(*[Raised(UnicodeDecodeError)] * 3), apis(*[Raised(UnicodeDecodeError)] * 3)
    ),
    Kind.ERROR_EVENT: mixed(
        apis(Raised(A.APIStatusError, 200, "overloaded_error"), Raised(O.APIError), Raised(O.APIError)),
        NO_CONNECTION,
    ),
    Kind.FAILED_EVENT: mixed(
        apis(Raised(A.APIStatusError, 200, "overloaded_error"), "failed", Raised(O.APIError)), NO_CONNECTION
    ),
    Kind.DRIP: GOOD,
    Kind.SLOW_START: GOOD,
    Kind.REFUSAL: mixed(apis("refusal", "completed", "stop"), apis("refusal", "completed", "stop")),
    Kind.MAX_TOKENS: mixed(
        apis("max_tokens", "incomplete", "length"), apis("max_tokens", "incomplete", "length")
    ),
    Kind.CONTEXT_FULL: mixed(
        apis("model_context_window_exceeded", "incomplete", "length"),
        apis("model_context_window_exceeded", "incomplete", "length"),
    ),
}
LEFT = {Kind.HANG, Kind.STALL, Kind.STALL_ALIVE}
WHOLE = {Kind.DRIP, Kind.SLOW_START, Kind.REFUSAL, Kind.MAX_TOKENS, Kind.CONTEXT_FULL}
UNSENT = {Kind.HANG, Kind.CLOSE}


def test_every_fault_is_in_the_table() -> None:
    assert set(EXPECTED) == set(Kind)


@pytest.mark.parametrize("kind", list(Kind), ids=str)
def test_the_sdks_meet_a_fault_once_and_the_next_send_is_good(kind: Kind) -> None:
    with model_server(SCRIPT) as model:
        model.fault(kind, times=len(ASKS))
        met = asyncio.run(_all_met(model, QUICK if kind in LEFT else PATIENT))
        assert met == {name: _expected(found) for name, found in EXPECTED[kind].items()}
        assert len(model.await_end()) == len(ASKS), "an SDK sent again by itself"
        assert asyncio.run(_all_met(model, PATIENT)) == GOOD
        faulty = model.await_end()[: len(ASKS)]
    assert {send.fault for send in faulty} == {kind}
    outcomes = (
        {"client-left"} if kind in LEFT else {"complete"} if kind in WHOLE else {"refused", "broken-off"}
    )
    assert {send.outcome for send in faulty} <= outcomes
    assert {send.finished for send in faulty} == {kind in {Kind.DRIP, Kind.SLOW_START}}
    assert all((send.status is None) == (kind in UNSENT) for send in faulty)


async def _all_met(model: RunningModel, seconds: float) -> dict[str, Any]:
    """All six at once: what each met."""
    met = await asyncio.gather(*(_met(ask, model, seconds) for ask in ASKS.values()))
    return dict(zip(ASKS, met, strict=True))


async def _met(ask: Ask, model: RunningModel, seconds: float) -> Any:
    try:
        async with asyncio.timeout(2 * seconds):
            return await ask(model, seconds)
    except (
        anthropic.AnthropicError,
        openai.OpenAIError,
        httpx2.HTTPError,
        TimeoutError,
        ValueError,
    ) as error:
        kind = getattr(error, "type", None) if isinstance(error, anthropic.AnthropicError) else None
        return type(error), getattr(error, "status_code", None), getattr(error, "code", None) or kind


def _expected(found: Any) -> Any:
    return (found.error, found.status, found.code) if isinstance(found, Raised) else found


def test_a_limit_says_when_to_come_back_only_if_it_is_told_to() -> None:
    async def limited(model: RunningModel, **more: Any) -> str | None:
        model.fault("rate-limit", **more)
        async with gpt(model) as client:
            with pytest.raises(openai.RateLimitError) as raised:
                await client.responses.create(**RESPONSES)
        found: str | None = raised.value.response.headers.get("retry-after")
        return found

    with model_server(SCRIPT) as model:
        assert asyncio.run(limited(model)) is None
        assert asyncio.run(limited(model, retry_after=2.5)) == "2.5"
        date = "Wed, 21 Oct 2026 07:28:00 GMT"
        assert asyncio.run(limited(model, retry_after=date)) == date


def test_a_stall_that_has_an_end_delivers_the_rest_of_the_reply() -> None:
    with model_server(SCRIPT) as model:
        for name, ask in ASKS.items():
            model.fault("stall", seconds=0.05)
            assert asyncio.run(ask(model, PATIENT)) == GOOD[name]
            model.fault("stall-alive", seconds=0.05)
            assert asyncio.run(ask(model, PATIENT)) == GOOD[name]
        assert all(send.finished for send in model.await_end())


def test_a_cut_leaves_what_was_sent_before_it_and_is_not_counted_as_finished() -> None:
    kinds: list[str] = []

    async def see(model: RunningModel) -> None:
        async with gpt(model) as client:
            async for event in await client.responses.create(**RESPONSES, stream=True):
                kinds.append(event.type)  # noqa: PERF401 - what came before the error counts

    with model_server(SCRIPT) as model:
        model.fault("cut", after=4)
        with pytest.raises(openai.APIConnectionError):
            asyncio.run(see(model))
        (send,) = model.await_end()
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert (send.frames, send.finished, send.outcome) == (4, False, "broken-off")


def test_a_client_that_leaves_in_mid_stream_is_noticed_at_once() -> None:
    async def leave(model: RunningModel) -> None:
        async with claude(model) as client:
            async for event in await client.messages.create(**MESSAGES, stream=True):
                if event.type == "content_block_start":
                    return

    slow = {"conversations": [{"turns": [{"text": "word " * 1000, "pace": 0.05}]}]}
    with model_server(slow) as model:
        asyncio.run(leave(model))
        (send,) = model.await_end()
        assert send.outcome == "client-left"
        assert not send.finished
        assert send.frames < 20
