"""What the engine needs from outside, small and real: a folder, a file, and a script in place of a model."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from orchestrator.core.assignment import Assignment, Limits, Stop
from orchestrator.core.redaction import Redactor
from orchestrator.core.states import Status
from orchestrator.core.subtask import SubtaskEnd, SubtaskRequest
from orchestrator.core.verdict import Verdict
from orchestrator.core.workspace import CommandResult, Match, WorkspaceRefusal
from orchestrator.engine import loop
from orchestrator.engine.context import Room
from orchestrator.engine.ports import (
    Block,
    Call,
    Compacted,
    Conversation,
    Corrected,
    Entry,
    Heard,
    LeaseLost,
    Model,
    ModelRequest,
    Reply,
    Spending,
    StreamEvent,
    SubtaskRefused,
    TextDelta,
    ToolResult,
    Turn,
    Usage,
)
from orchestrator.engine.prices import Price
from orchestrator.engine.tools import TOOLS
from orchestrator.engine.tools.tool import Tool


class Killed(BaseException):
    """The process is gone."""


class FolderWorkspace:
    """A plain folder; checkpoints are copies of it beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._copies = root.parent / f"{root.name}.checkpoints"
        root.mkdir(parents=True, exist_ok=True)
        self._last = self._digest()

    def _inside(self, path: str) -> Path:
        found = (self.root / path).resolve()
        if not found.is_relative_to(self.root.resolve()):
            raise WorkspaceRefusal(f"{path} is outside the workspace")
        return found

    def read(self, path: str, start: int | None, end: int | None, /) -> str:
        file = self._inside(path)
        if not file.is_file():
            raise WorkspaceRefusal(f"there is no file {path}")
        with file.open(encoding="utf-8", newline="") as opened:
            lines = opened.read().splitlines(keepends=True)
        return "".join(lines[(start or 1) - 1 : end])

    def write(self, path: str, text: str, /) -> None:
        file = self._inside(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8", newline="") as opened:
            opened.write(text)

    def delete(self, path: str, /) -> None:
        file = self._inside(path)
        if not file.is_file():
            raise WorkspaceRefusal(f"there is no file {path}")
        file.unlink()

    def has(self, path: str, /) -> bool:
        return os.path.lexists(self._inside(path))

    def move(self, path: str, to: str, /) -> None:
        source, target = self._inside(path), self._inside(to)
        if not source.exists() or target.exists():
            raise WorkspaceRefusal(f"there is no {path}, or there is a {to}")
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)

    def list(self, path: str, depth: int, /) -> Sequence[str]:
        start = self._inside(path)
        return [
            entry.relative_to(self.root).as_posix() + ("/" if entry.is_dir() else "")
            for entry in sorted(start.rglob("*"))
            if len(entry.relative_to(start).parts) <= depth
        ]

    def search(self, pattern: str, path: str, glob: str | None, /) -> Sequence[Match]:
        matches = []
        for file in self._files():
            if not file.is_relative_to(self._inside(path)) or (glob and not fnmatch.fnmatch(file.name, glob)):
                continue
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if re.search(pattern, line):
                    matches.append(Match(file.relative_to(self.root).as_posix(), number, line))
        return matches

    def run(
        self, command: str, *, timeout: timedelta, on_output: Callable[[str], None], stop: Stop
    ) -> CommandResult:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            ["sh", "-c", command],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        waited, timed_out, output = 0.0, False, b""
        while True:
            try:
                output, _ = process.communicate(timeout=0.05)
                break
            except subprocess.TimeoutExpired:
                waited += 0.05
                timed_out = timed_out or waited >= timeout.total_seconds()
                if timed_out or stop.is_hard():
                    os.killpg(process.pid, signal.SIGKILL)
        text = output.decode("utf-8", "replace")
        on_output(text)
        exit_code = None if process.returncode < 0 else process.returncode
        return CommandResult(exit_code, text, truncated=False, timed_out=timed_out)

    def checkpoint(self, _label: str, /) -> str | None:
        digest = self._digest()
        if digest == self._last:
            return None
        shutil.copytree(self.root, self._copies / digest, dirs_exist_ok=True)
        self._last = digest
        return digest

    def restore(self, commit: str, /) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self._copies / commit, self.root)
        self._last = commit

    def adopt(self, commit: str, /) -> str | None:
        """A subtask's files are those of the copy of that name; one that is here already, another way, is a
        conflict."""
        theirs = self._copies / commit
        found = {file.relative_to(theirs): file.read_bytes() for file in theirs.rglob("*") if file.is_file()}
        clash = [
            path.as_posix()
            for path, data in found.items()
            if (self.root / path).is_file() and (self.root / path).read_bytes() != data
        ]
        if clash:
            return f"both changed {', '.join(sorted(clash))}"
        shutil.copytree(theirs, self.root, dirs_exist_ok=True)
        return None

    def put_aside(self, commit: str, files: Mapping[str, str]) -> None:
        """What a subtask did, for `adopt`."""
        for path, text in files.items():
            (self._copies / commit / path).parent.mkdir(parents=True, exist_ok=True)
            (self._copies / commit / path).write_text(text)

    def _files(self) -> Sequence[Path]:
        return [file for file in sorted(self.root.rglob("*")) if file.is_file()]

    def _digest(self) -> str:
        parts = [(file.relative_to(self.root).as_posix(), file.read_bytes()) for file in self._files()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


class FileJournal:
    """A journal in a JSONL file, which outlives it; `die_at` kills at the nth write, before or after it."""

    def __init__(
        self,
        path: Path,
        *,
        mail: list[str] | None = None,
        die_at: int | None = None,
        after: bool = False,
        lost_at: int = 0,
        elsewhere: Spending = Spending(),  # noqa: B008 - frozen
    ) -> None:
        self.elsewhere = elsewhere
        self.redactor = Redactor()
        self.refuses_subtasks = False
        self.path = path
        self._mail = [] if mail is None else mail
        self.writes = 0
        self._die_at = die_at
        self._after = after
        self._lost_at = lost_at

    def load(self) -> Conversation:
        entries: list[Entry] = []
        calls: dict[str, Call] = {}
        answers: dict[str, str] = {}
        digests: dict[str, str] = {}
        subtasks: dict[str, SubtaskEnd | None] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            kind, data = json.loads(line)
            if kind == "turn":
                entries.append(_turn(data))
            elif kind == "heard":
                entries.append(Heard(**data))
            elif kind == "compacted":
                usage, spent = Usage(**data["usage"]), Decimal(data["cost_usd"] or 0)
                entries.append(Compacted(**{**data, "usage": usage, "cost_usd": spent}))
            elif kind == "corrected":
                entries.append(Corrected(**data))
            elif kind == "begin":
                calls.setdefault(data["call_id"], Call(data["call_id"], turn=data["turn"]))
            elif kind == "finish":
                result = ToolResult(data["result"]["text"], data["result"]["is_error"])
                begun = calls[data["call_id"]]
                calls[data["call_id"]] = replace(begun, result=result, checkpoint=data["checkpoint"])
            elif kind == "subtask":
                subtasks.setdefault(data["call_id"], None)
            elif kind == "ended":
                subtasks[data["call_id"]] = SubtaskEnd(**{**data, "status": Status(data["status"])})
            else:
                answers[data["call_id"]] = data["answer"]
                if data["digest"] is not None:
                    digests[data["call_id"]] = data["digest"]
        return Conversation(tuple(entries), tuple(calls.values()), answers, digests, subtasks)

    def hear(self, before_turn: int, /) -> Sequence[Heard]:
        heard = [Heard(before_turn, text) for text in self._mail]
        if heard:
            self._write("heard", *map(asdict, heard), then=self._mail.clear)
        return heard

    def spent_elsewhere(self) -> Spending:
        return self.elsewhere

    def append_turn(self, turn: Turn, /) -> None:
        self._write("turn", asdict(turn))

    def begin_call(self, turn: int, call_id: str, name: str, arguments: Mapping[str, Any], /) -> None:
        self._write("begin", {"turn": turn, "call_id": call_id, "name": name, "arguments": arguments})

    def finish_call(self, call_id: str, result: ToolResult, checkpoint: str | None, /) -> None:
        self._write("finish", {"call_id": call_id, "result": asdict(result), "checkpoint": checkpoint})

    def append(self, entry: Compacted | Corrected, /) -> None:
        self._write("compacted" if isinstance(entry, Compacted) else "corrected", asdict(entry))

    def as_kept(self, arguments: Mapping[str, Any], /) -> Mapping[str, Any]:
        return dict(self.redactor.value(arguments))

    def output(self, call_id: str, start: int, end: int, /) -> str | None:
        for line in self.path.read_text().splitlines():
            kind, data = json.loads(line)
            if kind == "finish" and data["call_id"] == call_id:
                return str(data["result"]["output"] or data["result"]["text"])[start:end]
        return None

    def start_subtasks(self, requests: Sequence[SubtaskRequest], checkpoint: str | None, /) -> None:
        if self.refuses_subtasks:
            raise SubtaskRefused("the tree is three deep already")
        self._write("subtask", *({**asdict(request), "checkpoint": checkpoint} for request in requests))

    def end_subtask(self, end: SubtaskEnd) -> None:
        self._write("ended", asdict(end))

    def answer(self, call_id: str, answer: str, digest: str | None = None) -> None:
        self._write("answer", {"call_id": call_id, "answer": answer, "digest": digest})

    def _write(self, kind: str, *data: Mapping[str, Any], then: Callable[[], None] = lambda: None) -> None:
        self.writes += 1
        if self.writes == self._lost_at:
            raise LeaseLost
        if self.writes == self._die_at and not self._after:
            raise Killed
        with self.path.open("a") as file:
            file.writelines(json.dumps([kind, one], default=_plain) + "\n" for one in data)
        then()
        if self.writes == self._die_at:
            raise Killed


def _plain(value: object) -> object:
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


def _turn(data: dict[str, Any]) -> Turn:
    return Turn(
        **{
            **data,
            "content": tuple(data["content"]),
            "usage": Usage(**data["usage"]),
            "cost_usd": None if data["cost_usd"] is None else Decimal(data["cost_usd"]),
            "elapsed": timedelta(seconds=data["elapsed"]),
        }
    )


Answer = Sequence[Block] | Callable[[ModelRequest], Sequence[Block]]


@dataclass
class Script:
    """Answers turn n with the nth of `answers`, whatever was asked; keeps a copy of every request."""

    answers: Sequence[Answer]
    kind: Literal["live", "recorded"] = "recorded"
    name: str = "script"
    usage: Usage = field(default_factory=Usage)
    stop_reason: str = "tool_use"
    requests: list[Mapping[str, Any]] = field(default_factory=list)

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], _: Stop, /) -> Reply:
        self.requests.append(json.loads(json.dumps(asdict(request))))
        turn = sum(message["role"] == "assistant" for message in request.messages)
        answer = self.answers[turn]
        blocks = answer(request) if callable(answer) else answer
        for block in blocks:
            if block["type"] == "text":
                listen(TextDelta(block["text"]))
        return Reply(tuple(blocks), self.stop_reason, self.usage, self.name)

    @property
    def turns_asked(self) -> list[int]:
        return [sum(m["role"] == "assistant" for m in request["messages"]) + 1 for request in self.requests]


