"""Our side of the Agent Client Protocol: what an agent tells us of its work, and what it asks of us."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from acp.schema import (
    AgentMessageChunk,
    AgentPlanUpdate,
    AllowedOutcome,
    CancelElicitationResponse,
    DeclineElicitationResponse,
    DeniedOutcome,
    PermissionOption,
    RequestPermissionResponse,
    ToolCallProgress,
    ToolCallStart,
    ToolCallUpdate,
)

from orchestrator.agents.external import Leave, Wish
from orchestrator.agents.oversight import Overseer
from orchestrator.core.leave import APPROVE, DENY
from orchestrator.core.states import WaitingOn
from orchestrator.engine.untrusted import storable

RISKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("read", "search", "think", "switch_mode"), "read"),
        **dict.fromkeys(("edit", "delete", "move"), "write"),
        "fetch": "network",
    }
)
"""Of the protocol's kinds of tool; what isn't named (execute, other) may do anything."""
ENDED: Final = ("completed", "failed")
MOST_MESSAGE: Final = 256 * 1024
"""Characters of a message that are kept, the last ones."""
MOST_TOOLS: Final = 1000
MOST_META: Final = 200
MOST_META_CHARACTERS: Final = 8000
MOST_HELD: Final = 100
"""Requests that wait for a person at a time."""


class Client:
    """Hears one agent. Made anew for each program, told of each prompt's beginning and end."""

    def __init__(self, overseer: Overseer, approvals: Collection[str], leave: Leave | None) -> None:
        self.wish: Wish | None = None
        self.meta: deque[Mapping[str, Any]] = deque(maxlen=MOST_META)
        self.session_id: str | None = None
        """What is told of another session, or before there is one, is not heard."""
        self.was_denied = False
        self._overseer = overseer
        self._approvals = approvals
        self._leave = leave
        self._listens = False
        self._message = ""
        self._message_id: str | None = None
        self._last = ""
        self._held = 0
        self._tools: dict[str, _Tool] = {}
        self._wishing: asyncio.Future[None] | None = None
        self._cancelling: asyncio.Event = asyncio.Event()

    # --- a prompt's beginning and end -----------------------------------------------------------------------

    def begin(self) -> None:
        """From now on updates are of this prompt; those before told the past of a session."""
        self.wish, self.was_denied = None, False
        self.meta.clear()
        self._message, self._last = "", ""
        self._tools.clear()
        self._wishing = asyncio.get_running_loop().create_future()
        self._cancelling.clear()
        self._listens = True

    def wished(self) -> tuple[asyncio.Future[None], ...]:
        """Done as soon as the agent asks something of a person."""
        return () if self._wishing is None else (self._wishing,)

    def cancelled(self) -> None:
        """The agent was told to cancel: what it waits for is answered so."""
        self._cancelling.set()

    def end(self) -> None:
        self._close_message()
        for call_id, tool in self._tools.items():
            if not tool.is_ended:
                self._overseer.tool_finished(call_id, is_error=True)
        self._listens = False

    def last_words(self) -> str:
        """Its last message; of one beyond all measure its end."""
        return self._message or self._last

    # --- what it tells --------------------------------------------------------------------------------------

    async def session_update(self, session_id: str, update: Any, **meta: Any) -> None:
        if not self._hears(session_id):
            return
        for found in (meta, getattr(update, "field_meta", None)):
            self._mind(found)
        match update:
            case AgentMessageChunk():
                self._hear(getattr(update.content, "text", ""), update.message_id)
            case ToolCallStart() | ToolCallProgress():
                self._close_message()
                self._tool(update)
            case AgentPlanUpdate():
                entries = [{"content": entry.content, "status": entry.status} for entry in update.entries]
                self._overseer.planned(entries)
            case _:
                self._overseer.saying("")

    def _hears(self, session_id: str) -> bool:
        return self._listens and self.session_id in {None, session_id}

    def _mind(self, meta: object) -> None:
        """The latest of what profiles judge by; long ones are about something else."""
        if meta and isinstance(meta, Mapping) and len(str(meta)) <= MOST_META_CHARACTERS:
            self.meta.append(meta)

    def _hear(self, text: str, message_id: str | None) -> None:
        """Another id begins another message: Codex' warnings have none, what its model says has one."""
        if message_id != self._message_id:
            self._close_message()
        self._message_id = message_id
        self._message = (self._message + text)[-MOST_MESSAGE:]
        self._overseer.saying(text)

    def _close_message(self) -> None:
        if self._message:
            self._overseer.said(self._message)
            self._last = self._message
        self._message = ""

    def _tool(self, update: ToolCallStart | ToolCallProgress) -> None:
        call_id = update.tool_call_id
        tool = self._tools.get(call_id)
        if tool is None:
            tool = self._tools[call_id] = _Tool()
            while len(self._tools) > MOST_TOOLS:
                self._tools.pop(next(iter(self._tools)))
            tool.take(update)
            self._overseer.tool_started(call_id, tool.title, tool.arguments)
        else:
            tool.take(update)
        if update.status in ENDED and not tool.is_ended:
            tool.is_ended = True
            self._overseer.tool_finished(
                call_id,
                is_error=update.status == "failed",
                output=_output(update),
                changes_files=tool.risk != "read",
            )
            tool.forget()

    async def ext_notification(self, method: str, params: dict[str, Any]) -> None:
        if self._listens:
            self._mind({method: params})

    async def ext_method(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        del method, params
        return {}

    # --- what it asks ---------------------------------------------------------------------------------------

    async def request_permission(
        self, session_id: str, tool_call: ToolCallUpdate, options: list[PermissionOption], **_: Any
    ) -> RequestPermissionResponse:
        if not self._hears(session_id) or self._held >= MOST_HELD:
            return RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))
        tool = _Tool()
        if (known := self._tools.get(tool_call.tool_call_id)) is not None:
            tool.take_from(known)
        tool.take(tool_call)
        if not self._needs_leave(tool):
            return _chosen(options, allow=True)
        whole = tool.whole()
        digest = hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()
        if self._leave is not None and self._leave.digest == digest:
            leave, self._leave = self._leave, None
            self.was_denied = not leave.is_granted
            return _chosen(options, allow=leave.is_granted)
        text = f"The agent wants to use a tool (risk: {tool.risk}):\n{whole}"
        await self._ask(Wish(WaitingOn.TOOL_APPROVAL, text, (APPROVE, DENY), digest))
        return RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))

    def _needs_leave(self, tool: _Tool) -> bool:
        return tool.risk in self._approvals or tool.title in self._approvals

    async def create_elicitation(self, message: str, mode: Any, **_: Any) -> Any:
        schema = getattr(mode, "requested_schema", None)
        if schema is None:
            return DeclineElicitationResponse(action="decline")  # an address to be opened in a browser
        if not self._listens or self._held >= MOST_HELD:
            return CancelElicitationResponse(action="cancel")
        fields = _fields(schema)
        await self._ask(Wish(WaitingOn.QUESTION, _question(message, fields), _choices(fields)))
        return CancelElicitationResponse(action="cancel")

    async def _ask(self, wish: Wish) -> None:
        """The first of a prompt; a person is asked one thing at a time. Until the prompt is cancelled."""
        if self.wish is None:
            self.wish = wish
        if self._wishing is not None and not self._wishing.done():
            self._wishing.set_result(None)
        self._held += 1
        try:
            await self._cancelling.wait()
        finally:
            self._held -= 1


