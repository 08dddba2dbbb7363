"""One call from its head to its end: admitted, or refused; then passed through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final
from uuid import uuid4

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from orchestrator.core import run_token
from orchestrator.core.spending import tokens_expected
from orchestrator.db.run_tokens import Run
from orchestrator.db.spending import NewCall, Refusal, Tokens
from orchestrator.gateway.dialects import COUNTING, Dialect, Request, read
from orchestrator.gateway.observing import Observer
from orchestrator.gateway.refusals import Answer, refuse
from orchestrator.gateway.relaying import Call, Passage, Relay, cost_of, respond

HOW_TO_SHOW: Final = "Show the run's token: Authorization: Bearer …, or x-api-key."
_BODY_SECONDS: Final = 60.0


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
        relay = Relay(passage, found, send)
        relaying, hung_up = asyncio.create_task(relay.run()), asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({relaying, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hung_up.cancel()
            if not relaying.done():
                relaying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await relaying

    async def _admit(self, passage: Passage, scope: Scope, receive: Receive) -> Call | Answer:
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
        return Call(call_id, run, dialect, request, outgoing, expected, observer)

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
                cost_usd=cost_of(request.model, Tokens(*expected), passage.prices),
                tokens=sum(expected),
            )
        )


def shown_token(scope: Scope) -> str | None:
    """By either header; the SDKs differ. Only what has a token's form."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        shown = value.strip()
    else:
        shown = headers.get(b"x-api-key", b"").decode("latin-1").strip()
    return shown if shown.startswith(run_token.PREFIX) else None


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
