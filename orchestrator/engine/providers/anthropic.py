"""The Messages API through the official SDK.

Traps of the SDK that shape this file: a connection dropped in mid-stream raises httpx2's own error; an error
event in mid-stream is an APIStatusError with status 200, so errors are told apart by `type` first; its
timeout is per read, so pings keep a dead stream alive for ever; its retries would hide attempts from us.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from ssl import SSLContext
from typing import Any, Final, Literal, cast

import anthropic
import httpx2
from anthropic.types import CacheControlEphemeralParam

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.engine.ports import ModelError, ModelRequest, Reply, Stopped, StreamEvent
from orchestrator.engine.providers.stream import Assembly

_STOP_LOOKED_AT_EVERY: Final = 0.02
_CACHED: Final[CacheControlEphemeralParam] = {"type": "ephemeral"}


@dataclass(frozen=True, slots=True)
class Deadlines:
    """`read` is the longest silence, pings included; `overall` bounds a whole reply, however lively."""

    connect: timedelta = timedelta(seconds=10)
    read: timedelta = timedelta(seconds=120)
    overall: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class AnthropicModel:
    """One live model. Each reply has a client and an event loop of its own: nothing is shared over a fork or
    between threads, and a stop can cancel whatever the reply is waiting for.
    """

    name: str
    api_key: str = field(repr=False)
    base_url: str = "https://api.anthropic.com"
    max_output_tokens: int = 16_000
    deadlines: Deadlines = Deadlines()
    kind: Literal["live"] = "live"
    _tls: SSLContext = field(default_factory=httpx2.create_ssl_context, repr=False, compare=False)

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        if stop.is_hard():
            raise Stopped
        return asyncio.run(self._until_stopped(request, listen, stop))

    async def _until_stopped(
        self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop
    ) -> Reply:
        """The reply, or `Stopped` as soon as `stop` is set hard: the connection is closed then, at once."""
        answering = asyncio.ensure_future(self._within_deadline(request, listen))
        while not answering.done():
            await asyncio.wait({answering}, timeout=_STOP_LOOKED_AT_EVERY)
            if stop.is_hard() and not answering.done():
                answering.cancel()
                with contextlib.suppress(asyncio.CancelledError, ModelError):
                    await answering
                raise Stopped
        return answering.result()

    async def _within_deadline(self, request: ModelRequest, listen: Callable[[StreamEvent], None]) -> Reply:
        seconds = self.deadlines.overall.total_seconds()
        try:
            async with asyncio.timeout(seconds):
                return await self._stream(request, listen)
        except TimeoutError as late:
            message = f"the model's reply was not complete after {seconds:g} seconds"
            raise ModelError(ErrorClass.TIMEOUT, "model-deadline", message, retryable=True) from late
        except (anthropic.AnthropicError, httpx2.HTTPError, httpx2.StreamError, UnicodeError) as error:
            raise model_error(error) from error
        except json.JSONDecodeError as error:
            raise model_error(error) from error

    async def _stream(self, request: ModelRequest, listen: Callable[[StreamEvent], None]) -> Reply:
        async with self._client() as client:
            stream = await client.messages.create(
                model=self.name,
                max_tokens=self.max_output_tokens,
                system=[{"type": "text", "text": request.system, "cache_control": _CACHED}],
                tools=cast("Any", request.tools),
                messages=cast("Any", _with_cache_mark(request.messages)),
                stream=True,
            )
            assembly = Assembly()
            async with stream:
                async for event in stream:
                    told = assembly.feed(_as_mapping(event))
                    if told is not None:
                        listen(told)
            return _usable(assembly.reply(stream.response.headers.get("request-id")))

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[anthropic.AsyncAnthropic]:
        timeout = httpx2.Timeout(
            self.deadlines.read.total_seconds(), connect=self.deadlines.connect.total_seconds()
        )
        async with anthropic.AsyncAnthropic(
            api_key=self.api_key,
            base_url=self.base_url,
            max_retries=0,
            timeout=timeout,
            http_client=anthropic.DefaultAsyncHttpxClient(verify=self._tls, timeout=timeout),
        ) as client:
            yield client


def _as_mapping(event: object) -> Mapping[str, Any]:
    """The SDK passes on whatever JSON came: only what it took for an event has fields."""
    return event.to_dict() if isinstance(event, anthropic.BaseModel) else {}


def _with_cache_mark(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same messages, the last block marked: everything up to it is cached for the next turn."""
    *earlier, last = messages
    *blocks, final = last["content"]
    return [*earlier, {**last, "content": [*blocks, {**final, "cache_control": _CACHED}]}]


def _usable(reply: Reply) -> Reply:
    if reply.stop_reason == "refusal":
        raise ModelError(
            ErrorClass.CONTENT_REFUSED, "model-refused", "the model refused to answer", retryable=False
        )
    if reply.stop_reason == "model_context_window_exceeded":
        raise ModelError(
            ErrorClass.CONTEXT_TOO_LONG,
            "context-too-long",
            "the conversation no longer fits into the model's context",
            retryable=False,
        )
    return reply


