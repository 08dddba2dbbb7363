"""Server-sent events as they come, in pieces of any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

LONGEST: Final = 64 * 1024 * 1024
"""Bytes of one event; of a longer one the rest is let go by unread."""


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
        pieces = chunk.split(b"\n")
        for piece in pieces[:-1]:
            self._line.append(piece + b"\n")
            line = b"".join(self._line)
            self._line.clear()
            self._raw.append(line)
            yield from self._take(line.rstrip(b"\r\n"))
        if pieces[-1]:
            self._line.append(pieces[-1])

    def _take(self, line: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        if line.startswith(b"data:"):
            self._size += len(line)
            if self._size <= LONGEST:
                self._data.append(line[5:].removeprefix(b" "))
        elif not line:
            yield b"".join(self._raw), b"\n".join(self._data) if self._data else None
            self._raw.clear()
            self._data.clear()
            self._size = 0

    def rest(self) -> bytes:
        """What came after the last whole event."""
        return b"".join((*self._raw, *self._line))
