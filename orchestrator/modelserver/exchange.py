"""One request to a model and its reply."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.modelserver import responses
from orchestrator.modelserver.asked import Asked, Dialect, NotUnderstood
from orchestrator.modelserver.dialects import FORMS
from orchestrator.modelserver.faults import HARMLESS, Fault, Kind
from orchestrator.modelserver.perform import Performance
from orchestrator.modelserver.said import Rendering, Said, compact
from orchestrator.modelserver.script import NoLine, Played, said, spoiled
from orchestrator.modelserver.sends import Outcome, Send, key_of, session_of
from orchestrator.modelserver.stage import Stage
from orchestrator.modelserver.upstream import UpstreamAway
from orchestrator.modelserver.wire import ClientLeft, Connection, Request


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(slots=True)
class Exchange:
    """Reads, plays and logs. `earlier` is what a `previous_response_id` stands for."""

    stage: Stage
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
            self.stage.log.close(send, Outcome.CLIENT_LEFT)
            raise
        finally:
            self.stage.log.close(send, Outcome.BROKEN_OFF)

    # ---- reading

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
            kept = self.stage.kept_response(str(previous))
            if kept is None and self.stage.knows_ids:
                message = f"Previous response with id '{previous}' not found."
                raise _Refused(400, message, "previous_response_not_found")
            self.earlier = kept or []
        return responses.read(body, self.earlier)

    def _opened(self, body: dict[str, Any], asked: Asked | None) -> Send:
        headers = self.request.headers
        return self.stage.log.open(
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
        send.problem = str(refused)
        error = FORMS[self.dialect].error(refused.status, str(refused), refused.code)
        self.stage.log.end(send, Outcome.REFUSED, refused.status)
        await Performance(self.connection, self.dialect).answer(
            refused.status, compact(error).encode(), {"x-should-retry": "false"}
        )

    # ---- replying

    async def _reply(self, asked: Asked, send: Send) -> None:
        if self.stage.upstream is not None:
            await self._pass_through(asked, send)
            return
        try:
            played = self.stage.player.play(asked, self.request.headers)
            fault = self._fault(played, asked, send)
            if played.recorded is None:
                await self._speak(played, fault, asked, send)
            else:
                performance = Performance(self.connection, self.dialect, send.count, send.begin)
                await self._perform(performance, played.recorded, fault, send)
        except NoLine as error:
            raise _Refused(400, f"model-server: {error}") from error

    def _fault(self, played: Played, asked: Asked, send: Send) -> Fault | None:
        if played.opening is not None:
            send.session = session_of(self.request.headers, played.opening)
        self.stage.log.place(send, played.conversation, played.number, side=played.side)
        fault = self.stage.faults.take(asked, played.number, self.request.headers)
        if fault is None and send.nth <= len(played.turn.faults):
            fault = played.turn.faults[send.nth - 1]
        send.fault = fault.kind if fault else None
        return fault

    async def _speak(self, played: Played, fault: Fault | None, asked: Asked, send: Send) -> None:
        turn = played.turn if fault is None else spoiled(played.turn, fault.kind)
        new_id, now = self.stage.new_send_id(), int(time.time())
        words = said(turn, asked, number=played.number, send=new_id, at=now)
        send.usage = {"input_tokens": words.counts.input_tokens, "output_tokens": words.counts.output_tokens}
        failing = fault is not None and self.dialect is Dialect.RESPONSES and fault.kind is Kind.FAILED_EVENT
        performance = Performance(
            self.connection,
            self.dialect,
            told=send.count,
            begun=send.begin,
            pace=turn.pace,
            failure=responses.failed_event(words, fault) if failing and fault else None,
        )
        rendering = FORMS[self.dialect].render(words, stream=asked.stream)
        if await self._perform(performance, rendering, fault, send) is Outcome.COMPLETE:
            self._keep(words)

    async def _perform(
        self, performance: Performance, rendering: Rendering, fault: Fault | None, send: Send
    ) -> Outcome:
        outcome = await performance.play(rendering, fault)
        if outcome is Outcome.COMPLETE:
            send.finished = fault is None or fault.kind in HARMLESS
        self.stage.log.close(send, outcome)
        return outcome

    def _keep(self, words: Said) -> None:
        """Unless the client said not to."""
        if self.dialect is Dialect.RESPONSES and words.echo.get("store") is not False:
            items = [*self.earlier, *responses.input_of(words.echo), *responses.output_of(words)]
            self.stage.keep_response(f"resp_{words.send}", items)

    async def _pass_through(self, asked: Asked, send: Send) -> None:
        assert self.stage.upstream is not None  # noqa: S101 - the caller looked
        self.stage.log.place(send, "upstream", asked.turn, side=False)
        try:
            outcome = await self.stage.upstream.pass_through(self.connection, self.request, send)
        except UpstreamAway as error:
            raise _Refused(502, str(error)) from error
        send.finished = outcome is Outcome.COMPLETE
        self.stage.log.close(send, outcome)
