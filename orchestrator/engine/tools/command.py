"""run_command, and read_background and stop_background for what it left running."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final

from pydantic import Field

from orchestrator.core.workspace import BackgroundOutput, CommandResult
from orchestrator.engine.ports import Stopped, ToolResult, Workspace
from orchestrator.engine.tools.output import told
from orchestrator.engine.tools.tool import Arguments, Line, Risk, Tool, ToolContext
from orchestrator.engine.untrusted import RESULT_CHARACTERS

DEFAULT_TIMEOUT: Final = 120
LONGEST_BACKGROUND: Final = timedelta(hours=24)
FIRST_LOOK: Final = timedelta(seconds=0.5)
"""So that what fails at once is seen to fail."""


class RunCommand(Arguments):
    command: Annotated[Line, Field(description="A shell command; it starts in the root of the workspace.")]
    timeout_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=86_400,
            description=f"Killed after this long; left out: {DEFAULT_TIMEOUT}, in the background never.",
        ),
    ] = None
    background: Annotated[
        bool,
        Field(description="Don't wait for its end: for servers and watchers. It ends with the step."),
    ] = False


def _run(workspace: Workspace, asked: RunCommand, context: ToolContext) -> ToolResult:
    if asked.background:
        return _start(workspace, asked, context)
    timeout = min(timedelta(seconds=asked.timeout_seconds or DEFAULT_TIMEOUT), context.command_timeout)
    result = workspace.run(asked.command, timeout=timeout, on_output=context.on_output, stop=context.stop)
    if result.exit_code is None and not result.timed_out and context.stop.is_hard():
        raise Stopped
    failed = result.exit_code != 0
    head = _ending(result, timeout)
    if not result.output:
        return ToolResult(f"{head}\n(no output)", is_error=failed)
    if result.truncated:
        head += "\n(the beginning of the output was thrown away)"
    return told(context, head, "output of the command", result.output, is_error=failed)


def _start(workspace: Workspace, asked: RunCommand, context: ToolContext) -> ToolResult:
    """The call's own id is the handle, so that it names the same command whoever reads the conversation."""
    handle = context.call_id
    timeout = (
        LONGEST_BACKGROUND if asked.timeout_seconds is None else timedelta(seconds=asked.timeout_seconds)
    )
    workspace.start_background(
        handle, asked.command, timeout=timeout, on_output=context.on_output, stop=context.stop
    )
    found = workspace.read_background(handle, FIRST_LOOK, context.stop)
    if not found.running:
        return _found(found, context)
    running = f"running in the background; its handle is {handle}"
    return told(context, running, "output of the command", found.output or "(no output yet)")


def _ending(result: CommandResult, timeout: timedelta) -> str:
    if result.timed_out:
        return f"killed after {timeout.total_seconds():g} seconds, its timeout"
    if result.exit_code is None:
        return "killed, at one of the workspace's limits"
    return f"exit code {result.exit_code}"


def _found(found: BackgroundOutput, context: ToolContext, *, stopped: bool = False) -> ToolResult:
    if found.running:
        head = "still running"
    else:
        head = f"exit code {found.exit_code}" if found.killed is None else f"killed: {found.killed}"
    if found.left_out:
        head += f"\n({found.left_out:,} earlier characters of its output were thrown away)"
    failed = not found.running and not stopped and found.exit_code != 0
    if not found.output:
        return ToolResult(f"{head}\n(no more output)", is_error=failed)
    return told(context, head, "output of the command", found.output, is_error=failed)


RUN_COMMAND: Final = Tool(
    name="run_command",
    description=(
        "Runs a shell command in the workspace; gives its exit code and output (stdout and stderr together, "
        f"at most {RESULT_CHARACTERS:,} characters of it). There is no terminal, and nobody answers prompts. "
        "In the background it gives a handle for read_background and stop_background."
    ),
    arguments=RunCommand,
    risk=Risk.EXECUTE,
    changes_files=True,
    carry_out=_run,
)

Handle = Annotated[Line, Field(description="As run_command gave it.")]


class ReadBackground(Arguments):
    handle: Handle
    wait_seconds: Annotated[int, Field(ge=0, le=600, description="Waits at most this long for its end.")] = 0


def _read(workspace: Workspace, asked: ReadBackground, context: ToolContext) -> ToolResult:
    wait = min(timedelta(seconds=asked.wait_seconds), context.command_timeout)
    found = workspace.read_background(asked.handle, wait, context.stop)
    if found.running and context.stop.is_hard():
        raise Stopped
    return _found(found, context)


READ_BACKGROUND: Final = Tool(
    name="read_background",
    description="Shows what a command in the background printed since the last look, and how it ended.",
    arguments=ReadBackground,
    risk=Risk.TALK,  # what the command may do was settled when it was started
    changes_files=True,
    carry_out=_read,
)


class StopBackground(Arguments):
    handle: Handle


def _stop(workspace: Workspace, asked: StopBackground, context: ToolContext) -> ToolResult:
    return _found(workspace.stop_background(asked.handle), context, stopped=True)


STOP_BACKGROUND: Final = Tool(
    name="stop_background",
    description="Ends a command in the background with all that it started; shows what it printed last.",
    arguments=StopBackground,
    risk=Risk.TALK,
    changes_files=True,
    carry_out=_stop,
)
