"""What an agent has noted and logged, and what isn't written yet: bounded, for the database may be away.

Nothing that a status follows from goes this way: that is written with the status.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from orchestrator.core.private_keys import PrivateKeys
from orchestrator.core.redaction import last_word_end
from orchestrator.db.effects import LogChunk
from orchestrator.db.events import EventDraft
from orchestrator.db.sql import dumps

MOST_NOTES: Final = 2_000
MOST_CHARACTERS: Final = 4 * 1024 * 1024
_LONGEST_LINE: Final = 32 * 1024
_ROW: Final = 64 * 1024
"""Characters; what is redacted at a time is longer."""


@dataclass(slots=True)
class _Said:
    """What came of one stream, until another's came. Not redacted yet."""

    stream: str
    pieces: list[str] = field(default_factory=list)
    unfinished_since: float | None = None
    """When its last line began; None: it has ended."""

    def add(self, text: str) -> None:
        self.pieces.append(text)
        if text.endswith("\n"):
            self.unfinished_since = None
        elif self.unfinished_since is None or "\n" in text:
            self.unfinished_since = time.monotonic()

    def split(self, waits: float) -> tuple[str, _Said | None]:
        """What can be written; and the last line, if it hasn't ended and is younger than `waits` seconds."""
        text, since = "".join(self.pieces), self.unfinished_since
        if since is None or time.monotonic() - since >= waits:
            return text, None
        at = text.rfind("\n") + 1
        if len(text) - at > _LONGEST_LINE:
            at = last_word_end(text, len(text))
        return text[:at], _Said(self.stream, [text[at:]], since) if at < len(text) else None


@dataclass(frozen=True, slots=True)
class Batch:
    """What is written together. `events` and `logs` are in order; what was dropped came after both."""

    events: Sequence[EventDraft]
    logs: Sequence[LogChunk]
    notes: int
    characters: int
    notes_dropped: int
    characters_dropped: int

    @property
    def told(self) -> Sequence[LogChunk]:
        """The logs, and a word of what is missing."""
        counts = ((self.notes_dropped, "note", ""), (self.characters_dropped, "character", " of output"))
        lost = [f"{n:,} {what}{'' if n == 1 else 's'}{of}" for n, what, of in counts if n]
        if not lost:
            return self.logs
        text = f"… {' and '.join(lost)} dropped while the database was away\n"
        return [*self.logs, LogChunk("system", text)]


class Backlog:
    """Filled by the agent's threads, emptied by one who writes at a time. What was taken takes room until it
    is written: so no more than `most_notes` and `most_characters` are held at any time. `clean` redacts; a
    private key may have come in any number of pieces, for minutes."""

    def __init__(
        self,
        clean: Callable[[str], str],
        most_notes: int = MOST_NOTES,
        most_characters: int = MOST_CHARACTERS,
    ) -> None:
        self._clean = clean
        self._most_notes = most_notes
        self._most_characters = most_characters
        self._lock = threading.Lock()
        self._asides: list[EventDraft] = []
        self._events: list[EventDraft] = []
        self._said: list[_Said] = []
        self._keys: dict[str, PrivateKeys] = {}
        """By stream."""
        self._logs: list[LogChunk] = []
        """Redacted, and not written when it was tried."""
        self._held = (0, 0)
        """Notes and characters, with those that are being written."""
        self._new = (0, 0)
        """Of them, those that aren't."""
        self._dropped = (0, 0)

    def note(self, event: EventDraft) -> bool:
        """False: there is no room for it."""
        size = len(dumps(event.data) or "")
        with self._lock:
            if self._held[0] >= self._most_notes or self._room < size:
                return False
            self._events.append(event)
            self._count(1, size)
            return True

    def mention(self, event: EventDraft) -> None:
        """Goes with the next batch, and is no reason for one; these are few."""
        with self._lock:
            self._asides.append(event)

    def log(self, stream: str, text: str) -> str:
        """The rest, for which there is no room."""
        with self._lock:
            fits, rest = text[: self._room], text[self._room :]
            if fits:
                if not self._said or self._said[-1].stream != stream:
                    self._said.append(_Said(stream))
                self._said[-1].add(fits)
            self._count(0, len(fits))
            return rest

    def drop(self, notes: int = 0, characters: int = 0) -> None:
        """These are lost, and said to be."""
        with self._lock:
            self._dropped = (self._dropped[0] + notes, self._dropped[1] + characters)

    @property
    def _room(self) -> int:
        """In characters. After something was dropped there is none before the next batch: else what came
        later would seem to come before the gap."""
        return 0 if any(self._dropped) else max(0, self._most_characters - self._held[1])

    def _count(self, notes: int, characters: int) -> None:
        self._held = (self._held[0] + notes, self._held[1] + characters)
        self._new = (self._new[0] + notes, self._new[1] + characters)

    def take(self, waits: float = 0.0) -> Batch | None:
        """All that has gathered, if there is anything to write; `written` or `put_back` comes next. A last
        line that hasn't ended waits so many seconds for its end: it comes in pieces, and a secret in two of
        them is found in neither."""
        with self._lock:
            said = self._finished(waits)
            if not waits:
                said += [(stream, "") for stream, keys in self._keys.items() if keys.holds]
            if not (self._events or self._logs or said or any(self._dropped)):
                return None
            held_back = sum(len(piece) for each in self._said for piece in each.pieces)
            notes, characters = self._new
            events, logs, dropped = [*self._asides, *self._events], self._logs, self._dropped
            self._asides, self._events, self._logs = [], [], []
            self._new, self._dropped = (0, held_back), (0, 0)
        rows = [*logs, *(row for each in said for row in self._rows(*each, is_last=not waits))]
        return Batch(events, rows, notes, characters - held_back, *dropped)

    def _finished(self, waits: float) -> list[tuple[str, str]]:
        """What has been said, by stream, but for a line that is being said. Once something was dropped, that
        line's end won't come, and of the word in which it breaks off nobody can tell what it is."""
        if any(self._dropped):
            waits = 0.0
        said, self._said = self._said, []
        if said and self._dropped[1]:
            text = "".join(said[-1].pieces)
            said[-1].pieces = [text[: last_word_end(text, len(text))]]
        texts = []
        for each in said:
            text, rest = each.split(waits if each is said[-1] else 0.0)
            texts += [(each.stream, text)] if text else []
            self._said += [rest] if rest else []
        return texts

    def _rows(self, stream: str, text: str, *, is_last: bool) -> Iterator[LogChunk]:
        keys = self._keys.setdefault(stream, PrivateKeys())
        text = keys.text(text)
        clean = self._clean(text + keys.rest() if is_last else text)
        return (LogChunk(stream, clean[at : at + _ROW]) for at in range(0, len(clean), _ROW))

    def written(self, batch: Batch) -> None:
        with self._lock:
            self._held = (self._held[0] - batch.notes, self._held[1] - batch.characters)

    def put_back(self, batch: Batch) -> None:
        """It could not be written now."""
        with self._lock:
            self._events = [*batch.events, *self._events]
            self._logs = [*batch.logs, *self._logs]
            self._new = (self._new[0] + batch.notes, self._new[1] + batch.characters)
            self._dropped = (
                self._dropped[0] + batch.notes_dropped,
                self._dropped[1] + batch.characters_dropped,
            )
