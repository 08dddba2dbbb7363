"""Passes requests through to a real API and records what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx2

from orchestrator.modelserver.recordings import Recorder
from orchestrator.modelserver.sends import Outcome, Send
from orchestrator.modelserver.wire import Connection, Request

_OF_THE_CONNECTION: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "host", "content-length", "accept-encoding", "content-encoding"),
    }
)
_TIMEOUT: Final = httpx2.Timeout(600, connect=30)


class UpstreamAway(Exception):
    """It gave no answer at all."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """`url` is the API's root, without `/v1`. Keys are the client's own: they pass through."""

    url: str
    recorder: Recorder
    client: httpx2.AsyncClient

    async def pass_through(self, connection: Connection, request: Request, send: Send | None) -> Outcome:
        """Bytes go on as they come. Without a `send` nothing is recorded.
        Raises `ClientLeft`, `UpstreamAway`.
        """
        target = self.url + request.path + (f"?{request.query}" if request.query else "")
        headers = {**_passed(request.headers), "accept-encoding": "identity"}
        asking = self.client.build_request(request.method, target, headers=headers, content=request.body)
        try:
            reply = await self.client.send(asking, stream=True)
        except httpx2.HTTPError as error:
            raise UpstreamAway(f"{self.url} gave no answer: {type(error).__name__}") from error
        try:
            return await self._relay(connection, request, reply, send)
        finally:
            await reply.aclose()

    async def _relay(
        self, connection: Connection, request: Request, reply: httpx2.Response, send: Send | None
    ) -> Outcome:
        headers = {name.lower(): value for name, value in reply.headers.items()}
        length = {"content-length": headers["content-length"]} if "content-length" in headers else {}
        connection.begin(reply.status_code, {**_passed(headers), **length})
        body = bytearray()
        try:
            async for part in reply.aiter_raw():
                await connection.write(part)
                body += part
                if send is not None:
                    send.count()
        except httpx2.HTTPError:
            return Outcome.BROKEN_OFF
        await connection.end()
        if send is not None:
            send.begin(reply.status_code)
            self.recorder.keep(self.url, request, reply.status_code, headers, bytes(body))
        return Outcome.COMPLETE if reply.status_code < httpx2.codes.BAD_REQUEST else Outcome.REFUSED


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in _OF_THE_CONNECTION}


def client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(timeout=_TIMEOUT)
