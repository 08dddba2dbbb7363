"""Scripts: what the model says, turn by turn, to whom.

A turn is chosen by the request alone, never by a counter: whoever sends a request again, after a crash say,
is given the same turn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import Field, ValidationError, model_validator

from orchestrator.core.errors import Problem, Refused
from orchestrator.modelserver.asked import Asked, Offered, call_id
from orchestrator.modelserver.faults import Fault, Kind, Order
from orchestrator.modelserver.said import Call, Counts, Ending, Rendering, Said, compact, tokens_in
from orchestrator.modelserver.when import Strict, Texts, When


class ScriptedCall(Strict):
    """A tool call in one of four spellings: `name` with `arguments`; with `raw`, text that need not be JSON;
    with `input`, for a tool that takes free text; or `run`, a shell command, given to whichever tool the
    request offers for that. `any_of`: the first whose tool is offered.
    """

    name: str | None = None
    arguments: Mapping[str, Any] = {}
    raw: str | None = None
    input: str | None = None
    namespace: str | None = None
    run: str | None = None
    any_of: tuple[ScriptedCall, ...] = ()

    @model_validator(mode="after")
    def _is_one(self) -> ScriptedCall:
        if sum(map(bool, (self.name, self.run, self.any_of))) != 1:
            raise ValueError("a call has either a name, or run, or any_of")
        return self


class ScriptedUsage(Strict):
    """Counts that replace those derived from the texts' lengths."""

    input_tokens: int | None = Field(default=None, ge=0)
    output_tokens: int | None = Field(default=None, ge=0)
    cache_read_tokens: int = Field(default=0, ge=0)
    cache_write_tokens: int = Field(default=0, ge=0)


class Turn(Strict):
    """One reply. `faults`: its first send has the first fault, its second the second, and then it is good."""

    text: str = ""
    thinking: str = ""
    calls: tuple[ScriptedCall, ...] = ()
    ending: Ending | None = None
    usage: ScriptedUsage = ScriptedUsage()
    faults: tuple[Fault, ...] = ()
    pace: float = Field(default=0, ge=0)
    """Seconds between two frames of the stream."""
    latest: Texts = ()
    """Chosen, whatever its number, when each of these is in what came after the model last spoke."""


class Conversation(Strict):
    """`turns` are said in order; `loop`: from the beginning again when they are through."""

    name: str | None = None
    when: When = When()
    turns: tuple[Turn, ...]
    loop: bool = False
    side: str = "Working on it."
    """Answers requests without tools in a conversation that calls tools: titles and summaries."""

    @model_validator(mode="after")
    def _has_turns(self) -> Conversation:
        if not self.turns:
            raise ValueError("a conversation has at least one turn")
        return self

    @property
    def calls_tools(self) -> bool:
        return any(turn.calls for turn in self.turns)


class Script(Strict):
    """The first conversation that matches a request answers it."""

    conversations: tuple[Conversation, ...] = ()
    faults: tuple[Order, ...] = ()
    models: tuple[str, ...] = ("claude-sonnet-4-6", "gpt-5.2-codex")

    def play(self, asked: Asked, headers: Mapping[str, str]) -> Played:
        """Raises `NoLine`."""
        for index, conversation in enumerate(self.conversations):
            seen = conversation.when.seen(asked)
            if seen is not None and conversation.when.matches(asked, headers):
                played = _played(conversation, conversation.name or str(index), seen)
                return replace(played, opening=seen.opening)
        raise NoLine(f"no conversation of the script is for this request; it begins: {asked.opening[:300]!r}")


@dataclass(frozen=True, slots=True)
class Played:
    """`side`: a request beside the conversation, which has no turn of its own there."""

    conversation: str
    number: int
    turn: Turn
    side: bool = False
    recorded: Rendering | None = None
    """Goes over the wire as it is, in place of the turn."""
    opening: str | None = None
    """What the user said first, where that isn't the request's beginning."""


class NoLine(Exception):
    """The script has nothing to say here: a mistake of whoever wrote it, or of whoever asks."""


class Player(Protocol):
    """Decides what is said. A script is one; a test can be another."""

    def play(self, asked: Asked, headers: Mapping[str, str], /) -> Played:
        """Raises `NoLine`."""


