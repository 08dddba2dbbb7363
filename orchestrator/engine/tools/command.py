"""run_command."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final

from pydantic import Field

from orchestrator.core.workspace import CommandResult
from orchestrator.engine.ports import Stopped, ToolResult, Workspace
from orchestrator.engine.tools.tool import Arguments, Line, Risk, Tool, ToolContext
from orchestrator.engine.untrusted import RESULT_CHARACTERS, cut, marked


class RunCommand(Arguments):
    command: Annotated[Line, Field(description="A shell command; it starts in the root of the workspace.")]
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400, description="Killed after this long.")] = 120


def _run(workspace: Workspace, asked: RunCommand, context: ToolContext) -> ToolResult:
    timeout = min(timedelta(seconds=asked.timeout_seconds), context.command_timeout)
    result = workspace.run(asked.command, timeout=timeout, on_output=context.on_output, stop=context.stop)
    if result.exit_code is None and not result.timed_out and context.stop.is_hard():
        raise Stopped
    note = "\n(more output was thrown away)" if result.truncated else ""
    output = marked("output of the command", cut(result.output)) if result.output else "(no output)"
    return ToolResult(f"{_ending(result, timeout)}\n{output}{note}", is_error=result.exit_code != 0)


def _ending(result: CommandResult, timeout: timedelta) -> str:
    if result.timed_out:
        return f"killed after {timeout.total_seconds():g} seconds, its timeout"
    if result.exit_code is None:
        return "killed, at one of the workspace's limits"
    return f"exit code {result.exit_code}"


RUN_COMMAND: Final = Tool(
    name="run_command",
    description=(
        "Runs a shell command in the workspace; gives its exit code and output (stdout and stderr together, "
        f"at most {RESULT_CHARACTERS:,} characters of it). There is no terminal and nobody to answer prompts."
    ),
    arguments=RunCommand,
    risk=Risk.EXECUTE,
    changes_files=True,
    carry_out=_run,
)
