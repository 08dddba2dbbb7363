"""read_output, and how a long output is told: a part of it at once, all of it on demand."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from orchestrator.core.redaction import beginning
from orchestrator.engine.ports import ToolResult, Workspace
from orchestrator.engine.tools.tool import Arguments, Line, Risk, Tool, ToolContext
from orchestrator.engine.untrusted import RESULT_CHARACTERS, cut, marked, storable

KEPT_CHARACTERS: Final = 1_000_000
"""The most of one output that is kept for later."""


def told(context: ToolContext, head: str, source: str, text: str, *, is_error: bool = False) -> ToolResult:
    """`head`, then `text` as something from outside, cut; the whole of it can be read with `read_output`."""
    shown = "\n".join(filter(None, (head, marked(source, cut(text)))))
    if len(text) <= RESULT_CHARACTERS:
        return ToolResult(shown, is_error)
    rest = f"\n[{len(text):,} characters in all; read_output shows the rest, call_id {context.call_id}]"
    return ToolResult(shown + rest, is_error, storable(beginning(text, KEPT_CHARACTERS)))


class ReadOutput(Arguments):
    call_id: Annotated[Line, Field(description="Of the call whose output was shown in part.")]
    start: Annotated[int, Field(ge=0, description="First character, from 0.")] = 0
    count: Annotated[int, Field(ge=1, le=RESULT_CHARACTERS)] = RESULT_CHARACTERS


def _read(_: Workspace, asked: ReadOutput, context: ToolContext) -> ToolResult:
    text = context.read_output(asked.call_id, asked.start, asked.count)
    if text is None:
        return ToolResult(f"read_output: no output of a call {asked.call_id!r} is kept", is_error=True)
    if not text:
        return ToolResult(f"The output ends before character {asked.start:,}.")
    return ToolResult(f"{marked(f'output of {asked.call_id} from character {asked.start}', text)}")


READ_OUTPUT: Final = Tool(
    name="read_output",
    description=(
        "Shows more of the output of an earlier call that was shown in part, at most "
        f"{RESULT_CHARACTERS:,} characters at a time."
    ),
    arguments=ReadOutput,
    risk=Risk.READ,
    changes_files=False,
    carry_out=_read,
)
