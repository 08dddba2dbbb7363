"""A call that was admitted: sent once with the real key, streamed back as it comes, settled.

Nothing is ever done twice: only what a provider refused because its key has expired is sent again. Bytes go
on to the caller before they are looked at.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Final

import httpx2
from starlette.types import Message, Send

from orchestrator.db.breakers import Tried
from orchestrator.db.run_tokens import Run
from orchestrator.db.spending import Ended, Tokens
from orchestrator.engine.ports import Usage
from orchestrator.engine.prices import PRICES, Price, cost
from orchestrator.engine.providers.waiting import retry_after
from orchestrator.gateway.books import Books
from orchestrator.gateway.dialects import COUNTING, Dialect, Family, Request
from orchestrator.gateway.evidence import Said
from orchestrator.gateway.observing import Observer, ReplyTooLong, is_usage_chunk
from orchestrator.gateway.providers import Provider, passed_back, without
from orchestrator.gateway.reading import Reading
from orchestrator.gateway.refusals import Answer, refuse
from orchestrator.gateway.room import Room

_OK: Final = range(200, 300)
_KEY_REFUSED: Final = 401
_NO_CODE: Final = re.compile(r"[^A-Za-z0-9_.:/ -]")
_THROTTLED: Final = frozenset({429, 503, 529})
_LEFT: Final = frozenset({"provider-timeout", "reply-too-long"})
"""Ends of a reply that are ours, not the provider's."""
_REMEMBERED: Final = 100_000
"""Tokens of a conversation that the provider remembers, where it doesn't say how many they were."""
_TOKENS_PER_SECOND: Final = 50
"""That a model writes or thinks, about; thoughts may pass unseen."""
_LONGEST_THOUGHT: Final = 128_000
_CACHED: Final = b'"cache_control"'
"""How a request marks what is to be cached."""
_HOUR: Final = b'"1h"'
"""How long a request asks for what it marks to be cached."""
_ESCAPED: Final = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
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
    room: Room
    reading: Reading
    keep: Callable[[Said], None]
    """Takes a call's evidence, once it has ended."""
    prices: Mapping[str, Price] = field(default_factory=lambda: PRICES)
    trace: Callable[[Run], Mapping[str, str]] = lambda _: {}
    """Headers that providers are told of a run."""


async def _never() -> None:
    return None


@dataclass(slots=True)
class Call:
    """One call on its way."""

    id: str
    run: Run
    dialect: Dialect
    request: Request
    outgoing: httpx2.Request
    expected: tuple[int, int]
    observer: Observer
    again: Callable[[], Awaitable[httpx2.Request | None]] = _never
    """The same with another key, after its own was refused; None: there is no other."""
    sent: bool = False
    status: int | None = None
    error: str | None = None
    tried: Tried = Tried.ABANDONED
    cut: bool = True
    """Until it is known better: nobody waits for the rest."""
    began_after: timedelta | None = None
    lasted: float = 0.0
    """Seconds."""
    throttled: timedelta | None = None

    def ended(self, prices: Mapping[str, Price]) -> Ended:
        self.observer.close()
        seen, used = self.observer.seen, self._used()
        if self.cut and seen.ended and self.status in _OK:  # its last event was enough for the caller
            self.cut, self.tried = False, Tried.SUCCEEDED
        failed = self.error or seen.error or self.status not in _OK
        outcome = "cut" if self.cut else "failed" if failed else "done"
        return Ended(
            outcome=outcome,
            http_status=self.status,
            error_code=_code(self.error or seen.error),
            used=used,
            cost_usd=None if used is None else cost_of(self.request.model, used, prices),
            tried=self.tried,
            first_byte_after=self.began_after,
            throttled=self.throttled,
        )

    def presumed(self, ended: Ended, prices: Mapping[str, Price]) -> Ended:
        """What can be written down in any case: as it was reserved, and nothing of what a provider said."""
        used = None if ended.used is None else replace(reserved(self.request, self.expected), estimated=True)
        price = None if used is None else cost_of(self.request.model, used, prices)
        return Ended(ended.outcome, None, "count-unusable", used, price, ended.tried)

    def _used(self) -> Tokens | None:
        """A request that was sent and not refused is paid for, whether or not its reply was read. Of a reply
        that was left at our end the provider may have written more, and thought more, than we have seen."""
        if not self.sent or (self.status is not None and self.status not in _OK):
            return None
        if self.status is None and self.error == "provider-unreachable":
            return None
        left = self.cut or self.status is None or self.error in _LEFT
        read, written = self.expected
        if self.cut:
            most = self.request.max_output or _LONGEST_THOUGHT
            written = max(written, min(most, int(self.lasted * _TOKENS_PER_SECOND)))
        if self.request.content.get("previous_response_id"):  # it reads all that came before, too
            read = max(read, _REMEMBERED)
        return self.observer.tokens(read, written if left else 0, for_an_hour=_says(self.request.body, _HOUR))


def reserved(request: Request, expected: tuple[int, int]) -> Tokens:
    """The dearest that a call of so many input and output tokens can be: where something is to be cached, all
    that is read is taken for that, and for an hour if that is asked for anywhere."""
    read, written = expected
    if not _says(request.body, _CACHED):
        return Tokens(read, written)
    for_an_hour = _says(request.body, _HOUR)
    return Tokens(output=written, cache_write=read, cache_write_hour=read if for_an_hour else 0)


