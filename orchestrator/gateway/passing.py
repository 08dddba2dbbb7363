"""One call, passed through: admitted, sent once with the real key, streamed back as it comes, settled.

Nothing is ever sent twice. Bytes go on to the caller before they are looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Final
from uuid import uuid4

import httpx2
import structlog
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from orchestrator.core import run_token
from orchestrator.core.spending import tokens_expected
from orchestrator.db.breakers import Tried
from orchestrator.db.run_tokens import Run
from orchestrator.db.spending import Ended, NewCall, Refusal, Tokens
from orchestrator.engine.ports import Usage
from orchestrator.engine.prices import PRICES, Price, cost
from orchestrator.engine.untrusted import storable
from orchestrator.gateway.books import Books
from orchestrator.gateway.dialects import COUNTING, Dialect, Family, Request, read
from orchestrator.gateway.evidence import Said
from orchestrator.gateway.frames import Frames
from orchestrator.gateway.observing import Observer, is_usage_chunk
from orchestrator.gateway.providers import Provider, passed_back
from orchestrator.gateway.refusals import Answer, refuse

log: Final = structlog.get_logger(__name__)
_OK: Final = 200
HOW_TO_SHOW: Final = "Show the run's token: Authorization: Bearer …, or x-api-key."
_THROTTLED: Final = frozenset({429, 503, 529})
_BODY_SECONDS: Final = 60.0
_SETTLE_SECONDS: Final = 2.0
"""So long the end of a reply waits for its settling: who reads that end, finds it written down."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    first_byte: timedelta
    stall: timedelta
    call: timedelta


@dataclass(frozen=True, slots=True)
class Passage:
    """What all calls of one gateway share."""

    gateway_id: str
    providers: Mapping[Family, Provider]
    books: Books
    client: httpx2.AsyncClient
    deadlines: Deadlines
    max_body_bytes: int
    keep: Callable[[Said], None]
    """Takes a call's evidence, once it has ended."""
    prices: Mapping[str, Price] = field(default_factory=lambda: PRICES)
    trace: Callable[[Run], Mapping[str, str]] = lambda _: {}
    """Headers that providers are told of a run."""


@dataclass(slots=True)
class _Call:
    """One call on its way."""

    id: str
    run: Run
    dialect: Dialect
    request: Request
    outgoing: httpx2.Request
    expected: tuple[int, int]
    observer: Observer
    sent: bool = False
    status: int | None = None
    error: str | None = None
    tried: Tried = Tried.ABANDONED
    cut: bool = True
    """Until it is known better: nobody waits for the rest."""
    began_after: timedelta | None = None
    throttled: timedelta | None = None

    def ended(self, prices: Mapping[str, Price]) -> Ended:
        self.observer.close()
        seen = self.observer.seen
        if self.cut and seen.ended and self.status == _OK:  # its last event was enough for the caller
            self.cut, self.tried = False, Tried.SUCCEEDED
        used = self._used()
        failed = self.error or seen.error or self.status != _OK
        outcome = "cut" if self.cut else "failed" if failed else "done"
        return Ended(
            outcome=outcome,
            http_status=self.status,
            error_code=storable(self.error or seen.error or "")[:80] or None,
            used=used,
            cost_usd=None if used is None else _cost(self.request.model, used, prices),
            tried=self.tried,
            first_byte_after=self.began_after,
            throttled=self.throttled,
        )

    def _used(self) -> Tokens | None:
        """A request that was sent and not refused is paid for, whether or not its reply was read."""
        if not self.sent or self.status not in {None, _OK}:
            return None
        if self.status is None and self.error == "provider-unreachable":
            return None
        return self.observer.tokens(self.expected[0], self.expected[1] if self.status is None else 0)


def _cost(model: str, used: Tokens, prices: Mapping[str, Price]) -> Decimal | None:
    return cost(model, Usage(used.input, used.output, used.cache_read, used.cache_write), prices)


