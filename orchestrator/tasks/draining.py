"""How a worker that is told to end lets go of what its slots carry."""

from __future__ import annotations

import multiprocessing
import time
from typing import Final

_SLOTS: Final = 4096
_LOOK_SECONDS: Final = 0.05


class Drain:
    """Shared by all processes of one worker, so it is made before the pool forks."""

    def __init__(self) -> None:
        fork = multiprocessing.get_context("fork")
        self._asked = fork.Event()
        self._occupied = fork.RawArray("b", _SLOTS)

    def is_asked(self) -> bool:
        return self._asked.is_set()

    def occupy(self, slot: int) -> None:
        self._occupied[slot % _SLOTS] = 1

    def leave(self, slot: int) -> None:
        self._occupied[slot % _SLOTS] = 0

    def ask(self, patience_seconds: float) -> None:
        """Asks all slots to give back what they carry, and returns when they have, or are out of time."""
        self._asked.set()
        deadline = time.monotonic() + patience_seconds
        while any(self._occupied) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
