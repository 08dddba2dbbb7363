"""Follows a task until it ends or needs somebody: drawn in place on a terminal, a line per event off it."""

from __future__ import annotations

import json
import select
import sys
import threading
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Self

from orchestrator.cli import answers
from orchestrator.cli.client import Client
from orchestrator.cli.codes import ExitCode, code_of_task
from orchestrator.cli.events import aside, clock, doing, told
from orchestrator.cli.session import segment
from orchestrator.cli.terminal import console, interactive, line, out, say
from orchestrator.cli.unechoed import unechoed
from orchestrator.cli.ways_on import ways_on
from orchestrator.core.errors import OrchestratorError

_REFRESH_SECONDS: Final = 0.25
_LOOK_SECONDS: Final = 1.0
"""While an answer is awaited here it may be given elsewhere."""


@dataclass
class Watch:
    """One task being watched. `asks`: questions may be answered at this terminal."""

    client: Client
    task_id: str
    json: bool = False
    asks: bool = False
    doing: dict[str, str] = field(default_factory=dict)
    asides: deque[str] = field(default_factory=deque)
    """What was heard, and is to be printed above the picture."""
    missing: set[str] = field(default_factory=set)
    asking: bool = False
    after: int = 0

    @property
    def path(self) -> str:
        return f"/api/v1/tasks/{segment(self.task_id)}"

    def run(self) -> ExitCode:
        """Until the end; or until it waits for a person who isn't at this terminal."""
        try:
            if self.json:
                self._print_events()
            elif interactive():
                self._draw()
            else:
                self._tell()
        except KeyboardInterrupt:
            stays = "waits for an answer" if self.asking else "keeps running"
            way = (
                "Answer it: orchestrator task answer"
                if self.asking
                else "See it again: orchestrator task watch"
            )
            say(f"\n{self.task_id} {stays}. {way} {self.task_id}")
            return ExitCode.INTERRUPTED
        return self._finish()

    # ---- off a terminal

    def _print_events(self) -> None:
        for kind, data in self.client.follow(f"{self.path}/events", after=self.after):
            print(json.dumps({"event": kind, **data}), flush=True)
            if self._waits(kind, data):
                return

    def _tell(self) -> None:
        task = self.client.get(self.path)
        if task["model"]["kind"] == "recorded":
            out(f"{task['id']}  REPLAY: a recorded model; tools, git and tests are real")
        for kind, data in self.client.follow(f"{self.path}/events", after=self.after):
            text = told(kind, data) if kind != "end" else None
            if text:
                out(f"{clock(data)} {text}")
            if self._waits(kind, data):
                return

    def _waits(self, kind: str, data: dict[str, Any]) -> bool:
        """The task needs a person, now, and nobody is asked here; a status of long ago doesn't count."""
        if kind != "status" or data["data"].get("to") != "pending_input":
            return False
        task = self.client.get(self.path)
        return bool(task["status"] == "pending_input" and task["seq"] == data["seq"])

    # ---- on a terminal

    def _draw(self) -> None:
        while True:
            asked = self._draw_until_asked()
            if asked is None or not self._ask(asked):
                return

    def _draw_until_asked(self) -> dict[str, Any] | None:
        """Draws until the end (None), or until a question must be asked here."""
        from rich.live import Live

        from orchestrator.cli.picture import draw

        screen = console()
        task: dict[str, Any] = self.client.get(self.path)
        frame = lambda: draw(task, self.doing, screen.height)  # noqa: E731 - what Live asks for at each tick
        picture = Live(get_renderable=frame, console=screen, refresh_per_second=4, screen=False)
        with unechoed(), picture:
            if self._to_ask(task):
                return task
            heard = _Listener(self)
            with heard:
                while not heard.ended:
                    fresh = heard.wait(_REFRESH_SECONDS)
                    self._print_asides(screen)
                    if fresh:
                        task = self.client.get(self.path)
                        if self._to_ask(task):
                            return task
                self._print_asides(screen)
                task = self.client.get(self.path)
        heard.check()
        return None

    def _print_asides(self, screen: Any) -> None:
        """Above the picture, where they stay."""
        while self.asides:
            screen.print(f" {self.asides.popleft()}", style="dim")

    def _to_ask(self, task: dict[str, Any]) -> bool:
        return bool(self.asks and task["status"] == "pending_input" and task["questions"])

    def _ask(self, task: dict[str, Any]) -> bool:
        """The first open question, at the prompt. False when nobody is there to answer."""
        question = task["questions"][0]
        self.asking = True
        print(f"   answer [{answers.prompt(question)}] ▸ ", end="", flush=True)
        while not select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]:
            if self._ended_elsewhere(question):
                self.asking = False
                return True
        typed = sys.stdin.readline()
        if not typed:
            say("")
            return False
        self.asking = False
        if said := typed.strip():
            self._send(question, answers.given(question, said))
        return True

    def _ended_elsewhere(self, question: dict[str, Any]) -> bool:
        """Somebody answered it at another door, or its step ended."""
        now = self.client.get(f"/api/v1/questions/{segment(question['id'])}")
        if now["state"] == "open":
            return False
        by = f"answered by {now['answered_by']}" if now["answered_by"] else now["state"]
        say(f"\n   {line(by)}")
        return True

    def _send(self, question: dict[str, Any], answer: dict[str, Any]) -> None:
        try:
            self.client.post(f"/api/v1/questions/{segment(question['id'])}/answer", {"answer": answer})
        except OrchestratorError as error:
            say("\n  ".join([f"✗ {error.message}", *filter(None, error.hint.splitlines())]))

    # ---- the end

    def _finish(self) -> ExitCode:
        task = self.client.get(self.path)
        code = code_of_task(task)
        if not self.json:
            tell_next(task)
        return code


