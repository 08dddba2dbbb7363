"""A worker of the tests: production's own, but for the agent, which does what files tell it to.

Run by `tests.integration.celery_worker` in an environment of `Stack`. In HARNESS_FOLDER each agent
writes down what it does, and waits where a file says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from orchestrator import bootstrap
from orchestrator.agents.engine import EngineAgent
from orchestrator.bootstrap import Desk, Wiring
from orchestrator.core.assignment import Agent, Assignment, Link, Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.states import WaitingOn
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.core.verdict import Ask, Broke, Done, NeedsInput, StopReason, Verdict, Waits, Yielded
from orchestrator.engine.ports import ModelRequest, Reply, Stopped, StreamEvent, ToolResult, Usage
from orchestrator.engine.tools.policy import ToolPolicy
from orchestrator.tasks.registry import register
from tests.agents_ready import named

FOLDER = "HARNESS_FOLDER"
SECRET = "sk-ant-api03-thisIsWhatNobodyMayEverRead-0123456789"
"""Looks like one; told by the model alone, since a request would be cleared of it."""
TWO_FILES = (
    ("write_file", {"path": "one.txt", "content": "one\n"}),
    ("write_file", {"path": "two.txt", "content": "two\n"}),
    ("attempt_completion", {"summary": "Wrote two files."}),
)
STUBBORN = "setsid sh -c 'sleep 600; :' {word} & sh -c 'sleep 600; :' {word}"
"""A child in a session of its own, and one that is waited for; both have the word on their command line."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What agents wrote down, and which of them must wait."""

    folder: Path

    def write(self, event: str, **data: Any) -> None:
        line = json.dumps({"event": event, "pid": os.getpid(), "at": time.monotonic(), **data}) + "\n"
        with (self.folder / "notes").open("a") as file:
            file.write(line)

    def read(self, event: str | None = None) -> list[dict[str, Any]]:
        path = self.folder / "notes"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in found if event in {None, line["event"]}]

    def hold(self, what: str) -> None:
        (self.folder / f"hold.{what}").touch()

    def let_go(self, what: str) -> None:
        (self.folder / f"hold.{what}").unlink()

    def is_held(self, what: str) -> bool:
        return (self.folder / f"hold.{what}").exists()


