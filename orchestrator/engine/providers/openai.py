"""OpenAI's APIs, and servers that speak like them, through the official SDK.

Traps of the SDK that shape this file: an error in mid-stream is a plain APIError without a status; a
connection that drops in mid-stream raises httpx2's own error or APIConnectionError; keep-alive comments reset
its timeout, so a dead stream lives for ever; its retries would hide attempts from us.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any, Literal, Protocol, cast

import httpx2
import openai

from orchestrator.core.assignment import Stop
from orchestrator.engine.ports import ModelRequest, Reply, StreamEvent
from orchestrator.engine.providers import chat, live, meaning, responses
from orchestrator.engine.providers.continuity import Answered, Continuity
from orchestrator.engine.providers.credential import Credential, Fixed
from orchestrator.engine.providers.live import Deadlines, Pulse, with_credential
from orchestrator.engine.providers.openai_errors import as_model_error, lost_its_past
from orchestrator.engine.providers.tracing import BY_HEADERS, Tracing


class Assembling(Protocol):
    moved: bool
    response_id: str | None

    def feed(self, event: Mapping[str, Any], /) -> list[StreamEvent]: ...

    def reply(self, request_id: str | None, /) -> Reply: ...


@dataclass(frozen=True, slots=True)
class OpenAIModel:
    """One live model; each reply has a client of its own. `base_url` ends with the version: `…/v1`.

    `store`: the server keeps responses (for weeks), and a turn goes on from the one before where the
    conversation does. Without it every turn tells the whole conversation, which prompt caching makes cheap.
    """

    name: str
    api_key: str | Credential = field(repr=False)
    base_url: str = "https://api.openai.com/v1"
    api: Literal["responses", "chat"] = "responses"
    max_output_tokens: int = 16_000
    deadlines: Deadlines = live.USUAL
    kind: Literal["live"] = "live"
    tracing: Tracing = BY_HEADERS
    store: bool = False
    metered: bool = False
    context_tokens: int | None = None
    _continuity: Continuity = field(default_factory=Continuity, repr=False, compare=False)
    _tls: SSLContext = field(default_factory=httpx2.create_ssl_context, repr=False, compare=False)

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        async def stream(pulse: Pulse) -> Reply:
            return await with_credential(
                self._credential,
                lambda secret: self._send(secret, request, listen, pulse),
                openai.AuthenticationError,
            )

        return live.answer(stream, stop, self.deadlines, as_model_error)

    async def _send(
        self, secret: str, request: ModelRequest, listen: Callable[[StreamEvent], None], pulse: Pulse
    ) -> Reply:
        """A past that the server has lost is told again, in one more request: that one was refused, and
        nothing of it was done."""
        if self.api == "chat":
            return await self._stream(secret, request, self._for_chat(request), listen, pulse)
        past = self._continuity.take(request) if self.store else None
        try:
            return await self._stream(secret, request, self._for_responses(request, past), listen, pulse)
        except openai.APIStatusError as refused:
            if past is None or not lost_its_past(refused):
                raise
        body = self._for_responses(request, None)
        return await self._stream(secret, request, body, listen, pulse, send=2)

    async def _stream(
        self,
        secret: str,
        request: ModelRequest,
        body: Mapping[str, Any],
        listen: Callable[[StreamEvent], None],
        pulse: Pulse,
        send: int = 1,
    ) -> Reply:
        async with self._client(secret, self.tracing.headers(request, send)) as client:
            stream = await self._begin(client, body)
            pulse.beat()
            assembly = self._assembly()
            async with stream:
                async for event in stream:
                    told = assembly.feed(_as_mapping(event))
                    if assembly.moved:
                        pulse.beat()
                    for each in told:
                        listen(each)
            reply = assembly.reply(stream.response.headers.get("x-request-id"))
            if self.store and assembly.response_id:
                self._continuity.keep(request, reply, assembly.response_id)
            return reply

    async def _begin(self, client: openai.AsyncOpenAI, body: Mapping[str, Any]) -> openai.AsyncStream[Any]:
        """The SDK's one name for a connection that failed here and one that breaks later is told apart."""
        create: Any = client.chat.completions.create if self.api == "chat" else client.responses.create
        try:
            return cast("openai.AsyncStream[Any]", await create(**body, stream=True))
        except openai.APITimeoutError:
            raise
        except openai.APIConnectionError as unreached:
            raise meaning.failure(meaning.UNREACHABLE) from unreached

    def _assembly(self) -> Assembling:
        return chat.ChatAssembly() if self.api == "chat" else responses.ResponsesAssembly(self.name)

    def _for_responses(self, request: ModelRequest, past: Answered | None) -> Mapping[str, Any]:
        new = request.messages if past is None else request.messages[len(past.messages) + 1 :]
        return {
            "model": self.name,
            "instructions": "\n\n".join(self._system(request)),
            "input": responses.items(new, self.name),
            "tools": responses.tools(request.tools),
            "max_output_tokens": self.max_output_tokens,
            "store": self.store,
            **({} if self.store else {"include": ["reasoning.encrypted_content"]}),
            **({} if past is None else {"previous_response_id": past.response_id}),
            **({} if request.call is None else {"prompt_cache_key": request.call.step_id}),
        }

    def _for_chat(self, request: ModelRequest) -> Mapping[str, Any]:
        tools = chat.tools(request.tools)
        return {
            "model": self.name,
            "messages": chat.messages(self._system(request), request.messages),
            "max_completion_tokens": self.max_output_tokens,
            "stream_options": {"include_usage": True},
            **({"tools": tools} if tools else {}),
        }

    def _system(self, request: ModelRequest) -> list[str]:
        said = self.tracing.system(request)
        return [request.system] if said is None else [request.system, said]

    @property
    def _credential(self) -> Credential:
        return Fixed(self.api_key) if isinstance(self.api_key, str) else self.api_key

    @contextlib.asynccontextmanager
    async def _client(self, secret: str, headers: Mapping[str, str]) -> AsyncIterator[openai.AsyncOpenAI]:
        timeout = httpx2.Timeout(
            self.deadlines.read.total_seconds(), connect=self.deadlines.connect.total_seconds()
        )
        async with openai.AsyncOpenAI(
            api_key=secret,
            base_url=self.base_url,
            max_retries=0,
            timeout=timeout,
            default_headers=headers,
            http_client=openai.DefaultAsyncHttpxClient(verify=self._tls, timeout=timeout),
        ) as client:
            yield client


def _as_mapping(event: object) -> Mapping[str, Any]:
    """The SDK passes on whatever JSON came: only what it took for an event has fields."""
    return event.to_dict() if isinstance(event, openai.BaseModel) else {}
