"""Server-sent events as they come, in pieces of any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

LONGEST: Final = 16 * 1024 * 1024
"""Bytes of one event in memory, where each line is an object of its own."""
_OBJECT: Final = 64


class EventTooLong(Exception):
    """More than LONGEST came without an event's end."""


class Frames:
    """Fed with chunks; gives each event once its blank line is in, as it was sent and as its data.

    Split anywhere, it gives the same. An event without data has None.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._raw: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """Raises EventTooLong."""
        pieces = chunk.split(b"\n")
        for piece in pieces[:-1]:
            self._add(piece + b"\n")
            line = b"".join(self._line)
            self._line.clear()
            self._raw.append(line)
            yield from self._take(line.rstrip(b"\r\n"))
        if pieces[-1]:
            self._add(pieces[-1])

    def _add(self, piece: bytes) -> None:
        self._size += len(piece) + _OBJECT
        if self._size > LONGEST:
            raise EventTooLong
        self._line.append(piece)

    def _take(self, line: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line:
            yield b"".join(self._raw), b"\n".join(self._data) if self._data else None
            self._raw.clear()
            self._data.clear()
            self._size = 0

    def rest(self) -> bytes:
        """What came after the last whole event."""
        return b"".join((*self._raw, *self._line))
