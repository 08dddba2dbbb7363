"""One call from its head to its end: admitted, or refused; then passed through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Final
from uuid import uuid4

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from orchestrator.core import run_token
from orchestrator.core.spending import tokens_expected
from orchestrator.db import spending
from orchestrator.db.run_tokens import Run
from orchestrator.db.spending import NewCall, Refusal
from orchestrator.gateway.dialects import COUNTING, MOST_PARTS, Dialect, Request, parts_of
from orchestrator.gateway.keys import KeyUnavailable
from orchestrator.gateway.observing import Observer
from orchestrator.gateway.refusals import Answer, refuse
from orchestrator.gateway.relaying import Call, Passage, Relay, cost_of, reserved, respond
from orchestrator.gateway.room import PART_BYTES, Place

HOW_TO_SHOW: Final = "Show the run's token: Authorization: Bearer …, or x-api-key."
_BODY_SECONDS: Final = 60.0
_SOON: Final = timedelta(seconds=1)
_LATER: Final = timedelta(seconds=10)
_TOO_MANY: Final = Refusal("too-many-calls", "This run has too many calls in flight.", _SOON)
_NO_ROOM: Final = Refusal("too-many-calls", "The gateway has no room for so long a request now.", _SOON)


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
        """Of a stranger's request nothing is read but its head."""
        passage, token = self._passage(), shown_token(scope)
        if token is None:
            await respond(send, self._refused(Refusal("run-token-invalid", HOW_TO_SHOW)))
            return
        sha256 = run_token.digest(token)
        if (refusal := await passage.books.let_in(sha256)) is not None:
            await respond(send, self._refused(refusal))
            return
        with passage.room.enter(sha256, spending.MOST_AT_ONCE) as place:
            found = _TOO_MANY if place is None else await self._admit(passage, place, scope, receive)
            if isinstance(found, Call):
                await _relay(Relay(passage, found, send), receive)
            else:
                await respond(send, self._refused(found))

    def _refused(self, refusal: Refusal) -> Answer:
        return refuse(self._dialect, refusal.code, refusal.message, refusal.retry_after)

    async def _admit(self, passage: Passage, place: Place, scope: Scope, receive: Receive) -> Call | Refusal:
        """A call that may be sent, its cost reserved; or the refusal. Raises ClientDisconnect."""
        dialect = self._dialect
        body = await _read_body(receive, place, passage.max_body_bytes)
        if isinstance(body, Refusal):
            return body
        if not place.take(min(parts_of(body), MOST_PARTS) * PART_BYTES):  # with more it is refused unread
            return _NO_ROOM
        request = await passage.reading.read(dialect, body)
        if isinstance(request, Refusal):
            return request
        provider = passage.providers.get(dialect.family)
        if provider is None:
            return Refusal("provider-missing", _missing(dialect))
        try:
            secret = await provider.key.current() if provider.key else None
        except KeyUnavailable as unavailable:
            return Refusal(
                "provider-missing", f"{unavailable} Run it by hand, as the gateway's user.", _LATER
            )
        call_id, expected = f"call_{uuid4().hex}", tokens_expected(len(body), request.max_output)
        run = await self._ask(passage, call_id, request, expected, place.whose)
        if isinstance(run, Refusal):
            return run
        outgoing = passage.client.build_request(
            "POST",
            provider.url(dialect, scope.get("query_string", b"")),
            headers=provider.headers(scope["headers"], passage.trace(run), secret, run.sha256),
            content=request.body,
        )
        observer = Observer(dialect, streamed=request.streamed)
        return Call(
            call_id,
            run,
            dialect,
            request,
            outgoing,
            expected,
            observer,
            partial(provider.again, outgoing, secret),
        )

    async def _ask(
        self, passage: Passage, call_id: str, request: Request, expected: tuple[int, int], sha256: str
    ) -> Run | Refusal:
        """Counting tokens is free, and bounded as calls are."""
        free = self._dialect is COUNTING
        dearest = reserved(request, expected)
        call = NewCall(
            id=call_id,
            sha256=sha256,
            gateway_id=passage.gateway_id,
            provider=self._dialect.provider,
            model=request.model,
            dialect=self._dialect.name,
            streamed=request.streamed,
            cost_usd=Decimal(0) if free else cost_of(request.model, dearest, passage.prices),
            tokens=0 if free else sum(expected),
        )
        return await (passage.books.look(call) if free else passage.books.reserve(call))


def shown_token(scope: Scope) -> str | None:
    """By either header; the SDKs differ. Only what has a token's form."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        shown = value.strip()
    else:
        shown = headers.get(b"x-api-key", b"").decode("latin-1").strip()
    return shown if shown.startswith(run_token.PREFIX) else None


async def _relay(relay: Relay, receive: Receive) -> None:
    """Until it is done, or the caller has hung up."""
    relaying, hung_up = asyncio.create_task(relay.run()), asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({relaying, hung_up}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hung_up.cancel()
        if not relaying.done():
            relaying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await relaying


async def _read_body(receive: Receive, place: Place, most: int) -> bytes | Refusal:
    """Raises ClientDisconnect."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await _gathered(receive, place, most)
    except TimeoutError:
        return Refusal("request-malformed", "The body did not arrive in time.")


async def _gathered(receive: Receive, place: Place, most: int) -> bytes | Refusal:
    chunks: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        if place.held + len(chunk) > most:
            return Refusal("body-too-large", f"A request may have {most:,} bytes.")
        if not place.take(len(chunk)):
            return _NO_ROOM
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _missing(dialect: Dialect) -> str:
    name = str(dialect.family).upper()
    return (
        f"The gateway has no key for {dialect.family}."
        f" Give it {name}_API_KEY or ORCHESTRATOR_{name}_API_KEY_COMMAND, and restart it."
    )
