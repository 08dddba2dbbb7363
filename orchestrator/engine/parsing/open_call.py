"""A call in tags whose end hasn't come yet: its values so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestrator.engine.parsing.marks import Mark
from orchestrator.engine.parsing.shape import Shape


class Read(NamedTuple):
    """All up to `upto` was taken; whether more text is `needed`, or else whether the call has `ended`."""

    upto: int
    needed: bool = False
    ended: bool = False


class OpenCall:
    """`first` is the tag that its first value follows."""

    def __init__(self, shape: Shape, first: str) -> None:
        self.shape = shape
        self._parameter = first[1:-1]
        self._given: dict[str, str] = {}
        self._pieces: list[str] = []
        self._depth = 0
        self.nested = False
        """Whether the open value has what looks like another call of the same tool in it."""

    def read(self, text: str, start: int, *, nests: bool) -> Read:
        """Goes on with the value at `start`, to its end or to where more text is needed."""
        marks, at = self.shape.marks(self._parameter), start
        while (mark := marks.find(text, at)) is not None:
            if self._ends_value(mark):
                self._pieces.append(text[start : mark.start])
                return self._next_value(mark)
            at = mark.head_end
            if nests:
                self._nest(mark)
        upto = marks.undecided(text, at)
        self._pieces.append(text[start:upto])
        return Read(upto, needed=True)

    def _ends_value(self, mark: Mark) -> bool:
        if self._depth or mark.head != f"</{self._parameter}>" or not mark.follower:
            return False
        following = mark.follower[1:-1]
        closes = mark.follower == self.shape.closing
        return closes or (following != self._parameter and following not in self._given)

    def _nest(self, mark: Mark) -> None:
        if mark.head == self.shape.opening:
            self._depth += 1
            self.nested = True
        elif mark.head == self.shape.closing and self._depth:
            self._depth -= 1

    def _next_value(self, mark: Mark) -> Read:
        self._given[self._parameter] = "".join(self._pieces)
        self._pieces, self.nested = [], False
        if mark.follower == self.shape.closing:
            return Read(mark.end, ended=True)
        self._parameter = mark.follower[1:-1]
        return Read(mark.end)

    def arguments(self) -> Mapping[str, Any]:
        return {name: self.shape.value(name, written) for name, written in self._given.items()}

    def again(self) -> str:
        """Forgets what was read of the open value, and gives it back."""
        written = "".join(self._pieces)
        self._pieces, self._depth, self.nested = [], 0, False
        return written

    def written(self) -> str:
        """The call so far, as it stood."""
        before = "".join(f"<{name}>{value}</{name}>" for name, value in self._given.items())
        return f"{self.shape.opening}{before}<{self._parameter}>{''.join(self._pieces)}"
