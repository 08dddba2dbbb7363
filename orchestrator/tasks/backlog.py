"""What an agent has noted and logged, and what isn't written yet: bounded, for the database may be away.

Nothing that a status follows from goes this way: that is written with the status.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.db.effects import LogChunk
from orchestrator.db.events import EventDraft
from orchestrator.db.sql import dumps

MOST_NOTES: Final = 2_000
MOST_CHARACTERS: Final = 4 * 1024 * 1024
_CHUNK: Final = 64 * 1024


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
    """Filled by the agent's threads, emptied by whoever writes. What was taken takes room until it is
    written: so no more than `most_notes` and `most_characters` are held at any time."""

    def __init__(self, most_notes: int = MOST_NOTES, most_characters: int = MOST_CHARACTERS) -> None:
        self._most_notes = most_notes
        self._most_characters = most_characters
        self._lock = threading.Lock()
        self._asides: list[EventDraft] = []
        self._events: list[EventDraft] = []
        self._logs: list[LogChunk] = []
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
            if fits and self._logs and self._logs[-1].stream == stream and len(self._logs[-1].text) < _CHUNK:
                self._logs[-1] = LogChunk(stream, self._logs[-1].text + fits)
            elif fits:
                self._logs.append(LogChunk(stream, fits))
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

    def take(self) -> Batch | None:
        """All that has gathered, if there is anything to write; `written` or `put_back` comes next."""
        with self._lock:
            if not (self._events or self._logs or any(self._dropped)):
                return None
            batch = Batch([*self._asides, *self._events], self._logs, *self._new, *self._dropped)
            self._asides, self._events, self._logs = [], [], []
            self._new = self._dropped = (0, 0)
            return batch

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
