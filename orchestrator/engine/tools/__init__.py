"""The engine's tools, by name, in the order in which the model is shown them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from orchestrator.engine.tools.command import READ_BACKGROUND, RUN_COMMAND, STOP_BACKGROUND
from orchestrator.engine.tools.fetch import fetch_url
from orchestrator.engine.tools.files import (
    DELETE_FILE,
    EDIT_FILE,
    LIST_FILES,
    MOVE_FILE,
    READ_FILE,
    WRITE_FILE,
)
from orchestrator.engine.tools.output import READ_OUTPUT
from orchestrator.engine.tools.patch import APPLY_PATCH
from orchestrator.engine.tools.policy import ToolPolicy
from orchestrator.engine.tools.search import SEARCH_FILES
from orchestrator.engine.tools.talk import (
    ASK_FOLLOWUP_QUESTION,
    ATTEMPT_COMPLETION,
    START_SUBTASK,
    UPDATE_PLAN,
)
from orchestrator.engine.tools.tool import Tool

TOOLS: Final[Mapping[str, Tool[Any]]] = MappingProxyType(
    {
        tool.name: tool
        for tool in (
            READ_FILE,
            WRITE_FILE,
            EDIT_FILE,
            APPLY_PATCH,
            MOVE_FILE,
            DELETE_FILE,
            LIST_FILES,
            SEARCH_FILES,
            RUN_COMMAND,
            READ_BACKGROUND,
            STOP_BACKGROUND,
            READ_OUTPUT,
            UPDATE_PLAN,
            ASK_FOLLOWUP_QUESTION,
            ATTEMPT_COMPLETION,
        )
    }
)
"""What every step may use; a recording answers requests that show exactly these."""


def toolbox(policy: ToolPolicy, more: Iterable[Tool[Any]] = ()) -> Mapping[str, Tool[Any]]:
    """`TOOLS`, what `policy` adds to them, and `more` (MCP servers' tools), whose names are their own."""
    added: list[Tool[Any]] = []
    if policy.hosts.hosts:
        added.append(fetch_url(policy.hosts))
    if policy.subtasks:
        added.append(START_SUBTASK)
    return MappingProxyType(
        {**TOOLS, **{tool.name: tool for tool in (*added, *more) if tool.name not in TOOLS}}
    )
