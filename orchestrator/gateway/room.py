"""How much of callers' requests one gateway holds at a time: of one run, and of all runs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from orchestrator.gateway.dialects import MOST_PARTS

MOST_BYTES: Final = 512 * 1024 * 1024
"""Of bodies, and of what is made of them, from the first byte that is read to the end of the call."""
PART_BYTES: Final = 64
"""Of each value in a body, once it is read."""
_SHARES: Final = 8
"""A run may have one of them."""


@dataclass(slots=True)
class Place:
    """One request's, for as long as it is under way. `held`: bytes."""

    room: Room = field(repr=False)
    whose: str
    held: int = 0

    def take(self, size: int) -> bool:
        """False: there is no room for so many bytes more, at the moment."""
        return self.room.take(self, size)


class Room:
    """`longest`: bytes of the longest body, for one of which each share has room, whatever is in it."""

    def __init__(self, longest: int, most: int = MOST_BYTES) -> None:
        self._share = max(most // _SHARES, longest + MOST_PARTS * PART_BYTES)
        self._most = self._share * _SHARES
        self._held = 0
        self._of_run: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()

    @contextmanager
    def enter(self, whose: str, most_requests: int) -> Iterator[Place | None]:
        """None: that run has as many requests under way as it may."""
        if self._requests[whose] >= most_requests:
            yield None
            return
        place = Place(self, whose)
        self._requests[whose] += 1
        try:
            yield place
        finally:
            self._requests[whose] -= 1
            self._add(whose, -place.held)
            if not self._requests[whose]:
                del self._requests[whose], self._of_run[whose]

    def take(self, place: Place, size: int) -> bool:
        """See `Place`."""
        if self._held + size > self._most or self._of_run[place.whose] + size > self._share:
            return False
        self._add(place.whose, size)
        place.held += size
        return True

    def _add(self, whose: str, size: int) -> None:
        self._held += size
        self._of_run[whose] += size
