"""Agents that need no model: the real engine, a script at the Model port, real or imaginary workspaces.

A step's script is its spec: {"turns": 3, "seconds": 0.1, "asks": true, "breaks": 1, "files": true,
"shared": false, "eats": false, "dies": false, "delegates": [{…}]}. `breaks` attempts end in an error that
another attempt may mend; `asks` asks a person before the last turn; `files` opens a real checkout, else
files are only imagined; `shared` writes a file that its siblings write, too; `eats` runs a command that takes
more memory than commands may have; `dies` takes its worker's process along at the last turn, whatever the
attempt; `delegates` starts a subtask for each script in it and waits for them all, before it asks.
BENCHMARK_REQUESTS names a file in which each request to the script becomes a line.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal

from orchestrator.agents.engine import EngineAgent
from orchestrator.bootstrap import Desk, Wiring
from orchestrator.core.assignment import Agent, Assignment, Link, Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Done, Verdict
from orchestrator.core.workspace import CommandResult, Match, WorkspaceRefusal
from orchestrator.engine.ports import (
    Block,
    ModelError,
    ModelRequest,
    Reply,
    Stopped,
    StreamEvent,
    TextDelta,
    Usage,
    Workspace,
)
from orchestrator.engine.tools.policy import ToolPolicy
from orchestrator.engine.tools.talk import START_SUBTASK

_MORE_THAN_THERE_IS: Final = "head -c 500000000 /dev/zero > /tmp/eaten"
"""The sandbox's /tmp is memory."""


@dataclass(frozen=True, slots=True)
class Script:
    """What one step does, turn by turn; the same reply to the same conversation, always."""

    key: str
    attempt: int
    spec: Mapping[str, Any]
    heard: Callable[[int], None] = lambda _: None
    """Told the number of the turn that is asked for, before anything else."""
    kind: Literal["live", "recorded"] = "recorded"
    name: str = "script"

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        turn = 1 + sum(message["role"] == "assistant" for message in request.messages)
        self.heard(turn)
        if stop.wait_hard(float(self.spec.get("seconds", 0))):
            raise Stopped
        turns = int(self.spec.get("turns", 1))
        if self.spec.get("dies") and turn >= turns:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.attempt <= int(self.spec.get("breaks", 0)) and turn >= turns:
            raise ModelError(ErrorClass.AGENT, "script-breaks", "as the script says", retryable=True)
        listen(TextDelta(f"turn {turn}"))
        used = Usage(input_tokens=10 * turn, output_tokens=1)
        call = self._call(turn, turns, _succeeded(request))
        if self.spec.get("eats") and turn == 1:
            call = _tool("eat", "run_command", command=_MORE_THAN_THERE_IS)
        if call["id"] in {"ask", "done"} and not _was_told(request, "part-0"):
            parts = enumerate(self.spec.get("delegates", ()))
            calls = [_tool(f"part-{n}", START_SUBTASK.name, objective=json.dumps(part)) for n, part in parts]
            return Reply(tuple(calls or [call]), "tool_use", used, self.name)
        return Reply((call,), "tool_use", used, self.name)

    def _call(self, turn: int, turns: int, succeeded: Sequence[str]) -> Block:
        """The next thing to do; what was interrupted has to be done once more, as a model would."""
        written = sum(call_id.startswith("write-") for call_id in succeeded)
        if written < turns:
            path = "shared.txt" if self.spec.get("shared") else f"work/{self.key}.txt"
            lines = "".join(f"{self.key} {number}\n" for number in range(1, written + 2))
            return _tool(f"write-{turn}", "write_file", path=path, content=lines)
        if self.spec.get("asks") and "ask" not in succeeded:
            return _tool("ask", "ask_followup_question", question=f"What about {self.key}?")
        return _tool("done", "attempt_completion", summary=f"{self.key} is done", result={"turns": turns})


