"""An agent's line to the outside: what it notes and logs is gathered, redacted, and written in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import structlog

from orchestrator.bootstrap import Wiring
from orchestrator.core.assignment import Stop
from orchestrator.core.verdict import StopReason
from orchestrator.db import effects
from orchestrator.db.claims import Claimed
from orchestrator.db.connect import SQLAlchemyError, is_away
from orchestrator.db.events import EventDraft
from orchestrator.db.journal import FenceLost
from orchestrator.engine.untrusted import storable
from orchestrator.tasks.backlog import Backlog
from orchestrator.tasks.grace import Grace

log: Final = structlog.get_logger(__name__)
_EVERY: Final = 0.3
_UNFINISHED_SECONDS: Final = 1.0
_UNKEPT: Final = frozenset({"text"})
"""Seen live only by those who listen to the model itself; the whole text follows in the log."""


class StepLink:
    """One claim's link. Written by the agent's thread, flushed by it and by the heartbeat's."""

    def __init__(self, wiring: Wiring, claimed: Claimed) -> None:
        self.stop = Stop()
        self.grace = Grace(self.stop)
        self._wiring = wiring
        self._claimed = claimed
        self._writing = threading.Lock()
        self._backlog = Backlog(self._clean)
        self._flushed_at = time.monotonic()
        self._moved = True

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        self._moved = True
        if kind in _UNKEPT or data.get("state") == "announced":
            return
        event = self._event(kind, data)
        if not (self._backlog.note(event) or (self._make_room() and self._backlog.note(event))):
            self._backlog.drop(notes=1)
        self._flush_if_due()

    def mention(self, kind: str, data: Mapping[str, Any]) -> None:
        """Told with the next observation; it isn't worth a transaction of its own."""
        self._backlog.mention(self._event(kind, data))

    def _event(self, kind: str, data: Mapping[str, Any]) -> EventDraft:
        step = self._claimed.step
        return EventDraft(
            "progress",
            kind,
            _shortened(self._wiring.redactor.value(data)),  # a secret that is cut in two is not found
            step.workflow_id,
            step.step_id,
            self._claimed.fence,
        )

    def log(self, stream: str, text: str) -> None:
        self._moved = True
        rest = self._backlog.log(stream, text)
        while rest and self._make_room():
            rest = self._backlog.log(stream, rest)
        self._backlog.drop(characters=len(rest))
        self._flush_if_due()

    def take_moved(self) -> bool:
        """Whether there was progress since the last call."""
        moved, self._moved = self._moved, False
        return moved

    def _make_room(self) -> bool:
        """False while the database is away: then whoever says so much waits a little each time, and with a
        pipe's reader its writer."""
        if self.keep_up():
            return True
        self.stop.wait_hard(_EVERY)
        return self.keep_up()

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed_at >= _EVERY:
            self.keep_up()

    def keep_up(self) -> bool:
        """Writes what has gathered, but for a line that is just being printed. To be called now and then.
        False as of `flush`."""
        return self._write(_UNFINISHED_SECONDS)

    def flush(self) -> bool:
        """Writes what has gathered. False: it can't be written now (database away), and is kept for the next
        time, as far as there is room."""
        return self._write(0.0)

    def _write(self, waits: float) -> bool:
        with self._writing:
            self._flushed_at = time.monotonic()
            batch = self._backlog.take(waits)
            if batch is None:
                return True
            claimed = self._claimed
            try:
                with self._wiring.engine.begin() as connection:
                    effects.observe(
                        connection, claimed.step, claimed.fence, claimed.attempt, batch.events, batch.told
                    )
            except FenceLost:
                self.stop.set(StopReason.LEASE_LOST)
            except SQLAlchemyError as error:
                if is_away(error):
                    log.warning(
                        "observations_kept_back", step=claimed.step.step_id, error=type(error).__name__
                    )
                    self._backlog.put_back(batch)
                    return False
                # Nor will it have them later, and all that follow would wait behind them.
                log.warning("observations_lost", step=claimed.step.step_id, error=type(error).__name__)
            self._backlog.written(batch)
            return True

    def _clean(self, said: str) -> str:
        return storable(self._wiring.redactor.text(said))


def _shortened(data: Mapping[str, Any], most: int = 200) -> dict[str, Any]:
    """Observations are for people who watch: a file's whole content is in the conversation, not here."""
    return {key: _cut(value, most) for key, value in data.items()}


def _cut(value: Any, most: int) -> Any:
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]}…"
    if isinstance(value, Mapping):
        return {key: _cut(inner, most) for key, inner in value.items()}
    return value