@dataclass(frozen=True, slots=True)
class _Meaning:
    error: ErrorClass
    code: str
    retryable: bool


_UNAUTHORIZED: Final = _Meaning(ErrorClass.AUTH, "model-unauthorized", retryable=False)
_BILLING: Final = _Meaning(ErrorClass.AUTH, "model-billing", retryable=False)
_UNKNOWN: Final = _Meaning(ErrorClass.VALIDATION, "model-unknown", retryable=False)
_RATE_LIMITED: Final = _Meaning(ErrorClass.RATE_LIMIT, "model-rate-limited", retryable=True)
_OVERLOADED: Final = _Meaning(ErrorClass.OVERLOADED, "model-overloaded", retryable=True)
_SLOW: Final = _Meaning(ErrorClass.TIMEOUT, "model-timeout", retryable=True)
_SERVER: Final = _Meaning(ErrorClass.OVERLOADED, "model-server-error", retryable=True)
_CONFLICT: Final = _Meaning(ErrorClass.NETWORK, "model-conflict", retryable=True)
_TOO_LONG: Final = _Meaning(ErrorClass.CONTEXT_TOO_LONG, "context-too-long", retryable=False)
_INVALID: Final = _Meaning(ErrorClass.VALIDATION, "model-request-refused", retryable=False)
_DROPPED: Final = _Meaning(ErrorClass.NETWORK, "model-stream-dropped", retryable=True)
_UNREACHABLE: Final = _Meaning(ErrorClass.NETWORK, "model-unreachable", retryable=True)
_GARBLED: Final = _Meaning(ErrorClass.NETWORK, "model-garbled", retryable=True)

_BY_TYPE: Final[Mapping[str, _Meaning]] = {
    "authentication_error": _UNAUTHORIZED,
    "permission_error": _UNAUTHORIZED,
    "billing_error": _BILLING,
    "not_found_error": _UNKNOWN,
    "rate_limit_error": _RATE_LIMITED,
    "overloaded_error": _OVERLOADED,
    "timeout_error": _SLOW,
    "api_error": _SERVER,
    "conflict_error": _CONFLICT,
    "request_too_large": _TOO_LONG,
}
_BY_STATUS: Final[Mapping[int, _Meaning]] = {
    401: _UNAUTHORIZED,
    402: _BILLING,
    403: _UNAUTHORIZED,
    404: _UNKNOWN,
    408: _SLOW,
    409: _CONFLICT,
    413: _TOO_LONG,
    429: _RATE_LIMITED,
    504: _SLOW,
    529: _OVERLOADED,
}
_TOO_LONG_SAYINGS: Final = ("prompt is too long", "exceed context limit")
_BILLING_SAYINGS: Final = ("credit balance is too low",)


def model_error(error: Exception) -> ModelError:
    """Any error of the SDK or of its HTTP client, in our words."""
    meaning, retry_after = _meaning(error), None
    message = {
        _DROPPED: "the connection to the model was lost in the middle of its reply",
        _UNREACHABLE: "the model's server can't be reached",
        _GARBLED: "the model's server answered with something that can't be read",
        _SLOW: "the model's server did not answer in time",
    }.get(meaning, "the model's server answered with an error")
    if isinstance(error, anthropic.APIStatusError):
        retry_after = _retry_after(error.response.headers)
        said = error.api_message or f"status {error.status_code}"
        message = f"{said} (request {error.request_id})" if error.request_id else said
    return ModelError(
        meaning.error, meaning.code, message[:500], retryable=meaning.retryable, retry_after=retry_after
    )


def _meaning(error: Exception) -> _Meaning:
    if isinstance(error, anthropic.APIStatusError):
        return _meaning_of_status(error)
    if isinstance(error, (anthropic.APITimeoutError, httpx2.TimeoutException)):
        return _SLOW
    if isinstance(error, anthropic.APIConnectionError):
        return _UNREACHABLE
    if isinstance(error, (httpx2.TransportError, httpx2.StreamError)):
        return _DROPPED
    return _GARBLED


def _meaning_of_status(error: anthropic.APIStatusError) -> _Meaning:
    said = (error.api_message or "").lower()
    if any(saying in said for saying in _TOO_LONG_SAYINGS):
        return _TOO_LONG
    if any(saying in said for saying in _BILLING_SAYINGS):
        return _BILLING
    if error.type is not None and error.type in _BY_TYPE:
        return _BY_TYPE[error.type]
    if error.status_code in _BY_STATUS:
        return _BY_STATUS[error.status_code]
    return _SERVER if error.status_code >= 500 or error.status_code == 200 else _INVALID  # noqa: PLR2004


def _retry_after(headers: httpx2.Headers) -> timedelta | None:
    """The server's own wish, in either spelling; a date or nonsense counts as none."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with contextlib.suppress(ValueError, OverflowError):
            if (seconds := float(headers.get(name, "nan")) / unit) >= 0:
                return timedelta(seconds=seconds)
    return None
