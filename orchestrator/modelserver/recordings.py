r"""Replies that a real API gave once, kept to be given again.

A recording is a file of lines, each one JSON object:

    {"format": "orchestrator-model-recording/1", "kind": "recorded", "recorded_at": "…", "upstream": "https://…",
     "request": {"path": "/v1/messages", "headers": {…}, "body": {…}},
     "reply": {"status": 200, "headers": {…}, "frames": ["event: …\n\n", …]}}

`frames` are the parts of a stream, or the one part of a whole body; bytes that are no UTF-8 are kept as lone
surrogates. Keys are never in it: of the headers only harmless ones are kept, and the bodies are redacted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.core.errors import Problem, Refused
from orchestrator.core.redaction import Redactor
from orchestrator.modelserver import responses
from orchestrator.modelserver.asked import Asked, Dialect, NotUnderstood
from orchestrator.modelserver.dialects import FORMS, PATHS
from orchestrator.modelserver.said import Rendering
from orchestrator.modelserver.script import NoLine, Played, Turn
from orchestrator.modelserver.sends import harmless_headers, key_of, session_of
from orchestrator.modelserver.wire import Request

FORMAT: Final = "orchestrator-model-recording/1"
_REPLY_HEADERS: Final = ("request-id", "x-request-id", "retry-after", "content-type")
_RATE_HEADERS: Final = ("anthropic-ratelimit-", "x-ratelimit-")
_PASSING: Final = frozenset({"metadata", "prompt_cache_key", "user", "safety_identifier", "client_metadata"})
"""Parts of a body that name a run or a machine and change nothing about the reply."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordedRequest(_Part):
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class RecordedReply(_Part):
    status: int
    headers: dict[str, str]
    frames: list[str]


class Recording(_Part):
    """`kind` says that this was really said, and by whom: nothing here is made up."""

    format: Literal["orchestrator-model-recording/1"] = FORMAT
    kind: Literal["recorded"] = "recorded"
    recorded_at: datetime
    upstream: str
    request: RecordedRequest
    reply: RecordedReply


# ---- making


class Recorder:
    """Appends recordings to a file as they come."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def keep(
        self, upstream: str, request: Request, status: int, headers: Mapping[str, str], body: bytes
    ) -> None:
        redactor = _redactor(request.headers)
        recording = Recording(
            recorded_at=datetime.now(UTC),
            upstream=upstream,
            request=RecordedRequest(
                path=request.path,
                headers=redactor.value(harmless_headers(request.headers)),
                body=redactor.value(json.loads(request.body)),
            ),
            reply=RecordedReply(
                status=status,
                headers=redactor.value(_kept(headers)),
                frames=[redactor.text(frame) for frame in _frames(headers, body)],
            ),
        )
        self._file.write(json.dumps(recording.model_dump(mode="json")) + "\n")
        self._file.flush()

    def shut(self) -> None:
        self._file.close()


def _redactor(headers: Mapping[str, str]) -> Redactor:
    """Knows the key that the request shows."""
    key = key_of(headers)
    return Redactor([key] if key else [])


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in headers.items()
        if name in _REPLY_HEADERS or name.startswith(_RATE_HEADERS)
    }


def _frames(headers: Mapping[str, str], body: bytes) -> list[str]:
    text = body.decode("utf-8", "surrogateescape")
    if not headers.get("content-type", "").startswith("text/event-stream"):
        return [text]
    return [part for part in _split_keeping(text, "\n\n") if part]


def _split_keeping(text: str, end: str) -> list[str]:
    *parts, last = text.split(end)
    return [*(part + end for part in parts), last]


# ---- playing


@dataclass(frozen=True, slots=True)
class _Entry:
    recording: Recording
    asked: Asked
    digest: str


@dataclass(slots=True)
class Recordings:
    """Plays a file. A request that was recorded as it is gets that reply: of several, the nth time the nth,
    and the last from then on. Agents put dates and paths into their prompts: any other request gets the reply
    to the recorded one with the same API, turn and kind (a stream or not, with tools or without).
    """

    entries: Sequence[_Entry]
    _times: Counter[tuple[str, str]] = field(default_factory=Counter)

    def play(self, asked: Asked, headers: Mapping[str, str], /) -> Played:
        """Raises `NoLine`."""
        digest = _digest(_redactor(headers).value(asked.options))
        same = [entry for entry in self.entries if entry.digest == digest]
        alike = same or [entry for entry in self.entries if _kind(entry.asked) == _kind(asked)]
        if not alike:
            raise NoLine(f"no recording is of turn {asked.turn} of the {asked.dialect} API")
        key = (session_of(headers, asked.opening), alike[0].digest)
        chosen = alike[min(self._times[key], len(alike) - 1)]
        self._times[key] += 1
        name = "recorded" if same else "recorded-alike"
        return Played(name, asked.turn, Turn(), recorded=_rendering(chosen.recording.reply))


def _digest(body: Mapping[str, Any]) -> str:
    lasting = {name: value for name, value in body.items() if name not in _PASSING}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()


def _kind(asked: Asked) -> tuple[Dialect, int, bool, bool]:
    return asked.dialect, asked.turn, asked.stream, bool(asked.tools)


def _rendering(reply: RecordedReply) -> Rendering:
    frames = tuple(frame.encode("utf-8", "surrogateescape") for frame in reply.frames)
    headers = {name: value for name, value in reply.headers.items() if name != "content-type"}
    streams = reply.headers.get("content-type", "").startswith("text/event-stream")
    return Rendering(frames, streams, reply.status, headers)


def load(path: Path) -> Recordings:
    """Raises Refused with each bad line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise Refused(
            "model-recording-unreadable", f"The recording {path} can't be read: {error}."
        ) from error
    problems: list[Problem] = []
    entries: list[_Entry] = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(_entry(Recording.model_validate_json(line)))
        except (ValidationError, NotUnderstood, KeyError) as error:
            said = str(error).replace("\n", " ")[:200]
            problems.append(Problem(f"/{number}", "model-recording-invalid", f"line {number}: {said}"))
    if problems or not entries:
        raise Refused(
            "model-recording-invalid",
            f"The recording {path} is not valid." if problems else f"The recording {path} is empty.",
            "Make one: orchestrator model-server --record FILE --upstream URL",
            problems=tuple(problems),
        )
    return Recordings(entries)


def _entry(recording: Recording) -> _Entry:
    body, dialect = recording.request.body, PATHS[recording.request.path]
    asked = responses.read(body) if dialect is Dialect.RESPONSES else FORMS[dialect].read(body)
    return _Entry(recording, asked, _digest(body))
