"""The log of every send, by which a test proves that no finished turn was asked for twice."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TextIO

from orchestrator.modelserver.said import compact


class Outcome(StrEnum):
    """`complete`: the whole reply was written, and the client was there until its end."""

    OPEN = "open"
    COMPLETE = "complete"
    CLIENT_LEFT = "client-left"
    REFUSED = "refused"
    BROKEN_OFF = "broken-off"


_SENDS_KEPT: Final = 20_000
_KEPT: Final = frozenset(
    {
        "anthropic-beta",
        "anthropic-version",
        "idempotency-key",
        "originator",
        "session-id",
        "thread-id",
        "user-agent",
        "x-claude-code-session-id",
        "x-orchestrator-call-id",
        "x-run-id",
        "x-stainless-retry-count",
        "x-task-id",
        "x-timestamp-iso",
        "x-kilocode-task-id",
        "x-kilocode-timestamp-iso",
    }
)
"""Request headers that are logged as they are; none of them can hold a key."""

_SESSIONS: Final = (
    *("x-task-id", "x-kilocode-task-id", "x-claude-code-session-id", "session-id", "thread-id"),
)


@dataclass(slots=True)
class Send:
    """One request to a model. `session` tells apart those who play the same conversation; `nth` counts the
    sends of this turn in this session, from 1. `finished`: the turn, as scripted, was delivered whole.
    """

    number: int
    at: str
    path: str
    dialect: str
    model: str
    stream: bool
    session: str
    headers: Mapping[str, str]
    key: str | None
    body_sha256: str
    body_bytes: int
    conversation: str | None = None
    turn: int | None = None
    side: bool = False
    nth: int = 1
    fault: str | None = None
    status: int | None = None
    outcome: Outcome = Outcome.OPEN
    finished: bool = False
    problem: str | None = None
    usage: Mapping[str, int] | None = None
    frames: int = 0
    ended_at: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Never written down."""

    def begin(self, status: int) -> None:
        self.status = status

    def count(self) -> None:
        self.frames += 1

    def record(self) -> dict[str, Any]:
        """Without the body, whose words are the user's."""
        return {name: value for name, value in asdict(self).items() if name != "body"}


class SendLog:
    """In the order of arrival, the latest 20,000. With a file, each send is a line of it as soon as it has
    ended. With `bodies`, what was asked is kept as well, in memory alone.
    """

    def __init__(self, path: Path | None = None, *, bodies: bool = False) -> None:
        self._sends: deque[Send] = deque(maxlen=_SENDS_KEPT)
        self._count = 0
        self._bodies = bodies
        self._nth: Counter[tuple[str, str, int, bool]] = Counter()
        self._changed = threading.Condition()
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def open(
        self, path: str, headers: Mapping[str, str], raw: bytes, body: Mapping[str, Any], **asked: Any
    ) -> Send:
        with self._changed:
            self._count += 1
            send = Send(
                number=self._count,
                at=_now(),
                path=path,
                headers=harmless_headers(headers),
                key=_fingerprint(headers),
                body_sha256=hashlib.sha256(raw).hexdigest(),
                body_bytes=len(raw),
                body=body if self._bodies else {},
                **asked,
            )
            self._sends.append(send)
            self._changed.notify_all()
            return send

    def place(self, send: Send, conversation: str, turn: int, *, side: bool) -> None:
        """Says which turn the send asks for, and counts it."""
        with self._changed:
            send.conversation, send.turn, send.side = conversation, turn, side
            key = (send.session, conversation, turn, side)
            self._nth[key] += 1
            send.nth = self._nth[key]

    def end(self, send: Send, outcome: Outcome, status: int) -> None:
        send.status = status
        self.close(send, outcome)

    def close(self, send: Send, outcome: Outcome) -> None:
        with self._changed:
            if send.outcome is not Outcome.OPEN:
                return
            send.outcome, send.ended_at = outcome, _now()
            if self._file is not None:
                self._file.write(compact(send.record()) + "\n")
                self._file.flush()
            self._changed.notify_all()

    def wait(self, condition: Any, seconds: float) -> bool:
        """Until `condition()` holds, which is asked after each change; False when the time is over."""
        with self._changed:
            return bool(self._changed.wait_for(condition, seconds))

    def all(self) -> list[Send]:
        with self._changed:
            return list(self._sends)

    def finished_twice(self) -> list[tuple[str, str, int]]:
        """Session, conversation and turn of what was delivered whole more than once."""
        times = Counter(
            (send.session, send.conversation or "", send.turn or 0)
            for send in self.all()
            if send.finished and not send.side
        )
        return [key for key, count in times.items() if count > 1]

    def clear(self) -> None:
        with self._changed:
            self._sends.clear()
            self._nth.clear()

    def shut(self) -> None:
        if self._file is not None:
            self._file.close()


def harmless_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Those that tell whose call it is, and hold no key."""
    return {name: value for name, value in headers.items() if name in _KEPT}


def session_of(headers: Mapping[str, str], opening: str) -> str:
    """The id that a client sends for its task or session; else a digest of how the conversation begins."""
    named = (headers[name] for name in _SESSIONS if headers.get(name))
    return next(named, "opening-" + hashlib.sha256(opening.encode("utf-8", "replace")).hexdigest()[:12])


def key_of(headers: Mapping[str, str]) -> str | None:
    """The key that the request shows, in either header."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return headers.get("x-api-key") or (token if scheme.lower() == "bearer" else None) or None


def _fingerprint(headers: Mapping[str, str]) -> str | None:
    key = key_of(headers)
    return hashlib.sha256(key.encode()).hexdigest()[:8] if key else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
