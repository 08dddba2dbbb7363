"""The engine's tools, by name, in the order in which the model is shown them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from orchestrator.engine.tools.command import RUN_COMMAND
from orchestrator.engine.tools.files import DELETE_FILE, EDIT_FILE, LIST_FILES, READ_FILE, WRITE_FILE
from orchestrator.engine.tools.search import SEARCH_FILES
from orchestrator.engine.tools.talk import ASK_FOLLOWUP_QUESTION, ATTEMPT_COMPLETION
from orchestrator.engine.tools.tool import Tool

TOOLS: Final[Mapping[str, Tool[Any]]] = MappingProxyType(
    {
        tool.name: tool
        for tool in (
            READ_FILE,
            WRITE_FILE,
            EDIT_FILE,
            DELETE_FILE,
            LIST_FILES,
            SEARCH_FILES,
            RUN_COMMAND,
            ASK_FOLLOWUP_QUESTION,
            ATTEMPT_COMPLETION,
        )
    }
)
