"""What may need leave: classes of risk, our own tools, Claude Code's, and those that servers bring along; and
the words by which it is given."""

from __future__ import annotations

import difflib
import re
from typing import Final

APPROVE: Final = "Approve"
DENY: Final = "Deny"
"""Maybe with words for the agent after it."""
RISKS: Final = ("read", "write", "execute", "network", "delegate")
"""The classes that `*` stands for."""
ENGINE_TOOLS: Final = (
    *("read_file", "write_file", "edit_file", "apply_patch", "move_file", "delete_file", "list_files"),
    *("search_files", "run_command", "read_background", "stop_background", "read_output", "fetch_url"),
    "start_subtask",
)
CLAUDE_CODE_TOOLS: Final = (
    *("Agent", "Bash", "BashOutput", "Edit", "Glob", "Grep", "KillShell", "LS", "MultiEdit", "NotebookEdit"),
    *("NotebookRead", "Read", "Skill", "SlashCommand", "Task", "TodoWrite", "WebFetch", "WebSearch", "Write"),
)
_KNOWN: Final = frozenset(("*", *RISKS, *ENGINE_TOOLS, *CLAUDE_CODE_TOOLS))
_FOREIGN: Final = re.compile(r"__|[.:/]")
"""In the names of tools that a server brings along, such as `mcp__server__tool`, which nobody knows yet."""


def fault(name: str) -> str | None:
    """Why a call can't be named like that; None: it can."""
    if name in _KNOWN or _FOREIGN.search(name):
        return None
    near = difflib.get_close_matches(name.lower(), {known.lower(): known for known in _KNOWN}, 1)
    meant = next((f"; did you mean {known}?" for known in _KNOWN if near and known.lower() == near[0]), "")
    return (
        f"{name!r} is no class of risk and no tool{meant or '.'} Classes: {', '.join(RISKS)}, or * for all. "
        f"Tools: {', '.join(ENGINE_TOOLS)}; Claude Code's {', '.join(CLAUDE_CODE_TOOLS)}; "
        "an MCP server's as mcp__server__tool"
    )


def is_granted(answer: str) -> bool:
    """By one word alone: an approval is bound to exactly what was shown, so it has no conditions."""
    return answer.strip().casefold() == APPROVE.casefold()
