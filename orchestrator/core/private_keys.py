"""Private keys in text that comes in pieces: PEM and OpenPGP armour, between their lines BEGIN and END.

Between both, what can be a key's body is hidden and the rest is shown: other lines come in between where
several things print at once, and the END may never come. Line breaks may be escaped, as they are in JSON.
"""

from __future__ import annotations

import re
from typing import Final

REDACTED: Final = "[redacted]"
MOST_HIDDEN: Final = 64 * 1024
"""Characters of one key; after that it isn't one."""
MOST_OTHER_LINES: Final = 50
"""In a row; after them nobody waits for the END any more."""
_LONGEST_MARK: Final = 80
_LONGEST_LINE: Final = 4 * 1024
_KEY_LINE: Final = 32
"""Characters that aren't hexadecimal digits: a line of at least so many is a key's, and no commit's id."""

_MARKS: Final = re.compile(
    r"-----(BEGIN|END) [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----|(?:[\r\n]|\\{1,4}[nr])+"
)
_WHOLE: Final = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----).){0,20000}"
    r"-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----",
    re.DOTALL,
)
_AROUND: Final = " \t\"'`,;|>#*+-(){}[]\\"
_LINE_NUMBER: Final = re.compile(r"\d{1,6}[\t :|)-]+")
_BODY: Final = re.compile(r"[A-Za-z0-9+/=]+")
_RUN: Final = re.compile(r"[A-Za-z0-9+/=]{16,}")
_HEX: Final = re.compile(r"[0-9A-Fa-f]+")


class PrivateKeys:
    """Of one stream: each piece of it, in order, goes through `text`.

    Within a key a line is held back until its end comes, and shown or hidden then; what is held at the very
    end is what `rest` gives.
    """

    def __init__(self) -> None:
        self._is_inside = False
        self._is_first_line = False
        self._carried = ""
        """Outside: the end of what has been shown, for a mark may begin in it. Inside: what is held back."""
        self._owed = ""
        """The line break after a hidden line: told before the next that is shown."""
        self._hidden = 0
        self._hidden_of_line = 0
        self._others = 0
        self._is_other = False

    def text(self, piece: str) -> str:
        seen, since, at = self._carried + piece, 0 if self._is_inside else len(self._carried), 0
        if not self._is_inside and "PRIVATE KEY" not in seen:
            self._carried = seen[-_LONGEST_MARK:]
            return piece
        shown: list[str] = []
        for mark in _MARKS.finditer(seen):
            self._part(seen[max(at, since) : max(mark.start(), since)], shown)
            at = mark.end()
            if at > since:
                self._mark(mark[1], seen[max(mark.start(), since) : at], shown)
        if not self._is_inside or len(seen) - at > _LONGEST_LINE:
            self._part(seen[max(at, since) :], shown)
            at = len(seen) if self._is_inside else max(at, len(seen) - _LONGEST_MARK)
        self._carried = seen[at:]
        return "".join(shown)

    def line(self, text: str) -> str:
        """A piece that is a line by itself, without its break."""
        if not self._is_inside and "PRIVATE KEY" not in text:
            return text
        return self.text(text + "\n").strip("\n")

    @property
    def holds(self) -> bool:
        return bool(self._owed or (self._is_inside and self._carried))

    def rest(self) -> str:
        """What is still held back, when nobody waits for more."""
        shown: list[str] = []
        if self._is_inside:
            self._part(self._carried, shown)
            self._carried = ""
        shown.append(self._owed)
        self._owed = ""
        return "".join(shown)

    def _mark(self, kind: str | None, text: str, shown: list[str]) -> None:
        if kind == "BEGIN":
            self._show(REDACTED, shown)
            self._is_inside = self._is_first_line = True
            self._hidden = self._hidden_of_line = self._others = 0
        elif kind == "END" and self._is_inside:
            self._is_inside, self._owed = False, ""
        elif kind == "END":
            _hide_back(text, shown)
        elif self._is_inside:
            self._end_line(text, shown)
        else:
            self._show(text, shown)

    def _part(self, part: str, shown: list[str]) -> None:
        """Some of a line."""
        if not part:
            return
        if not self._is_inside:
            self._show(part, shown)
            return
        found = _RUN.search(part)
        if _is_body(part) or (found and _is_body("".join(part.split()))):
            self._count(part)
        elif found:
            self._count(part)
            self._show(_RUN.sub(REDACTED, part), shown)
        elif part.strip(_AROUND):
            self._is_other = True
            self._show(part, shown)
            self._is_inside = not self._is_first_line  # a program's text that speaks of keys
        else:
            self._show(part, shown)

    def _count(self, part: str) -> None:
        self._hidden += len(part)
        self._hidden_of_line += sum(map(len, _HEX.split(part)))
        self._is_inside = self._hidden <= MOST_HIDDEN

    def _end_line(self, text: str, shown: list[str]) -> None:
        if self._is_other:
            self._show(text, shown)
        else:
            self._owed = self._owed or text
        self._others = 0 if self._hidden_of_line >= _KEY_LINE else self._others + 1
        self._is_inside = self._others <= MOST_OTHER_LINES
        self._is_first_line = self._is_other = False
        self._hidden_of_line = 0

    def _show(self, text: str, shown: list[str]) -> None:
        if self._owed:
            shown.append(self._owed)
            self._owed = ""
        shown.append(text)


def without_private_keys(text: str) -> str:
    """Of a text that is all there: of a key that is whole, what stands between its lines goes, too."""
    if "PRIVATE KEY" not in text:
        return text
    text = _WHOLE.sub(REDACTED, text)
    keys = PrivateKeys()
    return keys.text(text) + keys.rest()


def _is_body(part: str) -> bool:
    bare = part.strip(_AROUND)
    number = _LINE_NUMBER.match(bare)
    return bool(_BODY.fullmatch(bare[number.end() :].strip(_AROUND) if number else bare))


def _hide_back(end: str, shown: list[str]) -> None:
    """Its END came, and its BEGIN was cut off: what stands before the END is the key's body."""
    at = len(shown)
    while at and (_is_body(shown[at - 1]) or not shown[at - 1].strip(_AROUND + "\r\nnr")):
        at -= 1
    if any(_RUN.search(part) for part in shown[at:]):
        shown[at:] = [REDACTED]
    else:
        shown.append(end)
