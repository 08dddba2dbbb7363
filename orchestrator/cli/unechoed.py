"""A terminal on which something is drawn in place, and that what is typed meanwhile would tear apart."""

from __future__ import annotations

import os
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)
_LOCAL_MODES: Final = 3
"""Of what `termios.tcgetattr` gives: where ECHO is."""


class _Ended(BaseException):
    """By a signal, which is carried out once everything is as it was."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def unechoed() -> Iterator[None]:
    """Keys are not shown, and those typed meanwhile are forgotten: none of them answers a question that was
    not asked yet. As before afterwards, whatever ends it. Does nothing without a terminal in front."""
    terminal = _in_front()
    if terminal is None:
        yield
        return
    before = termios.tcgetattr(terminal)
    silent = list(before)
    silent[_LOCAL_MODES] &= ~termios.ECHO
    caught = _catch()
    ended: int | None = None
    try:
        termios.tcsetattr(terminal, termios.TCSADRAIN, silent)
        yield
    except _Ended as by:
        ended = by.number
    finally:
        if _in_front() is not None:  # in the background it is the shell's, and to set it would stop us
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
    if ended is not None:
        os.kill(os.getpid(), ended)


def _in_front() -> int | None:
    """The terminal that keys are read from, if they are read by us."""
    try:
        terminal = sys.stdin.fileno()
        return terminal if os.tcgetpgrp(terminal) == os.getpgrp() else None
    except (OSError, ValueError, AttributeError):
        return None


def _catch() -> list[int]:
    """The ends that nobody else sees to."""
    if threading.current_thread() is not threading.main_thread():
        return []
    free: list[int] = [number for number in _ENDS if signal.getsignal(number) is signal.SIG_DFL]
    for number in free:
        signal.signal(number, _end)
    return free


def _end(number: int, _: FrameType | None) -> None:
    raise _Ended(number)