def _played(conversation: Conversation, name: str, asked: Asked) -> Played:
    if conversation.calls_tools and not asked.tools:
        return Played(name, asked.turn, Turn(text=conversation.side), side=True)
    for number, turn in enumerate(conversation.turns):
        if turn.latest and all(text in asked.latest for text in turn.latest):
            return Played(name, number, turn)
    plain = [(number, turn) for number, turn in enumerate(conversation.turns) if not turn.latest]
    count = len(plain)
    if not count or (asked.turn >= count and not conversation.loop):
        raise NoLine(f"conversation {name!r} is through: its {count} turns are over")
    _, turn = plain[asked.turn % count]
    return Played(name, asked.turn, turn)


# ---- from a turn to words


def said(turn: Turn, asked: Asked, *, number: int, send: str, at: int) -> Said:
    """Raises `NoLine` when a call's tool is not among those offered, so that none could be chosen."""
    prefix = "toolu" if asked.dialect == "messages" else "call"
    calls = tuple(
        _call(_chosen(call, asked), asked, call_id(prefix, number, index, send))
        for index, call in enumerate(turn.calls)
    )
    written = "".join([turn.thinking, turn.text, *(call.name + call.arguments for call in calls)])
    usage = turn.usage
    return Said(
        send=send,
        model=asked.model,
        text=turn.text,
        thinking=turn.thinking,
        calls=calls,
        ending=turn.ending or (Ending.CALLS if calls else Ending.DONE),
        counts=Counts(
            asked.input_tokens if usage.input_tokens is None else usage.input_tokens,
            tokens_in(written) if usage.output_tokens is None else usage.output_tokens,
            usage.cache_read_tokens,
            usage.cache_write_tokens,
        ),
        created_at=at,
        echo=asked.options,
    )


def _chosen(call: ScriptedCall, asked: Asked) -> ScriptedCall:
    if call.run is not None:
        return _running(call.run, asked)
    if not call.any_of:
        return call
    for one in call.any_of:
        if one.run is not None or asked.offered(one.name or "") is not None:
            return _chosen(one, asked)
    raise NoLine(f"none of {[one.name for one in call.any_of]} is offered: {_names(asked)}")


_SHELLS: Final = (
    *(("run_command", "command"), ("Bash", "command"), ("exec_command", "cmd")),
    *(("shell", "command"), ("developer__shell", "command"), ("bash", "command")),
)
"""Tools of known agents that run a shell command, and the argument that takes it."""


def _running(command: str, asked: Asked) -> ScriptedCall:
    for name, argument in _SHELLS:
        if (tool := asked.offered(name)) is not None:
            return ScriptedCall(name=name, arguments={argument: _worded(command, argument, tool)})
    raise NoLine(f"no tool that is known to run commands is offered: {_names(asked)}")


def _worded(command: str, argument: str, tool: Offered) -> str | list[str]:
    kind = (tool.schema.get("properties") or {}).get(argument, {}).get("type")
    return ["bash", "-lc", command] if kind == "array" else command


def _names(asked: Asked) -> list[str]:
    return [tool.name for tool in asked.tools]


def _call(call: ScriptedCall, asked: Asked, identity: str) -> Call:
    """A name that joins a namespace and a tool's own is taken apart where the request offers it so."""
    name, tool = call.name or "", asked.offered(call.name or "")
    namespace = call.namespace
    if namespace is None and tool is not None and tool.namespace is not None:
        name, namespace = tool.name, tool.namespace
    if call.input is not None:
        return Call(identity, name, call.input, namespace, free_text=True)
    return Call(identity, name, call.raw if call.raw is not None else compact(call.arguments), namespace)


def spoiled(turn: Turn, kind: Kind) -> Turn:
    """The turn as a fault of the model's own makes it."""
    match kind:
        case Kind.REFUSAL:
            return Turn(text="I can't help with that.", ending=Ending.REFUSAL)
        case Kind.MAX_TOKENS:
            return Turn(text=turn.text[: len(turn.text) // 2] or "I was about", ending=Ending.MAX_TOKENS)
        case Kind.CONTEXT_FULL:
            return Turn(text="", ending=Ending.CONTEXT_FULL)
        case _:
            return turn


# ---- files


def load(path: Path) -> Script:
    """Raises Refused with each mistake's place."""
    try:
        return Script.model_validate_json(path.read_bytes())
    except OSError as error:
        raise Refused(
            "model-script-unreadable", f"The script {path} can't be read: {error.strerror}."
        ) from error
    except ValidationError as error:
        problems = tuple(
            Problem("/" + "/".join(map(str, fault["loc"])), "script-invalid", fault["msg"])
            for fault in error.errors()
        )
        raise Refused(
            "model-script-invalid",
            f"The script {path} is not valid.",
            "See docs/how-to/develop-with-the-model-server.md.",
            problems=problems,
        ) from error