@dataclass(frozen=True, slots=True)
class Obedient:
    """Does what the step's spec says: {"do": "work" | "ask" | "break" | …}; held by `hold.<task>.<key>`."""

    desk: Desk
    notes: Notes

    def work(self, assignment: Assignment, link: Link) -> Verdict:
        name = f"{assignment.task_id}.{assignment.step_key}"
        if assignment.spec.get("do") == "edit":
            return self._edit(name, assignment, link)
        self.notes.write(
            "began", step=name, attempt=assignment.attempt, fence=assignment.fence, context=assignment.context
        )
        while self.notes.is_held(name):
            if link.stop.wait(0.02):
                reason = link.stop.reason or StopReason.DRAIN
                self.notes.write("stopped", step=name, reason=reason, fence=assignment.fence)
                return Yielded(reason)
        match assignment.spec.get("do", "work"):
            case "ask" if not (answers := self.desk.open_journal(assignment).load().answers):
                return NeedsInput(Ask("call_1", "Which one?", ("left", "right"), default="left"))
            case "ask":
                return Done("asked", {"answer": answers["call_1"]})
            case "delegate" | "delegate and break":
                return self._delegate(name, assignment, link)
            case "break":
                return Broke("no-luck", "It did not work.", ErrorClass.VALIDATION, retryable=False)
            case "write":
                with self.desk.open_workspace(assignment) as workspace:
                    workspace.write(assignment.spec["path"], assignment.spec["text"])
                    self.notes.write("saw", step=name, files=workspace.list(".", 1))
            case "break once" if assignment.attempt == 1:
                return Broke("no-luck", "Not yet.", ErrorClass.AGENT)
            case "stubborn":
                return self._stubborn(name, assignment, link)
            case "deaf":
                time.sleep(assignment.spec["seconds"])
            case "die":
                os._exit(9)
        self.notes.write("done", step=name, fence=assignment.fence)
        return Done(f"{assignment.step_key} is done", {"previous": assignment.context.get("previous")})

    def _delegate(self, name: str, assignment: Assignment, link: Link) -> Verdict:
        """Starts the spec's `objectives` as subtasks, waits for them, and merges what they left.

        A call that hasn't been answered is answered once, as the engine does it.
        """
        journal = self.desk.open_journal(assignment)
        asked = [
            SubtaskRequest(f"call_{place}", objective)
            for place, objective in enumerate(assignment.spec["objectives"], start=1)
        ]
        with self.desk.open_workspace(assignment) as workspace:
            ends = journal.load().subtasks
            if not ends:
                workspace.write("parent.txt", "parent\n")
                checkpoint = workspace.checkpoint("write_file")
                journal.begin_call(1, "call_0", "write_file", {})
                journal.finish_call("call_0", ToolResult("written"), checkpoint)
                for request in asked:
                    journal.begin_call(1, request.call_id, "start_subtask", {})
                journal.start_subtasks(asked, checkpoint)
                self.notes.write("delegated", step=name, fence=assignment.fence)
                while self.notes.is_held(f"{name}.delegated"):
                    if link.stop.wait(0.02):
                        return Yielded(link.stop.reason or StopReason.DRAIN)
                if assignment.spec["do"] == "delegate and break":
                    return Broke("no-luck", "It did not work.", ErrorClass.VALIDATION, retryable=False)
                return Waits(WaitingOn.SUBTASK)
            if not all(ends.values()):
                return Waits(WaitingOn.SUBTASK)
            for call_id, end in sorted(ends.items()):
                assert end is not None
                conflict = workspace.adopt(end.commit) if end.commit else None
                result = ToolResult(conflict or end.summary)
                journal.finish_call(call_id, result, workspace.checkpoint("adopted"))
                self.notes.write("told", step=name, call=call_id, status=end.status, conflict=conflict)
        return Done("delegated", {end.call_id: end.summary for end in ends.values() if end})

    def _stubborn(self, name: str, assignment: Assignment, link: Link) -> Verdict:
        """Starts what ignores every wish to end, and never looks at the stop while that runs."""
        command = f"trap '' TERM INT HUP; {STUBBORN.format(word=assignment.spec['word'])}"
        if assignment.spec["way"] == "command":
            with self.desk.open_workspace(assignment) as workspace:
                self.notes.write("started", step=name)
                workspace.run(
                    command, timeout=timedelta(minutes=9), on_output=lambda _text: None, stop=Stop()
                )
        else:
            process = subprocess.Popen(["sh", "-c", command], start_new_session=True)
            self.notes.write("started", step=name)
            process.wait()
        return Yielded(link.stop.reason or StopReason.DRAIN)

    def _edit(self, name: str, assignment: Assignment, link: Link) -> Verdict:
        """Puts its own key into the file that the others write, too; held by `hold.<task>.<key>.<fence>`."""
        with self.desk.open_workspace(assignment) as workspace:
            workspace.write("same.txt", f"{assignment.step_key}\n")
            self.notes.write("began", step=f"{name}.{assignment.fence}", context=assignment.context)
            while self.notes.is_held(f"{name}.{assignment.fence}"):
                if link.stop.wait(0.02):
                    return Yielded(link.stop.reason or StopReason.DRAIN)
        return Done(f"{assignment.step_key} has written")


@dataclass(frozen=True, slots=True)
class Scripted:
    """A model that makes the spec's `calls` one after the other (else it writes two files and is done), and
    says SECRET where they say $SECRET; a list of calls is one reply. Each request is written down; held by
    turn."""

    notes: Notes
    task_id: str
    calls: Sequence[Any] = ()
    kind: Literal["live", "recorded"] = "recorded"
    name: str = "script"

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        del listen
        turn = 1 + sum(message["role"] == "assistant" for message in request.messages)
        self.notes.write("asked", task=self.task_id, turn=turn)
        while self.notes.is_held(f"{self.task_id}.{turn}"):
            if stop.wait_hard(0.02):
                raise Stopped
        wanted = json.loads(json.dumps((self.calls or TWO_FILES)[turn - 1]).replace("$SECRET", SECRET))
        together = wanted if isinstance(wanted[0], list) else [wanted]
        calls = tuple(
            {"type": "tool_use", "id": f"call_{turn}" + "'" * place, "name": name, "input": given}
            for place, (name, given) in enumerate(together)
        )
        return Reply(calls, "tool_use", Usage(10, 1), self.name)


def agent(wiring: Wiring, desk: Desk) -> Agent:
    notes = Notes(Path(os.environ[FOLDER]))

    @dataclass(frozen=True, slots=True)
    class Either:
        def work(self, assignment: Assignment, link: Link) -> Verdict:
            if assignment.description.startswith("{"):  # a subtask brings no spec
                assignment = replace(assignment, spec=json.loads(assignment.description))
            if assignment.spec.get("do") != "script":
                return Obedient(desk, notes).work(assignment, link)
            model = Scripted(notes, assignment.task_id, assignment.spec.get("calls", ()))
            engine = EngineAgent(
                lambda _: model,
                desk.open_journal,
                desk.open_workspace,
                policy=ToolPolicy(subtasks=True),
            )
            return engine.work(assignment, link)

    del wiring
    return Either()


if FOLDER in os.environ:
    registered = register(
        replace(bootstrap.load("harness"), make_agent=agent, ready=named, publish_retry=True)
    )
    app = registered.app
    app.conf.worker_soft_shutdown_timeout = 8.0
