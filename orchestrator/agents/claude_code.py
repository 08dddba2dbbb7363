"""Claude Code, by its own SDK: typed messages, and leave that holds no worker while a person decides.

A call that needs a person is put off (`defer`): the run ends, and when its session is resumed the hook is
asked again for that very call. Its transcript is kept in Postgres, too, so that another host can resume.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    ClaudeSDKError,
    Message,
    ResultMessage,
    SessionStore,
    StreamEvent,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from orchestrator.agents.claude_leave import RISKS, Gate
from orchestrator.agents.claude_pipe import Pipe
from orchestrator.agents.claude_transcripts import Mirror, restore
from orchestrator.agents.external import AgentBroke, Leave, TurnEnd, flooded, multiplied
from orchestrator.agents.launch import Enclosure
from orchestrator.agents.oversight import Cut, Overseer
from orchestrator.agents.pipes import Flooded
from orchestrator.agents.ports import Transcripts
from orchestrator.agents.programs import Program
from orchestrator.core.assignment import Assignment
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.redaction import beginning
from orchestrator.core.verdict import Broke

_NAME: Final = "Claude Code"
_LOOK_SECONDS: Final = 0.2
_INTERRUPT_SECONDS: Final = 3.0
_START_SECONDS: Final = 60.0
_GOES_ON_SECONDS: Final = 4.0
"""After which a resumed session that doesn't go on by itself is told to."""
_LEFT_OUT: Final = ("WebFetch", "WebSearch")
"""There is no network, and what a provider fetches for a model nobody here has seen."""
_ENVIRONMENT: Final = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "IS_SANDBOX": "1",  # or it refuses to act without asking where it runs as root
    # Else its own subagents work on when its turn has ended, which is the end here.
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    "CLAUDE_CODE_MAX_RETRIES": "0",  # the orchestrator alone retries
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_CODE_SDK_READS_SESSION_STATE": "1",
}


@dataclass(frozen=True, slots=True)
class ClaudeCode:
    """The adapter. `model`: of steps that name none."""

    program: Program
    model: str
    open_transcripts: Callable[[Assignment], Transcripts]
    name: str = "claude-code"

    @contextmanager
    def open(
        self,
        assignment: Assignment,
        enclosure: Enclosure,
        overseer: Overseer,
        session_id: str | None,
        leave: Leave | None,
    ) -> Iterator[Talk]:
        transcripts = self.open_transcripts(assignment)
        resumed = session_id is not None and restore(
            transcripts, session_id, enclosure.home_on_disk, enclosure.folder
        )
        own = session_id if resumed and session_id else str(uuid.uuid4())
        environment = {
            **_ENVIRONMENT,
            "CLAUDE_CONFIG_DIR": f"{enclosure.home}/.claude",
            "ANTHROPIC_BASE_URL": enclosure.base_url,
            "ANTHROPIC_API_KEY": enclosure.token,
        }
        words = [*self._words(assignment), f"--{'resume' if resumed else 'session-id'}={own}"]
        pipe = Pipe(enclosure, words, environment, self.program.folders, overseer.complained)
        gate = Gate(assignment.approvals, leave)
        options = ClaudeAgentOptions(
            can_use_tool=gate.settle,
            hooks=gate.hooks,
            session_store=cast("SessionStore", Mirror(transcripts)),
            session_store_flush="eager",
            env=environment,
        )
        with asyncio.Runner() as runner:
            client = ClaudeSDKClient(options, pipe)
            try:
                runner.run(_connected(client, pipe))
                yield Talk(own, resumed, runner, client, pipe, gate, overseer, resumed and leave is not None)
            finally:
                for ending in (client.disconnect, pipe.close):
                    with contextlib.suppress(Exception):  # whatever it says, it ends
                        runner.run(asyncio.wait_for(ending(), _START_SECONDS))
                pipe.end()

    def _words(self, assignment: Assignment) -> list[str]:
        return [
            *self.program.command,
            *("--output-format", "stream-json", "--input-format", "stream-json", "--verbose"),
            *("--model", assignment.model or self.model),
            # Not the mode that bypasses all leave: what a resumed session does before it knows of the hooks
            # must be asked about, too.
            *("--permission-mode", "default", "--permission-prompt-tool", "stdio"),
            *("--disallowedTools", ",".join(_LEFT_OUT)),
            *("--max-turns", str(assignment.limits.turns)),
            *("--include-partial-messages", "--session-mirror", "--strict-mcp-config"),
            "--setting-sources=",  # the repository's own settings and hooks are its author's, not the user's
        ]


async def _connected(client: ClaudeSDKClient, pipe: Pipe) -> None:
    try:
        await asyncio.wait_for(client.connect(), _START_SECONDS)
    except Exception as error:  # the SDK raises anything for what the program says
        raise AgentBroke(_died(pipe, "it did not start", error)) from error


def _died(pipe: Pipe, what: str, error: Exception) -> Broke:
    if isinstance(error, Flooded):
        return flooded(_NAME, error)
    code, what = pipe.code(), f"{what}: {type(error).__name__} {str(error)[:300]}".strip()
    ended = "" if code is None else f" (exit code {code})"
    return Broke("agent-died", f"{_NAME}: {what}{ended}.", ErrorClass.AGENT)


