"""Signals as events: nothing happens inside a handler, and each request to stop is seen exactly once."""

from __future__ import annotations

import select
import signal
import socket
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType, TracebackType

_STOP: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WAKE: Final = (signal.SIGCHLD, signal.SIGUSR1)


class StopAsked(Exception):
    """Ctrl-C, `orchestrator down`, or the terminal was closed."""


class Interrupts:
    """Entered in the main thread. `wait` passes time and raises StopAsked once for each such signal."""

    def __init__(self) -> None:
        self._pending = 0
        self._before: Mapping[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._before = {one: signal.signal(one, _noted) for one in (*_STOP, *_WAKE)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)  # type: ignore[arg-type]  # what signal.signal gave us
        signal.set_wakeup_fd(self._wakeup_before)
        self._read.close()
        self._write.close()

    def wait(self, seconds: float) -> None:
        """Returns earlier when a child ends or a request has come."""
        deadline = time.monotonic() + seconds
        if (
            not self._pending
            and select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]
        ):
            self._pending += sum(number in _STOP for number in self._read.recv(4096))
        if self._pending:
            self._pending -= 1
            raise StopAsked


def _noted(_: int, __: FrameType | None) -> None:
    """The number is in the wakeup socket already."""