def _says(body: bytes, text: bytes) -> bool:
    """Also where JSON's escapes spell it."""
    if text in body:
        return True
    return b"\\u00" in body and text in _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), body)


def _code(said: str | None) -> str | None:
    """Perhaps a provider's, and shown in terminals."""
    return _NO_CODE.sub("?", said or "")[:80] or None


def cost_of(model: str, used: Tokens, prices: Mapping[str, Price]) -> Decimal | None:
    usage = Usage(used.input, used.output, used.cache_read, used.cache_write, used.cache_write_hour)
    return cost(model, usage, prices)


class Relay:
    """Sends a call that was admitted, and what comes of it back."""

    def __init__(self, passage: Passage, call: Call, send: Send) -> None:
        self._passage = passage
        self._call = call
        self._send = send
        self._begun = False
        self._passing_on = False
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
        call.lasted = self._loop.time() - self._started
        prices = self._passage.prices
        ended = call.ended(prices)
        settling = self._passage.books.settle(call.run, call.id, ended, call.presumed(ended, prices))
        reply = call.observer
        said = Said(call.run, call.id, call.dialect, call.request, reply.seen.content, reply.bytes)
        self._passage.keep(said)
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
                response = await self._answered()
                try:
                    async for chunk in self._reply(response):
                        now = self._loop.time()
                        deadline.reschedule(min(last, now + deadlines.stall.total_seconds()))
                        await self._pass_on({"type": "http.response.body", "body": chunk, "more_body": True})
                finally:
                    await response.aclose()
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout):
            call.sent = False
            return await self._failed("provider-unreachable", "The provider can't be reached.")
        except (TimeoutError, httpx2.TimeoutException):
            if self._passing_on:  # who doesn't read has cut the call, and the provider has not failed
                call.error = "caller-stalled"
                return False
            tried = Tried.ABANDONED if self._asked_for_long(last) else Tried.FAILED
            return await self._failed("provider-timeout", "The provider did not answer in time.", tried)
        except ReplyTooLong:
            return await self._failed("reply-too-long", "The provider's reply is longer than any model's.")
        except httpx2.DecodingError:
            return await self._failed("provider-unreachable", "The provider's reply is encoded.")
        except (httpx2.HTTPError, httpx2.StreamError):
            return await self._failed("provider-unreachable", "The connection to the provider broke.")
        call.cut = False
        call.tried = self._judged()
        return True

    async def _answered(self) -> httpx2.Response:
        """A key that has expired is refused before anything is done: only then, and only if there is
        another one, the call is sent once more, with that."""
        call, client = self._call, self._passage.client
        response = await client.send(call.outgoing, stream=True)
        if response.status_code != _KEY_REFUSED or (again := await call.again()) is None:
            return response
        await response.aclose()
        return await client.send(again, stream=True)

    async def _reply(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """Its bytes, after its head."""
        call = self._call
        call.status = response.status_code
        if call.status in _THROTTLED:
            call.throttled = retry_after(response.headers)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx2.DecodingError("encoded, which nobody asked for")
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        call.observer = Observer(call.dialect, streamed=streamed)
        headers = passed_back(response.headers.raw, _key_of(response.request))
        if call.dialect is not COUNTING:
            headers.append((b"x-orchestrator-call", call.id.encode()))
        await self._begin(call.status, headers)
        if call.status not in _OK:
            yield await self._without_key(response)
            return
        hides_usage = call.request.hides_usage and call.status in _OK and streamed
        async for chunk in response.aiter_raw():
            self._note_first_byte()
            if not hides_usage:
                yield chunk
            for raw, data in call.observer.feed(chunk):
                if hides_usage and not is_usage_chunk(data):
                    yield raw
        if hides_usage and (rest := call.observer.rest()):
            yield rest

    async def _without_key(self, response: httpx2.Response) -> bytes:
        """What is said of an error, whole: some servers show what key they were sent."""
        body: list[bytes] = []
        async for chunk in response.aiter_raw():
            self._note_first_byte()
            body.append(chunk)
            for _ in self._call.observer.feed(chunk):
                pass
        return without(_key_of(response.request), b"".join(body))

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._begun = True
        await self._pass_on({"type": "http.response.start", "status": status, "headers": headers})

    async def _pass_on(self, message: Message) -> None:
        self._passing_on = True
        await self._send(message)
        self._passing_on = False

    def _note_first_byte(self) -> None:
        if self._call.began_after is None:
            self._call.began_after = timedelta(seconds=self._loop.time() - self._started)

    def _asked_for_long(self, last: float) -> bool:
        """A caller can ask for so much that no provider has done it in time, and must not get all others'
        calls refused by that."""
        call = self._call
        return not call.request.streamed or (self._loop.time() >= last and call.observer.seen.written > 0)

    async def _failed(self, code: str, message: str, tried: Tried = Tried.FAILED) -> bool:
        """Before the reply began it is a refusal; after, the connection is cut without its end."""
        call = self._call
        call.cut, call.error, call.tried = False, code, tried
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
        if call.status in _OK and (seen.error or not seen.ended):
            call.error = call.error or seen.error or "stream-truncated"
            return Tried.FAILED
        return Tried.SUCCEEDED


def _key_of(request: httpx2.Request) -> bytes:
    """The real one, that the provider was shown; empty without one."""
    shown = request.headers.get("x-api-key") or request.headers.get("authorization") or ""
    return shown.removeprefix("Bearer ").encode()


async def respond(send: Send, answer: Answer) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
