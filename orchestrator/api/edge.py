"""What happens to every request before and after its route: id, allowed host, size of the body, headers."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.ids import new_id
from orchestrator.api.problems import problem
from orchestrator.commands.request import too_large
from orchestrator.core.errors import OrchestratorError, Refused

log: Final = structlog.get_logger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,80}")
_SECURITY: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, listens_on: str) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._loopback_only = _is_loopback(listens_on)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        began = False

        async def sending(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                fresh = MutableHeaders(scope=message)
                for name, value in (*_SECURITY.items(), ("Cache-Control", "no-store")):
                    fresh.setdefault(name, value)
                fresh["X-Request-Id"] = request_id
            await send(message)

        try:
            self._check_host(headers)
            received = await self._body(scope, headers, receive)
            await self._app(scope, received, sending)
        except OrchestratorError as error:
            await problem(error, scope["path"], request_id)(scope, receive, sending)
        except Exception:
            log.exception("request_failed", request_id=request_id, path=scope["path"])
            if began:
                raise
            internal = OrchestratorError(
                "internal-error",
                "Something unexpected went wrong; the server's log has the details.",
                f"Report it with the id {request_id}.",
            )
            await problem(internal, scope["path"], request_id)(scope, receive, sending)

    def _check_host(self, headers: Headers) -> None:
        """A server on loopback is called by a loopback name, or by a web page that has no business here."""
        host = headers.get("host", "")
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        if self._loopback_only and not _is_loopback(name):
            raise Refused(
                "host-not-allowed",
                f"This server listens on loopback only and isn't called {name[:80]!r}.",
                "Call it as 127.0.0.1 or localhost.",
            )

    async def _body(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """The whole body is read first, so that an oversized one reaches no parser."""
        if scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            return receive
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return _replay(message)
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > self._max_body_bytes:
                raise too_large(self._max_body_bytes)
        return _replay({"type": "http.request", "body": b"".join(chunks), "more_body": False}, receive)


def _replay(first: Message, then: Receive | None = None) -> Receive:
    messages = [first]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        return await then() if then else first

    return receive


def _is_loopback(name: str) -> bool:
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
