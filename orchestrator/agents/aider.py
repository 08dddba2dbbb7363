"""Aider, by its command line: it is given one message, and judged by what it changed.

It has no session that can be resumed, no questions and no events; its exit code is always 0. Each prompt is
a run of its own, told everything anew.
"""

from __future__ import annotations

import codecs
import os
import re
import selectors
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Final

from orchestrator.agents import home_files
from orchestrator.agents.aider_words import last_words
from orchestrator.agents.external import Leave, TurnEnd, flooded, multiplied
from orchestrator.agents.launch import Enclosure
from orchestrator.agents.oversight import Cut, Overseer
from orchestrator.agents.pipes import MEGABYTE, MOST_AT_ONCE
from orchestrator.agents.programs import Program
from orchestrator.agents.selection import provider_of
from orchestrator.core.assignment import Assignment
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Broke
from orchestrator.workspaces.programs import Running

_NAME: Final = "Aider"
_LOOK_SECONDS: Final = 0.2
_END_SECONDS: Final = 5.0
_LINGER_SECONDS: Final = 2.0
"""After the program's end its output is read for so long, if something that it started holds it open."""
_CHUNK: Final = 65536
_MOST_TEXT: Final = 64 * 1024
"""Characters of its output, and of what its model said last, that are looked into."""
_HISTORY: Final = ".aider-history.md"
"""Below its HOME: what its model says, told from what the program says, which its output mixes."""
_OPTIONS: Final = (
    *("--edit-format", "diff", "--yes-always", "--no-check-update", "--analytics-disable"),
    *("--no-show-release-notes", "--no-show-model-warnings", "--no-gitignore", "--no-pretty"),
    *("--no-fancy-input", "--no-auto-commits", "--no-dirty-commits", "--no-suggest-shell-commands"),
    *("--no-detect-urls", "--input-history-file", "/dev/null"),
    *("--message-file", "/dev/stdin"),
)
_LEFTOVERS: Final = "rm -rf .aider.tags.cache* .aider.chat.history.md .aider.input.history"
_ENV_FILE: Final = ".aider-environment"
"""Below its HOME: what holds against a repository's `.env`, which it loads over its environment."""
_TOKEN: Final = "ORCHESTRATOR_RUN_TOKEN"  # noqa: S105 - the name of a variable
_OURS: Final = (
    *("--no-auto-lint", "--no-auto-test", "--lint-cmd", "true", "--test-cmd", "true"),
    *("--no-notifications", "--notifications-command", "true", "--no-dry-run", "--no-watch-files"),
    *("--no-restore-chat-history", "--no-git-commit-verify", "--no-gui"),
    *("--set-env", "AIDER_UNUSED=1", "--api-key", "unused=unused", "--alias", "unused:unused"),
)
"""What a repository's `.aider.conf.yml` or `.env` would set else: of a list or a command that is on the
command line, theirs doesn't count."""
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
        home_files.write(self._enclosure.home_on_disk, PurePosixPath(_HISTORY), [])
        self._running = running = self._started()
        threading.Thread(target=_write, args=(running.stdin, message.encode()), daemon=True).start()
        output = _Output(self._overseer)
        cut, problem = self._followed(running, output, before)
        self.end()
        history = home_files.read_end(self._enclosure.home_on_disk, PurePosixPath(_HISTORY), _MOST_TEXT)
        return TurnEnd(last_words(history), cut=cut, problem=problem or _fault(output.end, cut))

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
        model = f"{provider}/{self._model}"
        home_files.write(enclosure.home_on_disk, PurePosixPath(_ENV_FILE), _lasting(enclosure.base_url))
        environment = {_TOKEN: token, **_environment(enclosure.base_url, token)}
        files = (
            "--chat-history-file",
            f"{enclosure.home}/{_HISTORY}",
            "--env-file",
            f"{enclosure.home}/{_ENV_FILE}",
        )
        models = ("--model", model, "--weak-model", model, "--editor-model", model)
        words = (*self._program.command, *_OPTIONS, *_OURS, *files, *models)
        return enclosure.start(words, environment, programs=self._program.folders)

    def _followed(self, running: Running, output: _Output, before: int) -> tuple[Cut | None, Broke | None]:
        """Until its end; else why it was cut short, or can't go on. It would try again and again what the
        gateway refuses; that is the orchestrator's to do."""
        ended_at = None
        with selectors.DefaultSelector() as ready:
            ready.register(running.stdout, selectors.EVENT_READ, output.say)
            ready.register(running.stderr, selectors.EVENT_READ, output.complain)
            while running.stdout in ready.get_map():
                for key, _ in ready.select(_LOOK_SECONDS):
                    data = os.read(key.fd, _CHUNK)
                    if not data:
                        ready.unregister(key.fileobj)
                    key.data(data)
                cut = self._overseer.look()
                if cut is None and self._enclosure.door.refusal_since(before) is not None:
                    cut = Cut.REFUSED
                problem = _excess(running, output)
                if cut is not None or problem is not None:
                    return cut, problem
                if running.code() is not None:
                    ended_at = ended_at or time.monotonic()
                    if time.monotonic() - ended_at > _LINGER_SECONDS:
                        break
        return None, None


def _environment(base_url: str, token: str) -> dict[str, str]:
    return {
        "ANTHROPIC_API_KEY": token,
        "ANTHROPIC_API_BASE": base_url,
        "OPENAI_API_KEY": token,
        "OPENAI_API_BASE": f"{base_url}/v1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_PROXY": "*",
        "no_proxy": "*",
        "PYTHONUNBUFFERED": "1",
    }


def _lasting(base_url: str) -> list[str]:
    """The same as a `.env`, loaded last; with its own names of the keys, which configuration gives too. The
    token is only referred to, so that no file has it."""
    token = f"${{{_TOKEN}}}"
    own = {
        "AIDER_OPENAI_API_KEY": token,
        "AIDER_ANTHROPIC_API_KEY": token,
        "AIDER_OPENAI_API_BASE": f"{base_url}/v1",
    }
    return [f'{name}="{value}"\n' for name, value in (_environment(base_url, token) | own).items()]


class _Output:
    """What the program prints: told as it comes, of which the end is kept."""

    def __init__(self, overseer: Overseer) -> None:
        self.end = ""
        self.taken = 0
        """Bytes of both streams."""
        self._overseer = overseer
        self._line = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def say(self, data: bytes) -> None:
        """The rest of the last line at the end, which is empty data."""
        self.taken += len(data)
        text = self._decoder.decode(data, final=not data)
        self.end = (self.end + text)[-_MOST_TEXT:]
        lines, _, self._line = (self._line + text).rpartition("\n")
        if not data or len(self._line) > _MOST_TEXT:
            lines, self._line = f"{lines}\n{self._line}", ""
        self._overseer.said(lines)

    def complain(self, data: bytes) -> None:
        self.taken += len(data)
        self._overseer.complained(data.decode("utf-8", "replace"))


def _excess(running: Running, output: _Output) -> Broke | None:
    if running.too_many():
        return multiplied(_NAME)
    if output.taken > MOST_AT_ONCE:
        return flooded(_NAME, f"sent more than {MOST_AT_ONCE // MEGABYTE} MB in one prompt.")
    return None


def _fault(output: str, cut: Cut | None) -> Broke | None:
    if cut is not None or not (fault := _FAULTS.search(output)):
        return None
    return Broke("agent-failed", f"{_NAME} could not go on: {fault.group()[:300]}", ErrorClass.AGENT)


def _write(stream: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(stream.fileno(), left) :]
        stream.close()
    except (OSError, ValueError):
        return  # it ended before it had read all