@dataclass
class Wire:
    """A link that keeps what went over it."""

    stop: Stop = field(default_factory=Stop)
    notes: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    logs: list[tuple[str, str]] = field(default_factory=list)

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        self.notes.append((kind, data))

    def log(self, stream: str, text: str) -> None:
        self.logs.append((stream, text))


def text(words: str) -> Block:
    return {"type": "text", "text": words}


def call(call_id: str, name: str, **arguments: Any) -> Block:
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def done(summary: str = "Done.", call_id: str = "done") -> Block:
    return call(call_id, "attempt_completion", summary=summary)


ASSIGNMENT = Assignment(
    tenant_id="tenant",
    task_id="task",
    workflow_id="workflow",
    step_id="step",
    step_key="fix",
    step_number=1,
    step_total=1,
    kind="agent",
    attempt=1,
    fence=1,
    task_description="Make the tests pass.",
    description="Fix it.",
    agent_type="replay",
    model=None,
    limits=Limits(),
)


def assignment(**changes: Any) -> Assignment:
    return replace(ASSIGNMENT, **changes)


def no_live_model(assignment: Assignment) -> Model:
    """For runs of recordings alone."""
    raise AssertionError(f"{assignment.step_key} asked for a live model")


class World:
    """One step: a folder, a journal, and as many claims on it as a test makes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.workspace = FolderWorkspace(path / "workspace")
        self.wire = Wire()
        self.mail: list[str] = []

    def journal(self, **faults: Any) -> FileJournal:
        return FileJournal(self.path / "journal.jsonl", mail=self.mail, **faults)

    def claim(
        self,
        script: Model,
        journal: FileJournal | None = None,
        *,
        tools: Mapping[str, Tool[Any]] = TOOLS,
        room: Room = Room(),  # noqa: B008 - frozen
        **changes: Any,
    ) -> Verdict:
        return loop.work(
            assignment(**changes),
            self.wire,
            model=script,
            journal=journal or self.journal(),
            workspace=self.workspace,
            tools=tools,
            prices={"priced": Price(Decimal(1_000_000), Decimal(1_000_000))},
            room=room,
        )


def results(request: Any) -> list[Any]:
    """The tool results that a request's last message carries."""
    return [block for block in request["messages"][-1]["content"] if block["type"] == "tool_result"]
