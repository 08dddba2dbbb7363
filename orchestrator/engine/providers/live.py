"""One reply of a live model, from the first byte to the last, within its deadlines.

Each reply has an event loop of its own: nothing is shared over a fork or between threads, and a stop can
cancel whatever the reply is waiting for. When `answer` returns or raises, the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

from orchestrator.core.assignment import Stop
from orchestrator.engine.ports import ModelError, Reply, Stopped
from orchestrator.engine.providers.credential import Credential, Fixed
from orchestrator.engine.providers.meaning import LATE, STALLED, failure

_STOP_LOOKED_AT_EVERY: Final = 0.02
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """`read` is the longest silence, pings included; `overall` bounds a whole reply, however lively; `stall`
    is the longest time without a piece of the reply, whatever else comes."""

    connect: timedelta = timedelta(seconds=10)
    read: timedelta = timedelta(seconds=120)
    overall: timedelta = timedelta(minutes=10)
    stall: timedelta = timedelta(minutes=3)


USUAL: Final = Deadlines()


class Pulse:
    """Beats with each piece of the reply."""

    def __init__(self, limit: asyncio.Timeout, stall: timedelta) -> None:
        self._limit = limit
        self._stall = stall.total_seconds()

    def beat(self) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time() + self._stall)


Stream = Callable[[Pulse], Awaitable[Reply]]
AsModelError = Callable[[Exception], ModelError | None]
"""None: this is no failure of the provider."""


def answer(stream: Stream, stop: Stop, deadlines: Deadlines, as_model_error: AsModelError) -> Reply:
    """Raises `ModelError`, or `Stopped` as soon as `stop` is set hard: the connection is closed then.

    `stream` is called once. What it raises is put to `as_model_error`, unless it is a `ModelError`.
    """
    if stop.is_hard():
        raise Stopped
    return asyncio.run(_until_stopped(_within(stream, deadlines, as_model_error), stop))


async def _until_stopped(work: Awaitable[Reply], stop: Stop) -> Reply:
    answering = asyncio.ensure_future(work)
    while not answering.done():
        await asyncio.wait({answering}, timeout=_STOP_LOOKED_AT_EVERY)
        if stop.is_hard() and not answering.done():
            answering.cancel()
            with contextlib.suppress(asyncio.CancelledError, ModelError):
                await answering
            raise Stopped
    return answering.result()


async def _within(stream: Stream, deadlines: Deadlines, as_model_error: AsModelError) -> Reply:
    overall, stall = deadlines.overall.total_seconds(), deadlines.stall.total_seconds()
    standing = asyncio.timeout(stall)
    try:
        async with asyncio.timeout(overall), standing:
            return await stream(Pulse(standing, deadlines.stall))
    except TimeoutError as late:
        if standing.expired():
            said = f"the model's reply stood still for {stall:g} seconds"
            raise failure(STALLED, said) from late
        said = f"the model's reply was not complete after {overall:g} seconds"
        raise failure(LATE, said) from late
    except ModelError:
        raise
    except Exception as error:
        if (known := as_model_error(error)) is None:
            raise
        raise known from error


async def with_credential(
    credential: Credential, send: Callable[[str], Awaitable[T]], refused: type[Exception]
) -> T:
    """What `send` gives with the credential; if it is refused, with the renewed one, once."""
    if isinstance(credential, Fixed):
        return await send(credential.current())
    secret = await asyncio.to_thread(credential.current)
    try:
        return await send(secret)
    except refused:
        renewed = await asyncio.to_thread(credential.renewed, secret)
        if renewed is None:
            raise
        return await send(renewed)
