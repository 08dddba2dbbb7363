"""Writes down what a model is asked and answers, in the form that `replay` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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

    def save(self, path: Path) -> None:
        """One line per request, in the order in which they were first made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines.values())
        path.write_text("".join(lines), encoding="utf-8")
