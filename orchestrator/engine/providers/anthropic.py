"""The Messages API through the official SDK.

Traps of the SDK that shape this file: a connection dropped in mid-stream raises httpx2's own error; an error
event in mid-stream is an APIStatusError with status 200, so errors are told apart by `type` first; its
timeout is per read, so pings keep a dead stream alive for ever; its retries would hide attempts from us.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any, Final, Literal, cast

import anthropic
import httpx2
from anthropic.types import CacheControlEphemeralParam, TextBlockParam

from orchestrator.core.assignment import Stop
from orchestrator.engine.ports import Block, ModelError, ModelRequest, Reply, StreamEvent
from orchestrator.engine.providers import live, meaning
from orchestrator.engine.providers.credential import Credential, Fixed
from orchestrator.engine.providers.live import Deadlines, Pulse, with_credential
from orchestrator.engine.providers.meaning import Meaning
from orchestrator.engine.providers.stream import Assembly
from orchestrator.engine.providers.tracing import BY_HEADERS, Tracing
from orchestrator.engine.providers.waiting import retry_after

__all__ = ["AnthropicModel", "Deadlines", "model_error"]

_CACHED: Final[CacheControlEphemeralParam] = {"type": "ephemeral"}
_DROP_FOREIGN_THOUGHTS: Final = {
    "type": "adaptive",
    "block_binding": {"prefix_mismatch_behavior": "drop_block"},
}
_COUNTED_WITHIN: Final = 5.0
_BINDING_CONTROLS: Final = {"anthropic-beta": "thinking-binding-controls-2026-08-01"}
_FAILURES: Final = (
    anthropic.AnthropicError,
    httpx2.HTTPError,
    httpx2.StreamError,
    UnicodeError,
    json.JSONDecodeError,
    RecursionError,
)
_OWN: Final = frozenset({"text", "tool_use", "tool_result", "thinking", "redacted_thinking", "image"})
"""Blocks that this API knows; another model of the same conversation may have left others."""


@dataclass(frozen=True, slots=True)
class AnthropicModel:
    """One live model; each reply has a client of its own. `metered`: somebody else writes its usage down."""

    name: str
    api_key: str | Credential = field(repr=False)
    base_url: str = "https://api.anthropic.com"
    max_output_tokens: int = 16_000
    deadlines: Deadlines = live.USUAL
    kind: Literal["live"] = "live"
    tracing: Tracing = BY_HEADERS
    metered: bool = False
    context_tokens: int | None = None
    _shortened: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)
    _tls: SSLContext = field(default_factory=httpx2.create_ssl_context, repr=False, compare=False)

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        async def stream(pulse: Pulse) -> Reply:
            return await with_credential(
                self._credential,
                lambda secret: self._send(secret, request, listen, pulse),
                anthropic.AuthenticationError,
            )

        return live.answer(stream, stop, self.deadlines, _as_model_error)

    def count(self, request: ModelRequest, /) -> int:
        """Tokens of the request, as the provider counts them, within a few seconds. Raises `ModelError`."""

        async def ask(secret: str) -> int:
            async with self._client(secret, request) as client:
                counted = await client.messages.count_tokens(
                    model=self.name,
                    system=self._system(request),
                    tools=cast("Any", request.tools),
                    messages=cast("Any", _with_cache_mark(request.messages)),
                )
                return counted.input_tokens

        async def soon() -> int:
            async with asyncio.timeout(_COUNTED_WITHIN):
                return await with_credential(self._credential, ask, anthropic.AuthenticationError)

        try:
            return asyncio.run(soon())
        except TimeoutError as late:
            raise meaning.failure(meaning.SLOW) from late
        except _FAILURES as error:
            raise model_error(error) from error

    async def _send(
        self, secret: str, request: ModelRequest, listen: Callable[[StreamEvent], None], pulse: Pulse
    ) -> Reply:
        """Thoughts are signed together with all that came before them. Where the conversation was made
        shorter since, the request is refused, nothing of it was done, and it is made once more with the wish
        to drop such thoughts; from then on all carry it."""
        if not self._shortened.is_set():
            try:
                return await self._stream(secret, request, listen, pulse)
            except anthropic.BadRequestError as refused:
                if not _is_of_another_past(refused):
                    raise
            self._shortened.set()
        return await self._stream(secret, request, listen, pulse, send=2)

    async def _stream(
        self,
        secret: str,
        request: ModelRequest,
        listen: Callable[[StreamEvent], None],
        pulse: Pulse,
        send: int = 1,
    ) -> Reply:
        async with self._client(secret, request, send) as client:
            stream = await client.messages.create(
                model=self.name,
                max_tokens=self.max_output_tokens,
                system=self._system(request),
                tools=cast("Any", request.tools),
                messages=cast("Any", _with_cache_mark(request.messages)),
                stream=True,
                extra_body={"thinking": _DROP_FOREIGN_THOUGHTS} if self._shortened.is_set() else None,
            )
            pulse.beat()
            assembly = Assembly()
            async with stream:
                async for event in stream:
                    told = assembly.feed(_as_mapping(event))
                    if assembly.moved:
                        pulse.beat()
                    if told is not None:
                        listen(told)
            return _usable(assembly.reply(stream.response.headers.get("request-id")))

    @property
    def _credential(self) -> Credential:
        return Fixed(self.api_key) if isinstance(self.api_key, str) else self.api_key

    def _system(self, request: ModelRequest) -> list[TextBlockParam]:
        """The metadata, where there is some, comes after what is cached."""
        prompt: TextBlockParam = {"type": "text", "text": request.system, "cache_control": _CACHED}
        said = self.tracing.system(request)
        return [prompt] if said is None else [prompt, {"type": "text", "text": said}]

    @contextlib.asynccontextmanager
    async def _client(
        self, secret: str, request: ModelRequest, send: int = 1
    ) -> AsyncIterator[anthropic.AsyncAnthropic]:
        timeout = httpx2.Timeout(
            self.deadlines.read.total_seconds(), connect=self.deadlines.connect.total_seconds()
        )
        async with anthropic.AsyncAnthropic(
            api_key=secret,
            base_url=self.base_url,
            max_retries=0,
            timeout=timeout,
            default_headers={
                **self.tracing.headers(request, send),
                **(_BINDING_CONTROLS if self._shortened.is_set() else {}),
            },
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
    marked = {**last, "content": [*blocks, {**final, "cache_control": _CACHED}]}
    return [*(message if _is_own(message) else _own(message) for message in earlier), marked]


def _is_own(message: Mapping[str, Any]) -> bool:
    return all(block["type"] in _OWN for block in message["content"])


def _own(message: Mapping[str, Any]) -> Mapping[str, Any]:
    kept: list[Block] = [block for block in message["content"] if block["type"] in _OWN]
    return {**message, "content": kept or [{"type": "text", "text": "(nothing)"}]}


def _is_of_another_past(error: anthropic.BadRequestError) -> bool:
    return "bound to a different conversation" in (error.api_message or "")


def _usable(reply: Reply) -> Reply:
    if reply.stop_reason == "refusal":
        raise meaning.failure(meaning.REFUSED)
    if reply.stop_reason == "model_context_window_exceeded":
        raise meaning.failure(meaning.TOO_LONG)
    return reply


_BY_TYPE: Final[Mapping[str, Meaning]] = {
    "authentication_error": meaning.UNAUTHORIZED,
    "permission_error": meaning.UNAUTHORIZED,
    "billing_error": meaning.BILLING,
    "not_found_error": meaning.UNKNOWN,
    "rate_limit_error": meaning.RATE_LIMITED,
    "overloaded_error": meaning.OVERLOADED,
    "timeout_error": meaning.SLOW,
    "api_error": meaning.SERVER,
    "conflict_error": meaning.CONFLICT,
    "request_too_large": meaning.TOO_LONG,
}


def _as_model_error(error: Exception) -> ModelError | None:
    return model_error(error) if isinstance(error, _FAILURES) else None


def model_error(error: Exception) -> ModelError:
    """Any error of the SDK or of its HTTP client, in our words."""
    if not isinstance(error, anthropic.APIStatusError):
        return meaning.failure(_meaning(error))
    said = error.api_message or f"status {error.status_code}"
    if error.request_id:
        said = f"{said} (request {error.request_id})"
    found = meaning.failure(_meaning_of_status(error), said)
    found.retry_after = retry_after(error.response.headers)
    return found


def _meaning(error: Exception) -> Meaning:
    if isinstance(error, (anthropic.APITimeoutError, httpx2.TimeoutException)):
        return meaning.SLOW
    if isinstance(error, anthropic.APIConnectionError):
        return meaning.UNREACHABLE
    if isinstance(error, (httpx2.TransportError, httpx2.StreamError)):
        return meaning.DROPPED
    return meaning.GARBLED


def _meaning_of_status(error: anthropic.APIStatusError) -> Meaning:
    if meaning.CODE_HEADER in error.response.headers:
        return meaning.of_status(error.status_code, error.response.headers)
    if (meant := meaning.of_words(error.api_message or "")) is not None:
        return meant
    if error.type is not None and error.type in _BY_TYPE:
        return _BY_TYPE[error.type]
    return meaning.of_status(error.status_code, error.response.headers)
