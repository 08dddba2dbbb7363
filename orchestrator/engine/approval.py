"""Leave for a risky call: bound to exactly what a person was shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any, Final

from orchestrator.core.leave import APPROVE, DENY
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Ask
from orchestrator.engine.ports import ToolResult
from orchestrator.engine.tools.tool import Tool
from orchestrator.engine.untrusted import storable

ANOTHER: Final = ToolResult(
    "not run: a person was asked, but about another call than this one. Ask anew by calling it again.",
    is_error=True,
)


def is_needed(tool: Tool[Any], policy: Collection[str]) -> bool:
    """`policy` names tools and classes of risk; what only speaks needs no leave."""
    return not tool.touches_nothing and (tool.name in policy or tool.risk.value in policy)


def digest(name: str, arguments: Mapping[str, Any]) -> str:
    """SHA-256 of the call as canonical JSON, in hex. The same before and after it was in the journal, whose
    rows spell numbers otherwise."""
    spelled = json.loads(json.dumps(arguments), parse_float=_number)
    call = json.dumps({"name": name, "arguments": spelled}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(call.encode()).hexdigest()


def _number(text: str) -> int | float:
    exact = Decimal(text)
    return int(exact) if exact == exact.to_integral_value() else float(text)


def request(call_id: str, tool: Tool[Any], arguments: Mapping[str, Any]) -> Ask:
    """`arguments` as the journal keeps them: those are shown, and those are run."""
    shown = json.dumps(arguments, indent=2, sort_keys=True, ensure_ascii=False)
    return Ask(
        call_id,
        storable(f"The agent wants to call {tool.name} (risk: {tool.risk}) with\n{shown}"),
        (APPROVE, DENY),
        WaitingOn.TOOL_APPROVAL,
        digest(tool.name, arguments),
    )


def denial(answer: str) -> ToolResult:
    """The person's words, which may say what to do instead."""
    said = answer.strip()
    if said.casefold().startswith(DENY.casefold()):
        said = said[len(DENY) :].lstrip(": ")
    why = f" The person said: {said}" if said else ""
    return ToolResult(storable(f"not run: a person denied it.{why}"), is_error=True)
