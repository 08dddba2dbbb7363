"""A recorded conversation in place of a model. It answers what was recorded, and only that.

A recording is a JSONL file; each line answers one request:

    {"turn": 2, "request": "<sha256>", "system": "<sha256>", "tools": "<sha256>",
     "heard": [blocks of the request's last message],
     "reply": {"content": […], "stop_reason": "tool_use", "usage": {…}, "model": "…"}, "note": "…"}

`request` is the hash of the whole canonical request: system prompt, tools and every message. One thing is
normalised, in tool results alone: durations such as 0.012s. Whatever else departs from the recording ends
the step with `recording-mismatch`; nothing is invented. Several lines may answer the same turn, for different
pasts (another answer to a question, a call that was interrupted).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.engine.ports import (
    CallAnnounced,
    CallCompleted,
    ModelError,
    ModelRequest,
    Reply,
    Stopped,
    StreamEvent,
    TextDelta,
    Usage,
)

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*)*")
_DURATION: Final = re.compile(r"\b\d+\.\d+ ?s\b")
_SHOWN_LINES: Final = 30


@dataclass(frozen=True, slots=True)
class ReplayModel:
    """Answers from `lines`; `name` is the recording's."""

    name: str
    lines: tuple[Mapping[str, Any], ...]
    kind: Literal["recorded"] = "recorded"

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        if stop.is_hard():
            raise Stopped
        asked = digest(canonical(request))
        line = next((line for line in self.lines if line["request"] == asked), None)
        if line is None:
            raise _mismatch(self.name, request, self.lines)
        reply = as_reply(line["reply"])
        for block in reply.content:
            if block["type"] == "text":
                listen(TextDelta(block["text"]))
            elif block["type"] == "tool_use":
                listen(CallAnnounced(block["name"]))
                listen(CallCompleted(block["id"], block["name"], block["input"]))
        return reply


def load(folder: Path, name: str) -> ReplayModel:
    """The recording `<folder>/<name>.jsonl`; the name comes from a plan and is not trusted."""
    path = folder / f"{name}.jsonl"
    if not _NAME.fullmatch(name) or not path.is_file():
        raise ModelError(
            ErrorClass.RECORDING,
            "recording-unknown",
            f"there is no recording {name[:200]!r}",
            retryable=False,
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return ReplayModel(name, tuple(json.loads(line) for line in lines if line.strip()))


def canonical(request: ModelRequest) -> Mapping[str, Any]:
    """What is compared: everything that was asked, durations in tool results normalised."""
    return {
        "system": request.system,
        "tools": list(request.tools),
        "messages": [
            {**message, "content": [_without_durations(block) for block in message["content"]]}
            for message in request.messages
        ],
    }


def digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def turn_of(request: ModelRequest) -> int:
    return 1 + len([message for message in request.messages if message["role"] == "assistant"])


def as_reply(recorded: Mapping[str, Any]) -> Reply:
    return Reply(
        content=tuple(recorded["content"]),
        stop_reason=recorded["stop_reason"],
        usage=Usage(**recorded["usage"]),
        model=recorded["model"],
    )


def _without_durations(block: Mapping[str, Any]) -> Mapping[str, Any]:
    if block["type"] != "tool_result":
        return block
    return {**block, "content": _DURATION.sub("0s", block["content"])}


def _mismatch(name: str, request: ModelRequest, lines: Iterable[Mapping[str, Any]]) -> ModelError:
    turn = turn_of(request)
    recorded = [line for line in lines if line["turn"] == turn]
    found = _departure(canonical(request), recorded[0]) if recorded else "the recording ends before this turn"
    return ModelError(
        ErrorClass.RECORDING,
        "recording-mismatch",
        f"turn {turn} of recording {name} was asked something else than what was recorded: {found}",
        retryable=False,
    )


def _departure(asked: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    for part in ("system", "tools"):
        if digest(asked[part]) != line[part]:
            return f"the {part} part of the request is another"
    recorded, heard = _as_lines(line["heard"]), _as_lines(asked["messages"][-1]["content"])
    if recorded == heard:
        return "an earlier message is another"
    shown = list(difflib.unified_diff(recorded, heard, "recorded", "asked", n=1, lineterm=""))
    left_out = [f"… {len(shown) - _SHOWN_LINES} more lines"] if len(shown) > _SHOWN_LINES else []
    return "\n" + "\n".join(line[:200] for line in [*shown[:_SHOWN_LINES], *left_out])


def _as_lines(blocks: Iterable[Mapping[str, Any]]) -> list[str]:
    return [
        line
        for block in blocks
        for line in str(block.get("text") or block.get("content") or block).splitlines() or [""]
    ]
