"""The local model server: three APIs on one port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from orchestrator.modelserver import control
from orchestrator.modelserver.asked import Dialect
from orchestrator.modelserver.dialects import FORMS, PATHS
from orchestrator.modelserver.exchange import Exchange
from orchestrator.modelserver.perform import Performance
from orchestrator.modelserver.said import compact, tokens_in
from orchestrator.modelserver.stage import Stage
from orchestrator.modelserver.upstream import UpstreamAway
from orchestrator.modelserver.wire import ClientLeft, Connection, Malformed, Request

_BACKLOG: Final = 512


@dataclass(slots=True)
class ModelServer:
    """Answers for as long as `listening` is entered; what it says is the stage's."""

    stage: Stage
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[int]:
        """Yields the port, which is a free one when 0 was asked for. On leaving, connections are cut."""
        server = await asyncio.start_server(self._connected, host, port, backlog=_BACKLOG)
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for task in set(self._serving):
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio calls us in a task
        self._serving.add(task)
        connection = Connection(reader, writer)
        try:
            await self._serve(connection)
        except asyncio.CancelledError:
            connection.cut()
        finally:
            self._serving.discard(task)
            with contextlib.suppress(asyncio.CancelledError):
                await connection.close()

    async def _serve(self, connection: Connection) -> None:
        with contextlib.suppress(ClientLeft, Malformed):
            while (request := await connection.request()) is not None:
                await self._answer(connection, request)
                if not connection.again():
                    return

    async def _answer(self, connection: Connection, request: Request) -> None:
        path = request.path.rstrip("/") or "/"
        dialect = PATHS.get(path)
        if path.startswith("/_control/"):
            status, body = control.answer(self.stage, request)
            await Performance(connection, Dialect.MESSAGES).answer(status, compact(body).encode(), {})
        elif dialect is not None and request.method == "POST":
            await Exchange(self.stage, connection, request, dialect).run()
        elif self.stage.upstream is not None:
            await self._pass_through(connection, request)
        else:
            await self._beside(connection, request, path)

    async def _beside(self, connection: Connection, request: Request, path: str) -> None:
        """What clients ask for beside replies."""
        door = Performance(connection, Dialect.MESSAGES)
        match request.method, path:
            case "POST", "/v1/messages/count_tokens":
                await door.answer(200, compact({"input_tokens": tokens_in(request.body)}).encode(), {})
            case "GET", "/v1/models" | "/models":
                await door.answer(200, compact(control.models(self.stage.models)).encode(), {})
            case "GET" | "HEAD", "/":
                await _greet(connection, request)
            case _:
                error = FORMS[Dialect.MESSAGES].error(404, f"no {request.method} {path} here")
                await door.answer(404, compact(error).encode(), {})

    async def _pass_through(self, connection: Connection, request: Request) -> None:
        assert self.stage.upstream is not None  # noqa: S101 - the caller looked
        try:
            await self.stage.upstream.pass_through(connection, request, None)
        except UpstreamAway as error:
            body = compact(FORMS[Dialect.MESSAGES].error(502, str(error))).encode()
            await Performance(connection, Dialect.MESSAGES).answer(502, body, {})


async def _greet(connection: Connection, request: Request) -> None:
    """Clients warm a connection up by HEAD."""
    body = compact({"name": "orchestrator model-server"}).encode()
    connection.begin(200, {"content-type": "application/json", "content-length": str(len(body))})
    if request.method == "GET":
        await connection.write(body)
    await connection.end()
