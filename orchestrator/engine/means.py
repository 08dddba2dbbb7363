"""All that one claim's share of a conversation works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from orchestrator.core.assignment import Assignment, Link
from orchestrator.engine.ports import Journal, Model, Stopped, Workspace
from orchestrator.engine.prices import Price
from orchestrator.engine.tools.tool import Tool, ToolContext


@dataclass(frozen=True, slots=True)
class Means:
    """Handed from the loop to its parts."""

    assignment: Assignment
    link: Link
    model: Model
    journal: Journal
    workspace: Workspace
    tools: Mapping[str, Tool[Any]]
    prices: Mapping[str, Price]
    command_timeout: timedelta

    def unless_hard(self) -> None:
        if self.link.stop.is_hard():
            raise Stopped

    def context(self, call_id: str) -> ToolContext:
        """What a running call may use besides the workspace."""
        return ToolContext(
            call_id=call_id,
            stop=self.link.stop,
            on_output=lambda text: self.link.log("stdout", text),
            command_timeout=self.command_timeout,
            on_note=self.link.note,
            read_output=lambda handle, start, count: self.journal.output(handle, start, start + count),
        )
