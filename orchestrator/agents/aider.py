"""Aider, by its command line: it is given one message, and judged by what it changed.

It has no session that can be resumed, no questions and no events; its exit code is always 0. Each prompt is
a run of its own, told everything anew.
"""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Final

from orchestrator.agents.external import Leave, TurnEnd
from orchestrator.agents.launch import Enclosure
from orchestrator.agents.oversight import Cut, Overseer
from orchestrator.agents.programs import Program
from orchestrator.agents.selection import provider_of
from orchestrator.core.assignment import Assignment
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Broke
from orchestrator.workspaces.programs import Running

_LOOK_SECONDS: Final = 0.2
_END_SECONDS: Final = 5.0
_MOST_TEXT: Final = 1024 * 1024
_HISTORY: Final = "/dev/null"
_OPTIONS: Final = (
    *("--edit-format", "diff", "--yes-always", "--no-check-update", "--analytics-disable"),
    *("--no-show-release-notes", "--no-show-model-warnings", "--no-gitignore", "--no-pretty"),
    *("--no-fancy-input", "--no-auto-commits", "--no-dirty-commits", "--no-suggest-shell-commands"),
    *("--no-detect-urls", "--chat-history-file", _HISTORY, "--input-history-file", _HISTORY),
    *("--message-file", "/dev/stdin"),
)
_LEFTOVERS: Final = "rm -rf .aider.tags.cache* .aider.chat.history.md .aider.input.history; "
_SCRIPT: Final = f'"$@"; code=$?; {_LEFTOVERS} exit $code'
_TALK: Final = re.compile(
    r"^(Tokens:|Aider v|Model:|Main model:|Weak model:|Git repo:|Repo-map:|Added |Use /help|Only \d+ reflect"
    r"|Warning:|Cost estimates|Applied edit to |https?://|Creating empty file|Can.t initialize prompt)"
)
_FAULTS: Final = re.compile(r"litellm\.\w*(?:Error|Exception)\b[^\n]*")


@dataclass(frozen=True, slots=True)
class Aider:
    """The adapter. `model`: of steps that name none."""

    program: Program
    model: str
    name: str = "aider"

    @contextmanager
    def open(
        self,
        assignment: Assignment,
        enclosure: Enclosure,
        overseer: Overseer,
        session_id: str | None,
        leave: Leave | None,
    ) -> Iterator[Runs]:
        del session_id, leave  # it has neither
        runs = Runs(self.program, assignment.model or self.model, enclosure, overseer)
        try:
            yield runs
        finally:
            runs.end()


class Runs:
    """What stands for a session: one run of the program after the other."""

    def __init__(self, program: Program, model: str, enclosure: Enclosure, overseer: Overseer) -> None:
        self.session_id = ""
        self.is_resumed = False
        self._program = program
        self._model = model
        self._enclosure = enclosure
        self._overseer = overseer
        self._first = ""
        self._running: Running | None = None

    def prompt(self, text: str, /) -> TurnEnd:
        message = f"{self._first}\n\n{text}" if self._first else text
        self._first = self._first or text
        before = self._enclosure.door.calls
        self._running = running = self._started()
        lines: queue.Queue[str | None] = queue.Queue()
        for thread in (
            threading.Thread(target=_write, args=(running.stdin, message.encode()), daemon=True),
            threading.Thread(target=_read, args=(running.stdout, lines), daemon=True),
            threading.Thread(target=_retell, args=(running.stderr, self._overseer), daemon=True),
        ):
            thread.start()
        said, cut = self._followed(running, lines, before)
        self.end()
        return _judged(said, cut, too_many=running.too_many())

    def end(self) -> None:
        """The program ends with all that it started; what it leaves in the repository goes."""
        if self._running is None:
            return
        self._running.end(closing=0.0, terminating=_END_SECONDS)
        self._running = None
        swept = self._enclosure.start(("/bin/sh", "-c", _LEFTOVERS), {})
        swept.wait(_END_SECONDS)
        swept.end()

    def _started(self) -> Running:
        enclosure, token = self._enclosure, self._enclosure.token
        provider = provider_of(self._model) or "openai"
        environment = {
            "ANTHROPIC_API_KEY": token,
            "ANTHROPIC_API_BASE": enclosure.base_url,
            "OPENAI_API_KEY": token,
            "OPENAI_API_BASE": f"{enclosure.base_url}/v1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONUNBUFFERED": "1",
        }
        words = (*self._program.command, *_OPTIONS, "--model", f"{provider}/{self._model}")
        script = ("/bin/sh", "-c", _SCRIPT, "sh", *words)
        return enclosure.start(script, environment, programs=self._program.folders)

    def _followed(
        self, running: Running, lines: queue.Queue[str | None], before: int
    ) -> tuple[str, Cut | None]:
        """What it said, and why it was cut short. It would try again and again what the gateway refuses; that
        is the orchestrator's to do."""
        said: list[str] = []
        size = 0
        while True:
            try:
                line = lines.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                line = ""
            if line is None:
                return "\n".join(said), None
            if line and size < _MOST_TEXT:
                size += len(line)
                said.append(line)
                self._overseer.said(line)
            cut = self._overseer.look()
            if cut is None and self._enclosure.door.refusal_since(before) is not None:
                cut = Cut.REFUSED
            if cut is not None or running.too_many():
                return "\n".join(said), cut


def _judged(said: str, cut: Cut | None, *, too_many: bool) -> TurnEnd:
    text = "\n".join(line for line in said.splitlines() if not _TALK.match(line)).strip()
    if cut is not None:
        return TurnEnd(text, cut=cut)
    if too_many:
        why = "the agent started more processes than the sandbox allows."
        return TurnEnd(text, problem=Broke("limit-processes", why, ErrorClass.LIMIT))
    if fault := _FAULTS.search(said):
        why = f"Aider could not go on: {fault.group()[:300]}"
        return TurnEnd(text, problem=Broke("agent-failed", why, ErrorClass.AGENT))
    return TurnEnd(text)


def _read(stream: IO[bytes], lines: queue.Queue[str | None]) -> None:
    gathered = b""
    try:
        while chunk := os.read(stream.fileno(), 65536):
            *whole, gathered = (gathered + chunk).split(b"\n")
            for line in whole:
                lines.put(line.decode("utf-8", "replace"))
            if len(gathered) > _MOST_TEXT:
                gathered = b""  # a line without end
    except (OSError, ValueError):
        pass  # closed under us
    if gathered:
        lines.put(gathered.decode("utf-8", "replace"))
    lines.put(None)


def _retell(stream: IO[bytes], overseer: Overseer) -> None:
    try:
        while chunk := os.read(stream.fileno(), 65536):
            overseer.complained(chunk.decode("utf-8", "replace"))
    except (OSError, ValueError):
        return


def _write(stream: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(stream.fileno(), left) :]
        stream.close()
    except (OSError, ValueError):
        return  # it ended before it had read all
