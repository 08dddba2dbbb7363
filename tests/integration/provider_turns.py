"""Turns of a conversation, as the tests of the providers ask for them."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.assignment import Stop
from orchestrator.engine.ports import (
    Block,
    Model,
    ModelRequest,
    Reply,
)
from tests.integration.test_provider_faults import REQUEST


def reply_of(model: Model, request: ModelRequest = REQUEST) -> Reply:
    return model.reply(request, lambda _: None, Stop())


def went_on(request: ModelRequest, reply: Reply, result: str = "print()") -> ModelRequest:
    """The next turn: the reply as it was given, and the results of its calls."""
    results: list[Block] = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": result}
        for block in reply.content
        if block["type"] == "tool_use"
    ]
    said = {"role": "assistant", "content": list(reply.content)}
    return replace(request, messages=[*request.messages, said, {"role": "user", "content": results}])
