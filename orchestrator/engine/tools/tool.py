"""What a tool is: a name, a description, checked arguments, and something to carry out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from orchestrator.core.assignment import Stop
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.core.verdict import Ask, Done
from orchestrator.core.workspace import WorkspaceRefusal
from orchestrator.engine.parsing.calls import UNPARSED
from orchestrator.engine.ports import ToolResult, Workspace
from orchestrator.engine.untrusted import cut, storable

Outcome = ToolResult | Done | Ask | SubtaskRequest


class Risk(StrEnum):
    """What a call can do at worst."""

    READ = "read"
    WRITE = "write"
    EXECUTE = "execute"
    NETWORK = "network"
    """It reaches a host outside, and may carry there what the agent knows."""
    DELEGATE = "delegate"
    """It sets others to work, on the same budget."""
    TALK = "talk"


class Arguments(BaseModel):
    """Checked before the tool runs: exact types, no unknown names."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


RelativePath = Annotated[
    str,
    Field(min_length=1, max_length=4096, description="Relative to the workspace, '/' between folders."),
    AfterValidator(_without_nul),
]
Line = Annotated[str, Field(min_length=1, max_length=20_000), AfterValidator(_without_nul)]

A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a running call may know and use besides the workspace."""

    call_id: str
    stop: Stop
    on_output: Callable[[str], None]
    command_timeout: timedelta
    """The longest that one command may take, whatever the model asks for."""
    on_note: Callable[[str, Mapping[str, Any]], None] = lambda _kind, _data: None
    """Records progress for people, as `Link.note` does: the plan, for one."""
    read_output: Callable[[str, int, int], str | None] = lambda _handle, _start, _count: None
    """At most `count` characters from `start` (from 0) of the whole output of a call whose result was cut;
    None: no such output is kept."""


@dataclass(frozen=True, slots=True)
class Tool(Generic[A]):
    """One tool. `run` never raises because of what the model sent: it answers with an error result.

    A tool whose arguments are described elsewhere (an MCP server's) overrides `schema` and `faults`.
    """

    name: str
    description: str
    arguments: type[A]
    risk: Risk
    changes_files: bool
    carry_out: Callable[[Workspace, A, ToolContext], Outcome]
    touches_nothing: bool = False
    """Only speaks: to run it again after an interruption is harmless and gives the same."""

    def schema(self) -> dict[str, Any]:
        """As the Messages API wants it; not to be changed."""
        return {
            "name": self.name,
            "description": self.description,
            "input_schema": _schema_of(self.arguments),
        }

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        """Why these arguments can't be used; None if they can."""
        if UNPARSED in arguments:
            return (
                f"{self.name} was not run: its arguments are not a JSON object (a long call may be cut "
                "off at the output limit; make it smaller)."
            )
        if faults := self.faults(arguments):
            return cut(f"{self.name} was not run, its arguments are wrong: {'; '.join(faults)}", 2000)
        return None

    def faults(self, arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong with them, ten faults at most."""
        try:
            self.arguments.model_validate(dict(arguments))
        except ValidationError as refused:
            return [
                f"{'.'.join(str(part) for part in fault['loc']) or 'arguments'}: {fault['msg']}"
                for fault in refused.errors(include_url=False, include_input=False)[:10]
            ]
        return []

    def run(self, workspace: Workspace, arguments: Mapping[str, Any], context: ToolContext) -> Outcome:
        """Raises `Stopped` when the stop cut it short, `WorkspaceFault` when the workspace itself failed."""
        if problem := self.problem(arguments):
            return ToolResult(storable(problem), is_error=True)
        try:
            return self.carry_out(workspace, self.arguments.model_validate(dict(arguments)), context)
        except WorkspaceRefusal as refusal:
            return ToolResult(storable(cut(f"{self.name} refused: {refusal}", 2000)), is_error=True)


@cache
def _schema_of(arguments: type[Arguments]) -> Any:
    """Made once: each claim shows all of them, and pydantic takes a third of a millisecond for one."""
    return _plain(arguments.model_json_schema(), top=True)


def _plain(schema: Any, *, top: bool = False) -> Any:
    """Without the titles that only repeat names, and without class docstrings, which are for us."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = {"title", "description"} if top else {"title"}
    return {
        key: {name: _plain(value) for name, value in child.items()} if key == "properties" else _plain(child)
        for key, child in schema.items()
        if key not in dropped
    }
