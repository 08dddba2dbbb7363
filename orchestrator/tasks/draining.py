"""How a worker that is told to end lets go of what it has in hand."""

from __future__ import annotations

import math
import multiprocessing
import threading
import time
from typing import Final

_CHILDREN: Final = 4096
_LOOK_SECONDS: Final = 0.05
_GIVING_BACK_SECONDS: Final = 6.0
"""Of a worker's last seconds so many are for giving back, the five of grace included; until then replies and
commands may still end."""


class Drain:
    """Shared by all processes of one worker, so it is made before the pool forks."""

    def __init__(self) -> None:
        fork = multiprocessing.get_context("fork")
        self._is_asked = fork.RawValue("b", False)
        self._hard_at = fork.RawValue("d", math.inf)
        self._over_at = fork.RawValue("d", math.inf)
        self._in_hand = fork.RawArray("i", _CHILDREN)
        self._lock = threading.Lock()

    def is_asked(self) -> bool:
        return bool(self._is_asked.value)

    def is_late(self) -> bool:
        """Whether what isn't at its turn's end must be cut short now, while there is time to give it back."""
        return bool(time.monotonic() >= self._hard_at.value)

    def begin(self, child: int) -> None:
        """A child of the pool starts; one that was killed before it took nothing along."""
        self._in_hand[child % _CHILDREN] = 0

    def take(self, child: int) -> None:
        with self._lock:
            self._in_hand[child % _CHILDREN] += 1

    def put_down(self, child: int) -> None:
        """A message is done with: its result is stored, and what follows it is sent."""
        with self._lock:
            self._in_hand[child % _CHILDREN] -= 1

    def ask(self, patience_seconds: float) -> None:
        """Asks all to give back what they carry. A signal's handler may call it: it takes no lock."""
        if self.is_asked():
            return
        now = time.monotonic()
        self._over_at.value = now + patience_seconds
        self._hard_at.value = now + patience_seconds - min(_GIVING_BACK_SECONDS, patience_seconds / 2)
        self._is_asked.value = True

    def wait(self) -> None:
        """Returns when all have given back what they carry, or are out of time."""
        while any(self._in_hand) and time.monotonic() < self._over_at.value:
            time.sleep(_LOOK_SECONDS)