def _succeeded(request: ModelRequest) -> list[str]:
    """The calls whose results say no error."""
    return [
        block["tool_use_id"]
        for message in request.messages
        if message["role"] == "user" and not isinstance(message["content"], str)
        for block in message["content"]
        if block["type"] == "tool_result" and not block.get("is_error")
    ]


def _was_told(request: ModelRequest, call_id: str) -> bool:
    """Whether the call has a result, whatever it says."""
    return any(
        block["type"] == "tool_result" and block["tool_use_id"] == call_id
        for message in request.messages
        if message["role"] == "user" and not isinstance(message["content"], str)
        for block in message["content"]
    )


def _tool(call_id: str, name: str, **arguments: Any) -> Block:
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


@dataclass(slots=True)
class Imagined:
    """A workspace whose files are only remembered by this process: no checkpoint, no commit."""

    files: dict[str, str] = field(default_factory=dict)

    def read(self, path: str, start: int | None, end: int | None, /) -> str:
        del start, end
        if path not in self.files:
            raise WorkspaceRefusal(f"there is no {path}")
        return self.files[path]

    def write(self, path: str, text: str, /) -> None:
        self.files[path] = text

    def delete(self, path: str, /) -> None:
        self.files.pop(path, None)

    def list(self, path: str, depth: int, /) -> Sequence[str]:
        del path, depth
        return sorted(self.files)

    def search(self, pattern: str, path: str, glob: str | None, /) -> Sequence[Match]:
        del pattern, path, glob
        return ()

    def run(
        self, command: str, *, timeout: timedelta, on_output: Callable[[str], None], stop: Stop
    ) -> CommandResult:
        del timeout, on_output, stop
        raise WorkspaceRefusal(f"nothing can run here: {command}")

    def checkpoint(self, label: str, /) -> str | None:
        del label
        return None

    def restore(self, commit: str, /) -> None:
        raise AssertionError(commit)

    def adopt(self, commit: str, /) -> str | None:
        raise AssertionError(commit)


@contextmanager
def _imagined() -> Iterator[Workspace]:
    yield Imagined()


def _ledger(assignment: Assignment) -> Callable[[int], None]:
    """What a model's server would write down: each request in one write, whatever happens next."""
    at = os.environ.get("BENCHMARK_REQUESTS")

    def heard(turn: int) -> None:
        if at is None:
            return
        line = json.dumps({"task": assignment.task_id, "fence": assignment.fence, "turn": turn})
        descriptor = os.open(at, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)

    return heard


def scripted_agent(wiring: Wiring, desk: Desk) -> Agent:
    """The engine, with the script of the assignment's spec for a model."""

    def script(assignment: Assignment) -> Script:
        spec = _spec(assignment)
        key = str(spec.get("key", assignment.step_key))
        return Script(key, assignment.attempt, spec, _ledger(assignment))

    def workspace(assignment: Assignment) -> AbstractContextManager[Workspace]:
        return desk.open_workspace(assignment) if _spec(assignment).get("files") else _imagined()

    return EngineAgent(
        script,
        desk.open_journal,
        workspace,
        wiring.settings.command_timeout,
        policy=ToolPolicy(subtasks=True),
    )


def _spec(assignment: Assignment) -> Mapping[str, Any]:
    """A subtask brings no spec; its objective is one."""
    if assignment.description.startswith("{"):
        found: Mapping[str, Any] = json.loads(assignment.description)
        return found
    return assignment.spec


@dataclass(frozen=True, slots=True)
class Sleeper:
    """Does nothing, for as long as the spec says: what remains is the cost of the machinery."""

    def work(self, assignment: Assignment, link: Link) -> Verdict:
        seconds = float(assignment.spec.get("seconds", 0))
        if seconds:
            link.stop.wait(seconds)
        return Done("")


def sleeper(wiring: Wiring, desk: Desk) -> Agent:
    del wiring, desk
    return Sleeper()
