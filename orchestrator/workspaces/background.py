"""Commands that go on while the agent does other things: each watched by a thread of its own, as every other
command is by its caller's, and ended with the workspace at the latest.

Bubblewrap's `--die-with-parent` follows the thread that started it, so a killed worker leaves none behind.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import Final

from orchestrator.core.assignment import Stop
from orchestrator.core.redaction import next_word_start
from orchestrator.core.verdict import StopReason
from orchestrator.core.workspace import BackgroundOutput, WorkspaceFault, WorkspaceRefusal
from orchestrator.workspaces.commands import LINGER, TICK, Ended
from orchestrator.workspaces.sandbox import Ran

MOST_RUNNING: Final = 8
UNREAD_CHARACTERS: Final = 64 * 1024
"""How much of what nobody has read is kept, the latest of it."""

Run = Callable[[Callable[[str], None], Stop], Ran]
"""Runs the command to its end, passing on what it prints, until a hard stop."""


class _OwnStop(Stop):
    """Ends one command; a hard stop of the whole step ends it, too."""

    def __init__(self, above: Stop) -> None:
        super().__init__()
        self._above = above

    def is_hard(self) -> bool:
        return super().is_hard() or self._above.is_hard()


class _Unread:
    """What was printed and not read yet, bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: deque[str] = deque()
        self._size = 0
        self._left_out = 0

    def add(self, text: str) -> None:
        text, dropped = text[-UNREAD_CHARACTERS:], max(0, len(text) - UNREAD_CHARACTERS)
        with self._lock:
            self._pieces.append(text)
            self._size += len(text)
            self._left_out += dropped
            while self._size > UNREAD_CHARACTERS:
                oldest = self._pieces.popleft()
                self._size -= len(oldest)
                self._left_out += len(oldest)

    def take(self) -> tuple[str, int]:
        with self._lock:
            text, left_out = "".join(self._pieces), self._left_out
            if left_out:
                start = next_word_start(text, 1)
                text, left_out = text[start:], left_out + start
            self._pieces.clear()
            self._size = self._left_out = 0
        return text, left_out


class _Command:
    def __init__(self, run: Run, on_output: Callable[[str], None], above: Stop) -> None:
        self._unread = _Unread()
        self._stop = _OwnStop(above)
        self._ran: Ran | None = None
        self._fault: str | None = None
        self._thread = threading.Thread(
            target=self._watch, args=(run, on_output), name="background-command", daemon=True
        )
        self._thread.start()

    def _watch(self, run: Run, on_output: Callable[[str], None]) -> None:
        def heard(text: str) -> None:
            self._unread.add(text)
            on_output(text)

        try:
            self._ran = run(heard, self._stop)
        except (WorkspaceFault, OSError) as fault:
            self._fault = str(fault)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float, stop: Stop | None = None) -> None:
        until = monotonic() + seconds
        while self.is_running and monotonic() < until and not (stop and stop.is_hard()):
            self._thread.join(min(TICK, max(0.0, until - monotonic())))

    def end(self) -> None:
        self._stop.set(StopReason.CANCEL)

    def look(self) -> BackgroundOutput:
        running = self.is_running  # first: what it printed before its end is then all there
        output, left_out = self._unread.take()
        if running:
            return BackgroundOutput(output, left_out, running=True)
        ran = self._ran
        if ran is None:
            return BackgroundOutput(output, left_out, running=False, killed=self._fault or "it broke")
        killed = None if ran.ended is Ended.EXIT else str(ran.ended)
        return BackgroundOutput(output, left_out, running=False, exit_code=ran.code, killed=killed)


class Background:
    """All of one workspace's. Raises `WorkspaceRefusal` for a handle that names none."""

    def __init__(self) -> None:
        self._commands: dict[str, _Command] = {}

    def start(self, handle: str, run: Run, on_output: Callable[[str], None], stop: Stop) -> None:
        if handle in self._commands:
            raise WorkspaceRefusal(f"{handle} names a command already")
        if sum(command.is_running for command in self._commands.values()) >= MOST_RUNNING:
            raise WorkspaceRefusal(f"{MOST_RUNNING} commands run in the background already; stop one first")
        self._commands[handle] = _Command(run, on_output, stop)

    def read(self, handle: str, wait: timedelta, stop: Stop) -> BackgroundOutput:
        command = self._named(handle)
        command.wait(wait.total_seconds(), stop)
        return command.look()

    def stop(self, handle: str) -> BackgroundOutput:
        command = self._named(handle)
        command.end()
        command.wait(LINGER * 3)
        return command.look()

    def close(self) -> None:
        """Ends all of them; nothing of them writes any more when it returns."""
        for command in self._commands.values():
            command.end()
        for command in self._commands.values():
            command.wait(LINGER * 3)

    def _named(self, handle: str) -> _Command:
        if handle not in self._commands:
            running = ", ".join(self._commands) or "none"
            raise WorkspaceRefusal(
                f"no command in the background has the handle {handle!r} (there are: {running}); one that "
                "was started before the agent was interrupted ended then"
            )
        return self._commands[handle]