class _Tool:
    """One tool call, as far as it was told."""

    def __init__(self) -> None:
        self.title = "tool"
        self.kind = "other"
        self.arguments: Mapping[str, Any] = {}
        self.changes: list[str] = []
        self.is_ended = False

    def take_from(self, other: _Tool) -> None:
        self.title, self.kind = other.title, other.kind
        self.arguments, self.changes = other.arguments, list(other.changes)

    def take(self, update: Any) -> None:
        self.title = update.title or self.title
        self.kind = update.kind or self.kind
        if update.raw_input is not None:
            given = update.raw_input
            self.arguments = given if isinstance(given, Mapping) else {"input": given}
        if update.content is not None:  # in place of what was told before
            self.changes = [
                f"{content.path}\n{content.new_text}"
                for content in update.content
                if getattr(content, "type", None) == "diff"
            ]

    def forget(self) -> None:
        """It has ended: only that it was there counts."""
        self.arguments, self.changes = {}, []

    @property
    def risk(self) -> str:
        """A class of risk, as policies name them."""
        return RISKS.get(self.kind, "execute")

    def whole(self) -> str:
        """All that a person needs to judge it: leave is bound to exactly this, however little is shown."""
        arguments = json.dumps(self.arguments, indent=2, sort_keys=True, ensure_ascii=False, default=str)
        parts = [self.title, *([arguments] if self.arguments else []), *self.changes]
        return storable("\n".join(parts))


def _chosen(options: Sequence[PermissionOption], *, allow: bool) -> RequestPermissionResponse:
    """Once rather than for ever. An agent that gives no such choice hears that it was cancelled."""
    wanted = ("allow_once", "allow_always") if allow else ("reject_once", "reject_always")
    for kind in wanted:
        for option in options:
            if option.kind == kind:
                outcome = AllowedOutcome(outcome="selected", option_id=option.option_id)
                return RequestPermissionResponse(outcome=outcome)
    return RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))


def _output(update: ToolCallStart | ToolCallProgress) -> str:
    """What a person may want to see of its result."""
    texts = [
        getattr(getattr(content, "content", None), "text", None)
        for content in update.content or ()
        if getattr(content, "type", None) == "content"
    ]
    if found := [text for text in texts if text]:
        return "\n".join(found)
    raw = update.raw_output
    if isinstance(raw, Mapping):
        raw = next(
            (raw[key] for key in ("formatted_output", "aggregated_output", "output") if key in raw), None
        )
    return raw if isinstance(raw, str) else ""


def _fields(schema: Any) -> dict[str, Mapping[str, Any]]:
    """What a form asks for: what it requires, if it says so, since notes and the like stand beside that."""
    fields = {
        name: each.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, each in (schema.properties or {}).items()
    }
    return {name: fields[name] for name in schema.required or fields if name in fields}


def _question(message: str, fields: Mapping[str, Mapping[str, Any]]) -> str:
    """The form's own words, and each field's."""
    lines = [message]
    for each in fields.values():
        lines += [text for key in ("title", "description") if (text := each.get(key))]
    return storable("\n".join(dict.fromkeys(lines)))


def _choices(fields: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Of a form with one field; one with more is answered in words."""
    if len(fields) != 1:
        return ()
    each = next(iter(fields.values()))
    if each.get("enum"):
        return tuple(map(str, each["enum"]))
    choices = each.get("oneOf") or (each.get("items") or {}).get("anyOf") or ()
    return tuple(str(choice.get("title") or choice.get("const")) for choice in choices)
