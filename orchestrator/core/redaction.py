"""Takes secrets out of what is kept or shown: those that we know, by value, and what looks like one.

A known value is found as it is, URL-quoted, JSON-escaped and inside base64 at any of the three alignments.
Values shorter than six characters are not looked for: they would tear ordinary text apart.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus

from orchestrator.core import private_keys
from orchestrator.core.private_keys import PrivateKeys, without_private_keys

REDACTED: Final = private_keys.REDACTED
SHORTEST: Final = 6
SHORTEST_NAME: Final = 16
_LONGEST_WORD: Final = 1000
_WORD_END: Final = re.compile(r"[\s\"'<>\0]")

_SHAPES: Final = re.compile(
    r"""
      \bsk-ant-[A-Za-z0-9_-]{16,}
    | \bsk-(?:proj-)?[A-Za-z0-9_-]{32,}
    | \bor[kt]_[A-Za-z0-9_-]{16,}
    | \bgh[pousr]_[A-Za-z0-9]{20,}
    | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \bglpat-[A-Za-z0-9_-]{20,}
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b
    | \bxox[abeoprs]-[A-Za-z0-9-]{10,}
    """,
    re.VERBOSE | re.DOTALL,
)
"""A whole match is the secret."""

_BEARER: Final = re.compile(r"\b(Bearer[ \t]+)(?!\[redacted\])[A-Za-z0-9._~+/-]{12,}=*", re.IGNORECASE)
_USER_INFO: Final = re.compile(
    r"\b([a-z][a-z0-9+.-]{0,20}://)(?!\[redacted\]@)[^\s/?#@\"'<>]{1,500}@", re.IGNORECASE
)


class Redactor:
    """Knows the values of one installation's secrets. Redacting twice changes nothing more."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._known: tuple[str, ...] = ()
        self.learn(values)

    def learn(self, values: Iterable[str]) -> None:
        """Further secrets, known from now on; those that were known stay so."""
        spellings = {
            spelling
            for value in values
            if len(value) >= SHORTEST
            for spelling in _spellings(value)
            if spelling not in REDACTED
        }
        longest_first = sorted({*self._known, *spellings}, key=lambda spelling: (-len(spelling), spelling))
        self._known = tuple(longest_first)

    def text(self, text: str) -> str:
        if not text:
            return text
        for spelling in self._known:  # a search each: far faster than one pattern of many alternatives
            if spelling in text:
                text = text.replace(spelling, REDACTED)
        text = without_private_keys(text)
        text = _SHAPES.sub(REDACTED, text)
        text = _BEARER.sub(rf"\1{REDACTED}", text)
        return _USER_INFO.sub(rf"\1{REDACTED}@", text)

    def value(self, value: Any) -> Any:
        """JSON-like: strings at any depth are redacted, and names as long as a secret, which may be a
        stranger's words too; all else is kept, tuples become lists."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self._name(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            keys = PrivateKeys()  # a list of lines, too, may hold one
            return [
                self.text(keys.line(item)) if isinstance(item, str) else self.value(item) for item in value
            ]
        return value

    def _name(self, key: Any) -> Any:
        """Our own names are shorter, and stay what they are whatever a password is."""
        return self.text(key) if isinstance(key, str) and len(key) >= SHORTEST_NAME else key


def beginning(text: str, most: int) -> str:
    """At most so many characters of it, and no half of a word."""
    return text if len(text) <= most else text[: last_word_end(text, most)]


def last_word_end(text: str, upto: int) -> int:
    """Where to cut what is shown before it is redacted: half a secret is not found. The end of a line if
    there is one near, else of a word; `upto` itself only in a word that is longer than any secret."""
    since = max(0, upto - _LONGEST_WORD)
    if line := text.rfind("\n", max(since, upto // 2), upto) + 1:
        return line
    ends = [end.end() for end in _WORD_END.finditer(text, since, upto)]
    if ends:
        return ends[-1]
    is_long = since > 0 or (len(text) > _LONGEST_WORD and not _WORD_END.search(text, upto, _LONGEST_WORD))
    return upto if is_long else 0


def next_word_start(text: str, since: int) -> int:
    """As `last_word_end`, for a text of which the end is shown."""
    upto = min(len(text), since + _LONGEST_WORD)
    line = text.find("\n", max(0, since - 1), min(upto, (since + len(text)) // 2)) + 1
    if line:
        return line
    found = _WORD_END.search(text, max(0, since - 1), upto)
    return found.end() if found else upto if upto == len(text) else since


LOOKS: Final = Redactor()
"""For what people send in: knows no installation's values, finds what looks like a secret."""


def _spellings(value: str) -> Iterator[str]:
    raw = value.encode("utf-8", "replace")
    yield value
    yield quote(value, safe="", errors="replace")
    yield quote(value, errors="replace")
    yield quote_plus(value, errors="replace")
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    for shift in range(3):
        yield from _inside_base64(raw, shift)


def _inside_base64(raw: bytes, shift: int) -> Iterator[str]:
    """The characters that `raw` alone decides when it stands `shift` bytes after a three-byte boundary."""
    encoded = base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")
    first = (0, 2, 3)[shift]
    last = (len(raw) + shift) // 3 * 4
    certain = encoded[first:last]
    if len(certain) >= SHORTEST:
        yield certain
        yield certain.replace("+", "-").replace("/", "_")
