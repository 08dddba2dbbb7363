"""Watches one process to its end: output in pieces, limits, and a certain death."""

from __future__ import annotations

import codecs
import contextlib
import os
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from time import monotonic
from typing import Final, Protocol

from orchestrator.core.assignment import Stop
from orchestrator.core.private_keys import PrivateKeys
from orchestrator.core.redaction import beginning, next_word_start

TICK: Final = 0.1
"""Seconds between two looks at the clock, the stop and the number of processes."""
LINGER: Final = 1.0
"""Seconds that output may still come after the command's own end or death."""
CHUNK: Final = 65536


class Ended(StrEnum):
    """Why a command is over; all but `exit` mean that it was killed."""

    EXIT = "exit"
    TIMEOUT = "timeout"
    STOP = "stop"
    OUTPUT = "output limit"
    PROCESSES = "process limit"
    ROOM = "room on the disk"


class Kin(Protocol):
    """The processes that belong to one command, however they detached themselves."""

    def too_many(self) -> bool: ...

    def kill(self) -> None: ...


@dataclass(slots=True)
class Tail:
    """Keeps the last `limit` bytes of what was printed, and passes the first `shown` on as text, without the
    private keys in it: who hears of it in pieces couldn't find them, least when several commands print."""

    limit: int
    shown: int
    on_output: Callable[[str], None]
    total: int = 0
    _kept: deque[bytes] = field(default_factory=deque)
    _size: int = 0
    _decoders: dict[str, codecs.IncrementalDecoder] = field(default_factory=dict)
    _keys: dict[str, PrivateKeys] = field(default_factory=dict)

    def feed(self, stream: str, data: bytes) -> None:
        decoder = self._decoders.setdefault(stream, codecs.getincrementaldecoder("utf-8")("replace"))
        before, self.total = self.total, self.total + len(data)
        self._kept.append(data)
        self._size += len(data)
        while self._size - len(self._kept[0]) >= self.limit:
            self._size -= len(self._kept.popleft())
        if before < self.shown:
            text = decoder.decode(data[: self.shown - before])
            if self.total > self.shown:
                text = beginning(text, len(text) - 1) if text else text
            text = self._keys.setdefault(stream, PrivateKeys()).text(text)
            if self.total > self.shown:
                text += "\n[the rest of the output is not shown live]\n"
            if text:
                self.on_output(text)

    @property
    def truncated(self) -> bool:
        return self.total > self.limit

    @property
    def text(self) -> str:
        data = b"".join(self._kept)[-self.limit :]
        text = data.decode("utf-8", "replace")
        if not self.truncated:
            return text
        shown = text[next_word_start(text, 1) :]
        return f"[{self.total - len(shown.encode())} earlier bytes left out]\n{shown}"


def watch(
    process: subprocess.Popen[bytes],
    kin: Kin,
    *,
    timeout: timedelta,
    stop: Stop,
    most_bytes: int,
    feed: Callable[[str, bytes], None],
    takes_too_much: Callable[[], bool] = bool,
) -> Ended:
    """Reads until the end, at most `timeout` and a second or two from now; nothing of it lives on.

    When `feed` raises, the command is killed, too. `takes_too_much` is asked at each look: of the disk.
    """
    ended = Ended.EXIT
    try:
        with selectors.DefaultSelector() as selector:
            for stream, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
                if pipe is not None:
                    os.set_blocking(pipe.fileno(), False)
                    selector.register(pipe, selectors.EVENT_READ, stream)
            ended = _read(
                process,
                kin,
                selector,
                monotonic() + timeout.total_seconds(),
                stop,
                most_bytes,
                feed,
                takes_too_much,
            )
    finally:
        _kill(process, kin)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return ended


def _read(
    process: subprocess.Popen[bytes],
    kin: Kin,
    selector: selectors.BaseSelector,
    until: float,
    stop: Stop,
    most_bytes: int,
    feed: Callable[[str, bytes], None],
    takes_too_much: Callable[[], bool],
) -> Ended:
    ended: Ended | None = None
    seen = 0
    looked = monotonic()
    while selector.get_map() or ended is None:
        if selector.get_map():
            ready = selector.select(TICK)
        else:
            ready = []
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TICK)
        for key, _ in ready:
            data = os.read(key.fd, CHUNK)
            if not data:
                selector.unregister(key.fileobj)
                continue
            seen += len(data)
            if seen <= most_bytes:
                feed(key.data, data)
        now = monotonic()
        if ended is not None:
            if now >= until:
                break
            continue
        if ready and now - looked < TICK and seen <= most_bytes and process.poll() is None:
            continue
        looked = now
        ended = _verdict(
            process,
            kin,
            takes_too_much,
            late=now >= until,
            stopped=stop.is_hard(),
            flooded=seen > most_bytes,
        )
        if ended is not None:
            _kill(process, kin)
            until = monotonic() + LINGER
    return ended or Ended.EXIT


def _verdict(
    process: subprocess.Popen[bytes],
    kin: Kin,
    takes_too_much: Callable[[], bool],
    *,
    late: bool,
    stopped: bool,
    flooded: bool,
) -> Ended | None:
    if flooded:
        return Ended.OUTPUT
    if process.poll() is not None:
        return Ended.EXIT
    if stopped:
        return Ended.STOP
    if late:
        return Ended.TIMEOUT
    if kin.too_many():
        return Ended.PROCESSES
    return Ended.ROOM if takes_too_much() else None


def _kill(process: subprocess.Popen[bytes], kin: Kin) -> None:
    kin.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LINGER)
