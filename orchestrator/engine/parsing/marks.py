"""Finds pairs of tags in text that arrives in pieces.

A mark is a head tag and what follows it, with at most `BLANKS` blanks between: `</content>  </write_file>`.
That bound is what makes every decision local: whether a mark begins at a place depends on the next few dozen
characters alone, so the text is read once, and how it was cut into pieces changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

BLANKS: Final = 64
_BLANK: Final = rf"[ \t\r\n]{{0,{BLANKS}}}"


class Mark(NamedTuple):
    """`text[start:head_end]` is the head; the follower, '' where none is asked for, ends at `end`."""

    head: str
    follower: str
    start: int
    head_end: int
    end: int


class Marks:
    """Looks for every head in `pairs` that one of its followers follows (no followers: for the head alone).

    Heads and followers are tags: they begin with '<', end with '>', and have neither in between.
    """

    def __init__(self, pairs: Mapping[str, Iterable[str]]) -> None:
        followers = {head: tuple(after) for head, after in pairs.items()}
        self._pattern = _pattern(followers)
        self._heads = {head: frozenset(_beginnings(after)) for head, after in followers.items() if after}
        self._beginnings = frozenset(_beginnings(followers))
        tags = [*followers, *(tag for after in followers.values() for tag in after)]
        self._longest = BLANKS + 2 * max(map(len, tags), default=0)

    def find(self, text: str, start: int) -> Mark | None:
        """The first mark at or after `start` that is there as a whole."""
        found = self._pattern.search(text, start)
        if found is None or found.lastindex is None:
            return None
        head = found.lastindex - 1
        tag, follower = found.group(head, head + 1)
        start, end = found.span()
        return Mark(f"<{tag}", follower, start, found.end(head), end)

    def undecided(self, text: str, start: int) -> int:
        """Where the tail begins that more text may turn into a mark; the text's length if there is none.
        For a text in which `find` has found nothing from `start` on."""
        at = text.find("<", max(start, len(text) - self._longest))
        while at >= 0:
            if self._may_grow(text[at:]):
                return at
            at = text.find("<", at + 1)
        return len(text)

    def _may_grow(self, tail: str) -> bool:
        if tail in self._beginnings:
            return True
        head = tail[: tail.find(">") + 1]
        if (followers := self._heads.get(head)) is None:
            return False
        rest = tail[len(head) :]
        after = rest.lstrip(" \t\r\n")
        return len(rest) - len(after) <= BLANKS and (not after or after in followers)


def _pattern(followers: Mapping[str, tuple[str, ...]]) -> re.Pattern[str]:
    """With the first characters in front: a '<' that begins no head costs next to nothing."""
    first = "".join({re.escape(head[1]) for head in followers})
    spelled = "|".join(_spelled(*pair) for pair in followers.items())
    return re.compile(f"<(?=[{first}])(?:{spelled})" if followers else "(?!)")


def _spelled(head: str, followers: tuple[str, ...]) -> str:
    after = _BLANK + f"({'|'.join(map(re.escape, followers))})" if followers else "()"
    return f"({re.escape(head[1:])}){after}"


def _beginnings(tags: Iterable[str]) -> Iterable[str]:
    """Every proper beginning of each."""
    return (tag[:length] for tag in tags for length in range(1, len(tag)))
