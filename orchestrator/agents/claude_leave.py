"""Which of Claude Code's calls wait for a person, and what becomes of them when the answer is there.

Of several calls in one message only the last that was put off would come back; so the first that needs a
person is put off, and others are refused for now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from claude_agent_sdk import (
    HookContext,
    HookInput,
    HookJSONOutput,
    HookMatcher,
    PermissionResultAllow,
    PermissionResultDeny,
    ToolPermissionContext,
)
from claude_agent_sdk.types import DeferredToolUse, HookEvent

from orchestrator.agents.external import Leave, Wish
from orchestrator.core.leave import APPROVE, DENY
from orchestrator.core.states import WaitingOn

QUESTION: Final = "AskUserQuestion"
RISKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("Read", "Glob", "Grep", "LS", "NotebookRead", "BashOutput", "TodoWrite"), "read"),
        **dict.fromkeys(("Write", "Edit", "MultiEdit", "NotebookEdit"), "write"),
        **dict.fromkeys(("WebFetch", "WebSearch"), "network"),
        **dict.fromkeys(("Task", "Agent"), "delegate"),
        QUESTION: "talk",
    }
)
"""In the engine's words; what isn't named here runs something."""
_LATER: Final = "One at a time: another call of this message waits for a person. Call this again after that."

_FROM_BELOW: Final = (
    "A person must approve this, and a subagent can't wait for that. Return to the agent that called you and "
    "say which call is needed: it can ask."
)


class Gate:
    """Of one run. `names`: id of each call → its tool."""

    def __init__(self, approvals: Collection[str], leave: Leave | None) -> None:
        self.names: dict[str, str] = {}
        self._approvals = approvals
        self._leave = leave
        self._put_off: str | None = None
        self._refused: set[str] = set()

    @property
    def hooks(self) -> dict[HookEvent, list[HookMatcher]]:
        return {"PreToolUse": [HookMatcher(hooks=[self.before], on_failure="block")]}

    async def before(self, call: HookInput, tool_use_id: str | None, context: HookContext) -> HookJSONOutput:
        """The hook: nothing said means that the call is run."""
        del context
        name, arguments = str(call.get("tool_name", "")), _arguments(call.get("tool_input"))
        call_id = str(call.get("tool_use_id") or tool_use_id or "")
        if not self._is_gated(name):
            return {}
        if call.get(
            "agent_id"
        ):  # put off there it would be lost, and no other call could be put off any more
            self._refused.add(call_id)
            return _decision("deny", _FROM_BELOW)
        asked = digest(name, arguments, call_id)
        if self._leave is not None and self._leave.digest == asked:
            return self._answered(name, call_id, self._leave)
        if self._put_off not in {None, call_id}:
            self._refused.add(call_id)
            return _decision("deny", _LATER)
        self._put_off = call_id
        return _decision("defer", "")

    def _answered(self, name: str, call_id: str, leave: Leave) -> HookJSONOutput:
        if name == QUESTION:
            return {}  # its answer is given where it asks for leave
        if leave.is_granted:
            return _decision("allow", "A person approved it.")
        self._refused.add(call_id)
        return _decision("deny", self._denial(leave))

    @staticmethod
    def _denial(leave: Leave) -> str:
        words = "" if leave.answer.casefold() == DENY.casefold() else f" They say: {leave.answer}"
        return f"A person denied it. Don't do the same by other means.{words}"

    async def settle(
        self, name: str, arguments: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResultAllow | PermissionResultDeny:
        """Asked about every call that changes something, after the hook. A session that goes on in the middle
        may run its call before the hooks are known to it: what the hook would say is said here again."""
        if not self._is_gated(name):
            return PermissionResultAllow(updated_input=arguments)
        call_id = str(context.tool_use_id or "")
        if self._leave is None or self._leave.digest != digest(name, arguments, call_id):
            self._refused.add(call_id)
            return PermissionResultDeny(message=_LATER)
        if name != QUESTION and self._leave.is_granted:
            return PermissionResultAllow(updated_input=arguments)
        if name != QUESTION:
            self._refused.add(call_id)
            return PermissionResultDeny(message=self._denial(self._leave))
        questions = [str(one.get("question", "")) for one in arguments.get("questions", [])]
        answers = dict.fromkeys(questions, self._leave.answer)
        return PermissionResultAllow(updated_input={**arguments, "answers": answers})

    def wish(self, deferred: DeferredToolUse) -> Wish:
        """What a person is asked about the call that was put off."""
        arguments = _arguments(deferred.input)
        asked = digest(deferred.name, arguments, deferred.id)
        if deferred.name == QUESTION:
            text, options = _question(arguments)
            return Wish(WaitingOn.QUESTION, text, options, asked)
        shown = json.dumps(arguments, indent=2, sort_keys=True, ensure_ascii=False)
        text = f"The agent wants to call {deferred.name} with\n{shown}"
        return Wish(WaitingOn.TOOL_APPROVAL, text, (APPROVE, DENY), asked)

    def unasked(self, denials: Sequence[Any]) -> int:
        """Of its refused calls those that neither a person nor this gate refused."""
        ids = (one.get("tool_use_id") for one in denials if isinstance(one, Mapping))
        return sum(call_id not in self._refused for call_id in ids)

    def _is_gated(self, name: str) -> bool:
        return name == QUESTION or name in self._approvals or RISKS.get(name, "execute") in self._approvals


def digest(name: str, arguments: Mapping[str, Any], call_id: str) -> str:
    """SHA-256 of exactly this call, in hex: the answer counts for it alone."""
    call = json.dumps([call_id, name, arguments], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(call.encode()).hexdigest()


def _arguments(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _decision(decision: str, reason: str) -> HookJSONOutput:
    said = {"hookEventName": "PreToolUse", "permissionDecision": decision, "permissionDecisionReason": reason}
    return {"hookSpecificOutput": said}  # type: ignore[typeddict-item]


def _question(arguments: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """One text and one list of options; of several questions all in one text, to be answered in words."""
    asked = [one for one in arguments.get("questions", []) if isinstance(one, Mapping)]
    labels = [
        [str(option.get("label", "")) for option in one.get("options", []) if isinstance(option, Mapping)]
        for one in asked
    ]
    if len(asked) == 1:
        return str(asked[0].get("question", "")), tuple(labels[0])
    lines = [
        f"{number}. {one.get('question', '')} ({' / '.join(options)})"
        for number, (one, options) in enumerate(zip(asked, labels, strict=True), start=1)
    ]
    return "\n".join(lines) or "The agent asks something without saying what.", ()