class Talk:
    """One run of the program with its session open."""

    def __init__(
        self,
        session_id: str,
        resumed: bool,
        runner: asyncio.Runner,
        client: ClaudeSDKClient,
        pipe: Pipe,
        gate: Gate,
        overseer: Overseer,
        goes_on: bool,
    ) -> None:
        self.session_id = session_id
        self.is_resumed = resumed
        self._runner = runner
        self._client = client
        self._pipe = pipe
        self._gate = gate
        self._overseer = overseer
        self._text = ""
        self._goes_on = goes_on
        """It was put off in the middle, and goes on there by itself."""

    def prompt(self, text: str, /) -> TurnEnd:
        self._text = ""
        try:
            return self._runner.run(self._carried_out(text))
        except (ClaudeSDKError, Flooded, OSError, ValueError, RecursionError) as error:
            raise AgentBroke(_died(self._pipe, "it broke off", error)) from error

    async def _carried_out(self, text: str) -> TurnEnd:
        silent_until, besides = None, ""
        if self._goes_on:
            self._goes_on = False
            besides = _messages_in(text)
            silent_until = time.monotonic() + _GOES_ON_SECONDS
        else:
            await self._client.query(text)
        self._pipe.begin()
        messages = aiter(self._client.receive_messages())
        arriving: asyncio.Task[Message] | None = None
        try:
            while True:
                arriving = arriving or asyncio.ensure_future(_next(messages))
                done, _ = await asyncio.wait({arriving}, timeout=_LOOK_SECONDS)
                if done:
                    message, arriving = arriving.result(), None
                    if isinstance(message, ResultMessage):
                        if message.is_error or message.deferred_tool_use or not besides:
                            return self._end(message)
                        await self._client.query(besides)
                        besides = ""
                    self._hear(message)
                    silent_until = silent_until if isinstance(message, SystemMessage) else None
                elif silent_until is not None and time.monotonic() > silent_until:
                    silent_until = None
                    await self._client.query(text)
                self._pipe.look()
                cut = self._overseer.look()
                if self._pipe.too_many():
                    return TurnEnd(self._text, problem=multiplied(_NAME))
                if cut is not None:
                    return await self._interrupted(cut, arriving, messages)
        finally:
            if arriving is not None:
                arriving.cancel()

    async def _interrupted(
        self, cut: Cut, arriving: asyncio.Task[Message] | None, messages: AsyncIterator[Message]
    ) -> TurnEnd:
        """By its own protocol: it kills what it runs, and says so."""
        with contextlib.suppress(Exception):  # whatever it answers, it is ended after this
            async with asyncio.timeout(_INTERRUPT_SECONDS):
                await self._client.interrupt()
                while not isinstance(message := await (arriving or _next(messages)), ResultMessage):
                    arriving = None
                    self._hear(message)
        return TurnEnd(self._text, cut=cut)

    def _hear(self, message: Message) -> None:
        match message:
            case StreamEvent(event={"type": "content_block_delta", "delta": {"text": str(text)}}):
                self._overseer.saying(text)
            case AssistantMessage(content=content, parent_tool_use_id=parent):
                for block in content:
                    self._told(block, of_its_own=parent is None)
            case UserMessage(content=list(content)):
                for result in content:
                    if isinstance(result, ToolResultBlock):
                        self._finished(result)

    def _told(self, block: object, *, of_its_own: bool) -> None:
        match block:
            case TextBlock(text=text):
                self._overseer.said(text)
                if of_its_own and text.strip():
                    self._text = text
            case ToolUseBlock(id=call_id, name=name, input=arguments):
                self._gate.names[call_id] = name
                self._overseer.tool_started(call_id, name, arguments)

    def _finished(self, result: ToolResultBlock) -> None:
        name = self._gate.names.get(result.tool_use_id, "")
        self._overseer.tool_finished(
            result.tool_use_id,
            is_error=bool(result.is_error),
            output=_output(result.content),
            changes_files=RISKS.get(name) != "read",
        )

    def _end(self, result: ResultMessage) -> TurnEnd:
        """Its own words for success count for nothing where the rest of what it says denies them."""
        text = result.result or self._text
        if result.deferred_tool_use is not None:
            return TurnEnd(text, wish=self._gate.wish(result.deferred_tool_use))
        if result.is_error or result.terminal_reason not in {None, "completed"}:
            return TurnEnd(text, problem=_problem(result))
        return TurnEnd(text, denials=self._gate.unasked(result.permission_denials or []))


def _messages_in(text: str) -> str:
    """Of a prompt that tells an answer, too, what the person said besides it."""
    _, mark, rest = text.partition("<message")
    return f"The person who watches says this besides:\n{mark}{rest}" if mark else ""


async def _next(messages: AsyncIterator[Message]) -> Message:
    """Raises ClaudeSDKError at the end: a program that ends in the middle of a prompt has died; and for
    whatever the SDK finds wrong with a message, which it says in any exception. Raises Flooded."""
    try:
        return await anext(messages)
    except StopAsyncIteration:
        raise ClaudeSDKError("the program ended") from None
    except (ClaudeSDKError, Flooded):
        raise
    except Exception as error:
        raise ClaudeSDKError(type(error).__name__) from error


def _problem(result: ResultMessage) -> Broke:
    said = beginning((result.errors or [result.result or ""])[0], 500)
    why = result.terminal_reason or result.subtype
    match result.subtype:
        case "error_max_turns":
            return Broke("limit-turns", f"not done: {why}", ErrorClass.LIMIT, retryable=False)
        case "error_max_budget_usd":
            return Broke("limit-cost", f"not done: {why}", ErrorClass.LIMIT, retryable=False)
    status = f" (status {result.api_error_status})" if result.api_error_status else ""
    return Broke("agent-failed", f"{_NAME} could not go on{status}: {why}. {said}", ErrorClass.AGENT)


def _output(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    texts = (part.get("text", "") for part in content if isinstance(part, Mapping))
    return "\n".join(texts) or beginning(json.dumps(content), 1000)
