"""The worker of `real_package.py`, production's but for the agent.

The agent is the real engine; its model reads its replies from the step's spec: {"calls": [[tool, arguments],
…]}, one call a turn. A tool that answers with an error ends the step: nothing goes on over a failed test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from orchestrator import bootstrap
from orchestrator.agents.engine import EngineAgent
from orchestrator.bootstrap import Desk, Wiring
from orchestrator.core.assignment import Agent, Assignment, Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.engine.ports import Block, ModelError, ModelRequest, Reply, StreamEvent, Usage
from orchestrator.tasks.registry import register
from tests.agents_ready import engine_alone


@dataclass(frozen=True, slots=True)
class Calls:
    """A model that has decided beforehand. Its summary is the end of what the last tool said."""

    calls: tuple[tuple[str, dict[str, Any]], ...]
    kind: Literal["live", "recorded"] = "recorded"
    name: str = "calls"

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        del listen, stop
        turn = sum(message["role"] == "assistant" for message in request.messages)
        heard = [block for block in request.messages[-1]["content"] if block["type"] == "tool_result"]
        for result in heard:
            if result.get("is_error"):
                raise ModelError(ErrorClass.VALIDATION, "tool-failed", _text(result)[-1500:], retryable=False)
        if turn < len(self.calls):
            name, arguments = self.calls[turn]
        else:
            told = _text(heard[-1]).removesuffix("</untrusted>").strip()
            name, arguments = "attempt_completion", {"summary": told.splitlines()[-1]}
        call: Block = {"type": "tool_use", "id": f"call_{turn}", "name": name, "input": arguments}
        return Reply((call,), "tool_use", Usage(), self.name)


def _text(result: Block) -> str:
    content = result["content"]
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


def scripted_agent(wiring: Wiring, desk: Desk) -> Agent:
    def model(assignment: Assignment) -> Calls:
        return Calls(tuple((name, arguments) for name, arguments in assignment.spec["calls"]))

    return EngineAgent(model, desk.open_journal, desk.open_workspace, wiring.settings.command_timeout)


wiring = replace(bootstrap.load("real-package"), make_agent=scripted_agent, ready=engine_alone)
registered = register(wiring)
app = registered.app