class Passing:
    """An ASGI application: one path of one dialect."""

    def __init__(self, passage: Callable[[], Passage], dialect: Dialect) -> None:
        self._passage = passage
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passing = asyncio.create_task(self._pass(scope, receive, send))
        try:
            await passing
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            passing.cancel()
            with contextlib.suppress(asyncio.CancelledError, ClientDisconnect):
                await passing
            raise

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        passage = self._passage()
        found = await self._admit(passage, scope, receive)
        if isinstance(found, Answer):
            await respond(send, found)
            return
        relay = _Relay(passage, found, send)
        relaying, hung_up = asyncio.create_task(relay.run()), asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({relaying, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hung_up.cancel()
            if not relaying.done():
                relaying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await relaying

    async def _admit(self, passage: Passage, scope: Scope, receive: Receive) -> _Call | Answer:
        """A call that may be sent, its cost reserved; or the refusal. Raises ClientDisconnect."""
        dialect = self._dialect
        token = shown_token(scope)
        if token is None:  # before anything of a stranger's is read
            return refuse(dialect, "run-token-invalid", HOW_TO_SHOW)
        try:
            body = await asyncio.wait_for(_read_body(receive, passage.max_body_bytes), _BODY_SECONDS)
        except TimeoutError:
            return refuse(dialect, "request-malformed", "The body did not arrive in time.")
        if body is None:
            text = f"A request may have {passage.max_body_bytes:,} bytes."
            return refuse(dialect, "body-too-large", text)
        request = read(dialect, body)
        if isinstance(request, str):
            return refuse(dialect, "request-malformed", request)
        provider = passage.providers.get(dialect.family)
        if provider is None:
            return refuse(dialect, "provider-missing", _missing(dialect))
        call_id, expected = f"call_{uuid4().hex}", tokens_expected(len(body), request.max_output)
        run = await self._ask(passage, call_id, request, expected, run_token.digest(token))
        if isinstance(run, Refusal):
            return refuse(dialect, run.code, run.message, run.retry_after)
        outgoing = passage.client.build_request(
            "POST",
            provider.url(dialect, scope.get("query_string", b"")),
            headers=provider.headers(scope["headers"], passage.trace(run)),
            content=request.body,
        )
        observer = Observer(dialect, streamed=request.streamed)
        return _Call(call_id, run, dialect, request, outgoing, expected, observer)

    async def _ask(
        self, passage: Passage, call_id: str, request: Request, expected: tuple[int, int], sha256: str
    ) -> Run | Refusal:
        """Counting tokens is free, and for the same models."""
        if self._dialect is COUNTING:
            run = await passage.books.find(sha256)
            if isinstance(run, Run) and not run.may_use(request.model):
                return Refusal("model-not-allowed", f"This run may not use {request.model[:80]!r}.")
            return run
        return await passage.books.reserve(
            NewCall(
                id=call_id,
                sha256=sha256,
                gateway_id=passage.gateway_id,
                provider=self._dialect.provider,
                model=request.model,
                dialect=self._dialect.name,
                streamed=request.streamed,
                cost_usd=_cost(request.model, Tokens(*expected), passage.prices),
                tokens=sum(expected),
            )
        )


class _Relay:
    """Sends a call that was admitted, and what comes of it back."""

    def __init__(self, passage: Passage, call: _Call, send: Send) -> None:
        self._passage = passage
        self._call = call
        self._send = send
        self._begun = False
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    async def run(self) -> None:
        """Settles in any case. A reply that breaks off, breaks off for the caller too."""
        whole = False
        try:
            whole = await self._within_deadlines()
        finally:
            settling = self._settle()
        await asyncio.wait({settling}, timeout=_SETTLE_SECONDS)
        if whole:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _settle(self) -> asyncio.Task[None]:
        call = self._call
        if call.dialect is COUNTING:
            return self._loop.create_task(asyncio.sleep(0))
        settling = self._passage.books.settle(call.id, call.ended(self._passage.prices))
        self._passage.keep(Said(call.run, call.id, call.dialect, call.request, call.observer.seen.content))
        return settling

    async def _within_deadlines(self) -> bool:
        """True: the reply was passed on to its end."""
        call, deadlines = self._call, self._passage.deadlines
        last = self._started + deadlines.call.total_seconds()
        try:
            async with asyncio.timeout_at(
                min(last, self._started + deadlines.first_byte.total_seconds())
            ) as deadline:
                call.sent = True
                response = await self._passage.client.send(self._call.outgoing, stream=True)
                try:
                    async for chunk in self._reply(response):
                        now = self._loop.time()
                        deadline.reschedule(min(last, now + deadlines.stall.total_seconds()))
                        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
                finally:
                    await response.aclose()
        except (TimeoutError, httpx2.TimeoutException):
            return await self._failed("provider-timeout", "The provider did not answer in time.")
        except httpx2.ConnectError:
            call.sent = False
            return await self._failed("provider-unreachable", "The provider can't be reached.")
        except (httpx2.HTTPError, httpx2.StreamError):
            return await self._failed("provider-unreachable", "The connection to the provider broke.")
        call.cut = False
        call.tried = self._judged()
        return True

    async def _reply(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """Its bytes, after its head."""
        call = self._call
        call.status = response.status_code
        encoded = "content-encoding" in response.headers
        if call.status in _THROTTLED:
            call.throttled = _retry_after(response.headers)
        kind = response.headers.get("content-type", "")
        call.observer = Observer(call.dialect, streamed=kind.startswith("text/event-stream"))
        headers = passed_back(response.headers.raw, decoded=encoded)
        if call.dialect is not COUNTING:
            headers.append((b"x-orchestrator-call", call.id.encode()))
        await self._begin(call.status, headers)
        chunks = response.aiter_bytes() if encoded else response.aiter_raw()
        if call.request.hides_usage and call.status == _OK:
            async for chunk in self._without_usage(chunks):
                yield chunk
            return
        async for chunk in chunks:
            self._note_first_byte()
            yield chunk
            call.observer.feed(chunk)

    async def _without_usage(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        frames = Frames()
        async for chunk in chunks:
            self._note_first_byte()
            for raw, data in frames.feed(chunk):
                if not is_usage_chunk(data):
                    yield raw
                self._call.observer.take(data)
        if rest := frames.rest():
            yield rest

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def _note_first_byte(self) -> None:
        if self._call.began_after is None:
            self._call.began_after = timedelta(seconds=self._loop.time() - self._started)

    async def _failed(self, code: str, message: str) -> bool:
        """Before the reply began it is a refusal; after, the connection is cut without its end."""
        call = self._call
        call.cut, call.error, call.tried = False, code, Tried.FAILED
        if not self._begun:
            await respond(self._send, refuse(call.dialect, code, message))
        return False

    def _judged(self) -> Tried:
        """How the provider did. Being throttled, or asked for nonsense, is no failure of its own."""
        call = self._call
        if call.status is None or call.status >= 500:  # noqa: PLR2004
            return Tried.FAILED
        if call.status == 429:  # noqa: PLR2004
            return Tried.ABANDONED
        call.observer.close()
        seen = call.observer.seen
        if call.status == _OK and (seen.error or not seen.ended):
            call.error = call.error or seen.error or "stream-truncated"
            return Tried.FAILED
        return Tried.SUCCEEDED


def shown_token(scope: Scope) -> str | None:
    """By either header; the SDKs differ. Only what has a token's form."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        shown = value.strip()
    else:
        shown = headers.get(b"x-api-key", b"").decode("latin-1").strip()
    return shown if shown.startswith(run_token.PREFIX) else None


async def respond(send: Send, answer: Answer) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


async def _read_body(receive: Receive, most: int) -> bytes | None:
    """None: it is longer. Raises ClientDisconnect."""
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > most:
            return None
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _missing(dialect: Dialect) -> str:
    name = str(dialect.family).upper()
    return f"The gateway has no key for {dialect.family}. Give it {name}_API_KEY, and restart it."


def _retry_after(headers: httpx2.Headers) -> timedelta | None:
    """In either spelling; a date or nonsense counts as none."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with contextlib.suppress(ValueError, OverflowError):
            if (seconds := float(headers.get(name, "nan")) / unit) > 0:
                return timedelta(seconds=seconds)
    return None
