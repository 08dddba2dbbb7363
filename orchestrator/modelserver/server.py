"""The local model server: three APIs on one port, played from a script or from recordings."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from orchestrator.modelserver import control, responses
from orchestrator.modelserver.asked import Asked, Dialect, NotUnderstood
from orchestrator.modelserver.dialects import FORMS, PATHS
from orchestrator.modelserver.faults import HARMLESS, Fault, FaultPlan, Kind
from orchestrator.modelserver.perform import Performance
from orchestrator.modelserver.said import Said, compact, tokens_in
from orchestrator.modelserver.script import NoLine, Player, Script, said, spoiled
from orchestrator.modelserver.sends import Outcome, Send, SendLog, key_of, session_of
from orchestrator.modelserver.wire import ClientLeft, Connection, Malformed, Request

_RESPONSES_KEPT: Final = 1000
_JSON: Final = {"content-type": "application/json"}


@dataclass(slots=True)
class ModelServer:
    """Everything that one server knows. Used from the event loop that serves; the log from any thread."""

    player: Player
    log: SendLog = field(default_factory=SendLog)
    faults: FaultPlan = field(default_factory=FaultPlan)
    models: Sequence[str] = Script().models
    _responses: OrderedDict[str, list[Mapping[str, Any]]] = field(default_factory=OrderedDict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _run: str = field(default_factory=lambda: secrets.token_hex(4))
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    def load(self, script: Script) -> None:
        """Plays this script from now on; its faults take the place of those that stood."""
        self.player, self.models, self.faults = script, script.models, FaultPlan(script.faults)

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[int]:
        """Serves until left; yields the port, which is a free one when 0 was asked for."""
        server = await asyncio.start_server(self._connected, host, port, limit=2**20, backlog=512)
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
        with contextlib.suppress(ClientLeft):
            while True:
                try:
                    request = await connection.request()
                except Malformed:
                    return
                if request is None:
                    return
                await self._answer(connection, request)
                if not connection.again():
                    return

    async def _answer(self, connection: Connection, request: Request) -> None:
        path = request.path.rstrip("/") or "/"
        door = Performance(connection, Dialect.MESSAGES)
        dialect = PATHS.get(path)
        if dialect is not None and request.method == "POST":
            await _Exchange(self, connection, request, dialect).run()
        elif path.startswith("/_control/"):
            status, body = control.answer(self, request)
            await door.answer(status, compact(body).encode(), {})
        elif path == "/v1/messages/count_tokens" and request.method == "POST":
            await door.answer(200, compact({"input_tokens": tokens_in(request.body)}).encode(), {})
        elif path in {"/v1/models", "/models"} and request.method == "GET":
            await door.answer(200, compact(control.models(self.models)).encode(), {})
        elif path == "/" and request.method in {"GET", "HEAD"}:
            await self._greet(connection, request)
        else:
            error = FORMS[Dialect.MESSAGES].error(404, f"no {request.method} {path} here")
            await door.answer(404, compact(error).encode(), {})

    async def _greet(self, connection: Connection, request: Request) -> None:
        """Clients warm a connection up by HEAD."""
        body = compact({"name": "orchestrator model-server"}).encode()
        connection.begin(200, {**_JSON, "content-length": str(len(body))})
        if request.method == "GET":
            await connection.write(body)
        await connection.end()

    # ---- what exchanges need

    def new_send_id(self) -> str:
        return f"{self._run}{next(self._numbers):06x}"

    def keep_response(self, response_id: str, items: list[Mapping[str, Any]]) -> None:
        self._responses[response_id] = items
        while len(self._responses) > _RESPONSES_KEPT:
            self._responses.popitem(last=False)

    def kept_response(self, response_id: str) -> list[Mapping[str, Any]] | None:
        return self._responses.get(response_id)


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(slots=True)
class _Exchange:
    """One request to a model and its reply."""

    server: ModelServer
    connection: Connection
    request: Request
    dialect: Dialect
    earlier: list[Mapping[str, Any]] = field(default_factory=list)

    async def run(self) -> None:
        """Raises `ClientLeft`."""
        try:
            body, asked = self._read()
        except _Refused as refused:
            await self._refuse(refused, self._opened({}, None))
            return
        send = self._opened(body, asked)
        try:
            await self._reply(asked, send)
        except _Refused as refused:
            await self._refuse(refused, send)
        except ClientLeft:
            self.server.log.close(send, Outcome.CLIENT_LEFT)
            raise
        finally:
            self.server.log.close(send, Outcome.BROKEN_OFF)

    def _read(self) -> tuple[dict[str, Any], Asked]:
        if key_of(self.request.headers) is None:
            raise _Refused(401, "a key is required, as x-api-key or as a bearer token")
        try:
            body = json.loads(self.request.body)
        except ValueError as error:
            raise _Refused(400, f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise _Refused(400, "the body is not a JSON object")
        try:
            return body, self._asked(body)
        except NotUnderstood as error:
            raise _Refused(400, str(error)) from error

    def _asked(self, body: dict[str, Any]) -> Asked:
        if self.dialect is not Dialect.RESPONSES:
            return FORMS[self.dialect].read(body)
        if (previous := body.get("previous_response_id")) is not None:
            kept = self.server.kept_response(str(previous))
            if kept is None:
                message = f"Previous response with id '{previous}' not found."
                raise _Refused(400, message, "previous_response_not_found")
            self.earlier = kept
        return responses.read(body, self.earlier)

    def _opened(self, body: dict[str, Any], asked: Asked | None) -> Send:
        headers = self.request.headers
        return self.server.log.open(
            self.request.path,
            headers,
            self.request.body,
            dialect=str(self.dialect),
            model=asked.model if asked else "",
            stream=asked.stream if asked else False,
            session=session_of(headers, asked.opening if asked else ""),
            body=body,
        )

    async def _refuse(self, refused: _Refused, send: Send) -> None:
        send.status, send.problem = refused.status, str(refused)
        error = FORMS[self.dialect].error(refused.status, str(refused), refused.code)
        self.server.log.close(send, Outcome.REFUSED)
        await Performance(self.connection, self.dialect).answer(
            refused.status, compact(error).encode(), {"x-should-retry": "false"}
        )

    async def _reply(self, asked: Asked, send: Send) -> None:
        try:
            played = self.server.player.play(asked, self.request.headers)
            self.server.log.place(send, played.conversation, played.number, side=played.side)
            fault = self.server.faults.take(asked, self.request.headers)
            if fault is None and send.nth <= len(played.turn.faults):
                fault = played.turn.faults[send.nth - 1]
            turn = played.turn if fault is None else spoiled(played.turn, fault.kind)
            words = said(
                turn, asked, number=played.number, send=self.server.new_send_id(), at=int(time.time())
            )
        except NoLine as error:
            raise _Refused(400, f"{error} [script]") from error
        await self._speak(words, fault, send, asked, turn.pace)

    async def _speak(self, words: Said, fault: Fault | None, send: Send, asked: Asked, pace: float) -> None:
        send.fault = fault.kind if fault else None
        rendering = FORMS[self.dialect].render(words, stream=asked.stream)
        send.usage = {"input_tokens": words.counts.input_tokens, "output_tokens": words.counts.output_tokens}

        performance = Performance(self.connection, self.dialect, send.count, send.begin, pace)
        if fault is not None and self.dialect is Dialect.RESPONSES and fault.kind is Kind.FAILED_EVENT:
            performance = replace(performance, failure=responses.failed_event(words, fault))
        outcome = await performance.play(rendering, fault)
        if outcome is Outcome.COMPLETE:
            send.finished = fault is None or fault.kind in HARMLESS
            self._keep(words)
        self.server.log.close(send, outcome)

    def _keep(self, words: Said) -> None:
        """For `previous_response_id`, unless the client said not to."""
        if self.dialect is Dialect.RESPONSES and words.echo.get("store") is not False:
            items = [*self.earlier, *responses.input_of(words.echo), *responses.output_of(words)]
            self.server.keep_response(f"resp_{words.send}", items)
