"""Writes down what a model is asked and answers, in the form that `replay` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from orchestrator.core.assignment import Stop
from orchestrator.engine.ports import Model, ModelRequest, Reply, StreamEvent
from orchestrator.engine.providers.replay import canonical, digest, turn_of


class Recorder:
    """Stands in for `model`, keeps every exchange; `note` says on each line where the replies came from."""

    def __init__(self, model: Model, note: str) -> None:
        self._model = model
        self._note = note
        self._lines: dict[str, Mapping[str, Any]] = {}

    @property
    def kind(self) -> Literal["live", "recorded"]:
        return self._model.kind

    @property
    def name(self) -> str:
        return self._model.name

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        reply = self._model.reply(request, listen, stop)
        asked = canonical(request)
        key = digest(asked)
        self._lines.setdefault(
            key,
            {
                "turn": turn_of(request),
                "request": key,
                "system": digest(asked["system"]),
                "tools": digest(asked["tools"]),
                "heard": asked["messages"][-1]["content"],
                "reply": {
                    "content": list(reply.content),
                    "stop_reason": reply.stop_reason,
                    "usage": asdict(reply.usage),
                    "model": reply.model,
                },
                "note": self._note,
            },
        )
        return reply

    @property
    def lines(self) -> list[Mapping[str, Any]]:
        """One for each different request, in the order in which they were first made."""
        return list(self._lines.values())


def save(lines: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Writes the recording, one line for each different request; how many those are."""
    different = {line["request"]: json.dumps(line, ensure_ascii=False) for line in lines}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in different.values()), encoding="utf-8")
    return len(different)