def tell_next(task: dict[str, Any]) -> None:
    """What can be done with a task as it is now."""
    identity, why = task["id"], line(task["display"]["why"])
    match task["status"]:
        case "pending_input":
            for question in task["questions"]:
                for each in answers.lines(question):
                    say(each)
            say(f"{identity} waits: {why}")
            _say_ways(task)
        case "completed" if task["commit"]:
            say(f"✓ {identity} {task['display']['label']}, on branch {task['branch']}.")
            say(f"  See the change: orchestrator task diff {identity}")
            _say_ways(task)
        case "completed":
            say(f"✓ {identity} {task['display']['label']}.")
            _say_ways(task)
        case "failed":
            say(f"✗ {identity} failed: {why}")
            _say_ways(task)
        case "cancelled":
            say(f"■ {identity} cancelled: {why}")
        case _:
            say(f"  Watch it: orchestrator task watch {identity}")


def _say_ways(task: dict[str, Any]) -> None:
    for command in ways_on(task):
        say(f"  → {command}")


class _Listener(AbstractContextManager["_Listener"]):
    """Hears the events in a thread, so that the clock on the picture goes on between them."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._fresh = threading.Event()
        self._error: OrchestratorError | None = None
        self.ended = False
        self._left = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True

    def wait(self, seconds: float) -> bool:
        """Whether something happened meanwhile."""
        heard = self._fresh.wait(seconds)
        self._fresh.clear()
        return heard

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def _listen(self) -> None:
        watch = self._watch
        try:
            for kind, data in watch.client.follow(f"{watch.path}/events", after=watch.after):
                if self._left:
                    return
                if kind == "end":
                    break
                watch.after = data.get("seq", watch.after)
                if kind == "progress" and (activity := doing(data)) and data.get("step_key"):
                    watch.doing[data["step_key"]] = activity
                said = aside(kind, data)
                if said and not (data["name"] == "tools" and said in watch.missing):
                    watch.missing.add(said)  # each claim finds the same tools missing
                    watch.asides.append(f"{clock(data)} {said}")
                self._fresh.set()
        except OrchestratorError as error:
            self._error = error
        self.ended = True
        self._fresh.set()


def may_ask() -> bool:
    return sys.stdin.isatty() and interactive()
