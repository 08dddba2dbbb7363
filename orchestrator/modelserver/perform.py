"""Puts a reply on the wire, well or badly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.modelserver import faults
from orchestrator.modelserver.asked import Dialect
from orchestrator.modelserver.dialects import FORMS
from orchestrator.modelserver.faults import Fault, Kind
from orchestrator.modelserver.said import Rendering, compact
from orchestrator.modelserver.sends import Outcome
from orchestrator.modelserver.wire import ClientLeft, Connection

_PING_EVERY = 0.05
_GARBAGE = {
    Kind.GARBAGE: b'event: message\ndata: {"type": "content_block_delta", nonsense\n\n',
    Kind.GARBAGE_BYTES: b'event: message\ndata: {"text": "\xff\xfe"}\n\n',
}


@dataclass(slots=True)
class Performance:
    """One reply over one connection. `begun` hears its status, `told` of each frame that was written.

    `failure` is how the reply itself says in mid-stream that it failed, where the API has such a thing.
    """

    connection: Connection
    dialect: Dialect
    told: Callable[[], None] = lambda: None
    begun: Callable[[int], None] = lambda _: None
    pace: float = 0
    failure: bytes | None = None

    async def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """A whole body at once. Raises `ClientLeft`."""
        usual = {"content-type": "application/json", "content-length": str(len(body))}
        self._start(status, {**usual, **headers})
        await self.connection.write(body)
        await self.connection.end()

    async def play(self, rendering: Rendering, fault: Fault | None) -> Outcome:
        """Raises `ClientLeft`."""
        if fault is None:
            return await self._well(rendering)
        if fault.kind in faults.REFUSALS:
            return await self._refuse(fault)
        match fault.kind:
            case Kind.CLOSE:
                self.connection.cut()
                return Outcome.BROKEN_OFF
            case Kind.HANG | Kind.SLOW_START:
                await self.connection.pause(
                    fault.seconds if fault.kind is Kind.HANG else fault.seconds or 0.2
                )
                return await self._well(rendering)
            case Kind.DRIP:
                return await self._drip(rendering, fault)
            case Kind.REFUSAL | Kind.MAX_TOKENS | Kind.CONTEXT_FULL:
                return await self._well(rendering)
            case _:
                return await self._badly(rendering, fault)

    async def _refuse(self, fault: Fault) -> Outcome:
        status, message = faults.status_of(fault, self.dialect), faults.message_of(fault, self.dialect)
        headers = faults.headers_of(fault)
        if fault.kind is Kind.BAD_GATEWAY:
            await self.answer(status, message.encode(), {"content-type": "text/html", **headers})
        else:
            error = FORMS[self.dialect].error(status, message, faults.code_of(fault, self.dialect))
            await self.answer(status, compact(error).encode(), headers)
        return Outcome.REFUSED

    # ---- the body

    def _begin(self, rendering: Rendering) -> None:
        if rendering.streams:
            headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
        else:
            length = sum(map(len, rendering.frames))
            headers = {"content-type": "application/json", "content-length": str(length)}
        self._start(rendering.status, {**headers, **rendering.headers})

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.begun(status)
        self.connection.begin(status, headers)

    async def _frames(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            if self.pace:
                await self.connection.pause(self.pace)
            await self.connection.write(frame)
            self.told()

    async def _well(self, rendering: Rendering) -> Outcome:
        self._begin(rendering)
        await self._frames(rendering.frames)
        await self.connection.end()
        return Outcome.COMPLETE

    async def _drip(self, rendering: Rendering, fault: Fault) -> Outcome:
        whole, size = b"".join(rendering.frames), fault.piece_bytes
        seconds = 0.01 if fault.seconds is None else fault.seconds
        self._begin(rendering)
        for start in range(0, len(whole), size):
            await self.connection.pause(seconds)
            await self.connection.write(whole[start : start + size])
            self.told()
        await self.connection.end()
        return Outcome.COMPLETE

    async def _badly(self, rendering: Rendering, fault: Fault) -> Outcome:
        before, after = _split(rendering, fault.after)
        self._begin(rendering)
        await self._frames(before)
        match fault.kind:
            case Kind.STALL | Kind.STALL_ALIVE:
                await self._stall(rendering, fault)
                await self._frames(after)
                await self.connection.end()
                return Outcome.COMPLETE
            case Kind.CUT:
                pass  # the connection is closed after us, with the body incomplete
            case Kind.RESET:
                self.connection.cut()
            case Kind.TRUNCATED:
                await self._stop_short(rendering)
            case Kind.GARBAGE | Kind.GARBAGE_BYTES:
                await self._garble(rendering, fault.kind, after)
            case _:
                await self._fail(rendering, fault)
        return Outcome.BROKEN_OFF

    async def _stall(self, rendering: Rendering, fault: Fault) -> None:
        if fault.kind is Kind.STALL or not rendering.streams:
            await self.connection.pause(fault.seconds)
            return
        left = fault.seconds
        while left is None or left > 0:
            await self.connection.pause(_PING_EVERY if left is None else min(_PING_EVERY, left))
            await self.connection.write(FORMS[self.dialect].ping())
            left = None if left is None else left - _PING_EVERY

    async def _stop_short(self, rendering: Rendering) -> None:
        """A stream ends as if it were complete; a body of known length can't, so its connection ends."""
        if rendering.streams:
            await self.connection.end()

    async def _garble(self, rendering: Rendering, kind: Kind, after: Sequence[bytes]) -> None:
        if rendering.streams:
            await self.connection.write(_GARBAGE[kind])
            with contextlib.suppress(ClientLeft):  # who leaves over what we sent hasn't left us: we broke it
                await self._frames(after)
        else:
            filler = b"!" if kind is Kind.GARBAGE else b"\xff"
            await self.connection.write(filler * sum(map(len, after)))
        await self.connection.end()

    async def _fail(self, rendering: Rendering, fault: Fault) -> None:
        if not rendering.streams:
            return
        status, message = faults.status_of(fault, self.dialect), faults.message_of(fault, self.dialect)
        code = faults.code_of(fault, self.dialect)
        if fault.kind is Kind.FAILED_EVENT and self.failure is not None:
            await self.connection.write(self.failure)
        else:
            await self.connection.write(FORMS[self.dialect].error_event(status, message, code))
        await self.connection.end()


def _split(rendering: Rendering, after: int | None) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """A body that doesn't stream goes wrong in its middle."""
    frames = rendering.frames
    if not rendering.streams:
        whole = b"".join(frames)
        return (whole[: len(whole) // 2],), (whole[len(whole) // 2 :],)
    at = len(frames) // 2 if after is None else min(after, len(frames))
    return frames[:at], frames[at:]
