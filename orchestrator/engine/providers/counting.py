"""How many tokens a request has."""

from __future__ import annotations

import contextlib
import json
from typing import Final

from orchestrator.engine.ports import Model, ModelError, ModelRequest

_CHARACTERS_PER_TOKEN: Final = 4


def count(model: Model, request: ModelRequest) -> int:
    """As the model's provider counts them, else an estimate: to count is no reason to fail."""
    ask = getattr(model, "count", None)
    with contextlib.suppress(ModelError):
        if ask is not None:
            return int(ask(request))
    messages = json.dumps([list(request.tools), list(request.messages)], ensure_ascii=False, default=str)
    return (len(request.system) + len(messages)) // _CHARACTERS_PER_TOKEN
