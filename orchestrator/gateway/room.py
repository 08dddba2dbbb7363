"""How much of callers' requests one gateway holds at a time: of one run, and of all runs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

MOST_BYTES: Final = 256 * 1024 * 1024
"""Of bodies, from the first byte that is read to the end of the call; parsed, they take a few times that. A
run may have a quarter."""


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
    """`longest`: bytes of the longest body; there is always room for four of them, one of each of four
    runs."""

    def __init__(self, longest: int, most: int = MOST_BYTES) -> None:
        self._most = max(most, 4 * longest)
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
        if self._held + size > self._most or self._of_run[place.whose] + size > self._most // 4:
            return False
        self._add(place.whose, size)
        place.held += size
        return True

    def _add(self, whose: str, size: int) -> None:
        self._held += size
        self._of_run[whose] += size
