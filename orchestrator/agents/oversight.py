"""Watches over an agent's program while it works: stops, limits, refusals, messages, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from orchestrator.agents.launch import Enclosure
from orchestrator.agents.ports import Session, Sessions
from orchestrator.agents.refusals import is_final
from orchestrator.agents.telling import Telling
from orchestrator.core.assignment import Assignment, Link
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import SOFT, TURN_ABOUT, Broke
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.engine.untrusted import storable
from orchestrator.workspaces.workspace import Workspace

CHECKPOINT_SECONDS: Final = 2.0
"""The least between two checkpoints while the agent works; what a killed worker loses is about that much."""
LISTEN_SECONDS: Final = 2.0
"""Between two looks for messages of the person who watches."""
PATIENT_SECONDS: Final = 30.0
"""How long a soft stop or a message waits for the tool call under way."""


class Cut(StrEnum):
    """Why a prompt is cut short."""

    STOP = "stop"
    LIMIT = "limit"
    REFUSED = "refused"
    MESSAGE = "message"
    DENIED = "denied"
    """The agent did: a person denied it a call, and it ended its turn with that."""


class Overseer:
    """One claim's. An adapter tells it what its agent does, and asks it often whether to go on."""

    def __init__(
        self,
        assignment: Assignment,
        link: Link,
        sessions: Sessions,
        workspace: Workspace,
        enclosure: Enclosure,
        session: Session,
    ) -> None:
        self.link = link
        self.limit: Broke | None = None
        self._limits = assignment.limits
        self._sessions = sessions
        self._workspace = workspace
        self._door = enclosure.door
        self._before = session
        self._begun = time.monotonic()
        self._prompt = 1
        self._calls_before = 0
        self._calls_told = 0
        self._telling = Telling(link)
        self._changed_at: float | None = None
        self._kept_at = self._begun
        self._listened_at = self._begun
        self._wished_at: float | None = None

    # --- the clock ------------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> timedelta:
        """Time at work on the step, all claims together."""
        return self._before.elapsed + timedelta(seconds=time.monotonic() - self._begun)

    @property
    def calls(self) -> int:
        """Answered requests to its model, all claims together."""
        return self._before.calls + self._door.calls

    def begin_prompt(self, number: int) -> None:
        self._prompt = number
        self._calls_before = self._door.calls
        self._wished_at = None
        self._telling.begin_prompt()

    @property
    def calls_before(self) -> int:
        """How many requests had been answered when the prompt began."""
        return self._calls_before

    def look(self) -> Cut | None:
        """To be called several times a second while a prompt is carried out, in the step's thread. A reason
        means: cut it short."""
        self._tell_calls()
        self._telling.catch_up()
        cut_by = self._why_at_once() or self._why_soon()
        if cut_by is None:
            self._keep_if_due()
        return cut_by

    def _why_at_once(self) -> Cut | None:
        if self.link.stop.is_hard():
            return Cut.STOP
        refusal = self._door.refusal_since(self._calls_before)
        if refusal is not None and is_final(refusal):
            return Cut.REFUSED
        self.limit = self._exceeded()
        return Cut.LIMIT if self.limit is not None else None

    def _why_soon(self) -> Cut | None:
        """What waits for the end of the tool call under way, but not for ever."""
        reason = self.link.stop.reason
        if reason is not None and reason in SOFT - TURN_ABOUT:
            wish = Cut.STOP
        elif self._is_spoken_to():
            wish = Cut.MESSAGE
        else:
            return None
        now = time.monotonic()
        self._wished_at = self._wished_at or now
        return wish if not self._telling.has_open_tools or now - self._wished_at >= PATIENT_SECONDS else None

    def _is_spoken_to(self) -> bool:
        now = time.monotonic()
        if self._wished_at is None and now - self._listened_at < LISTEN_SECONDS:
            return False
        self._listened_at = now
        return self._sessions.has_messages()

    def _exceeded(self) -> Broke | None:
        worked, calls = self.elapsed, self.calls
        if worked >= self._limits.wall_time:
            message = f"at work for {worked.total_seconds():.0f} seconds"
            return Broke("limit-wall-time", message, ErrorClass.LIMIT, retryable=False)
        if calls > self._limits.turns:
            return Broke("limit-turns", f"not done after {calls} turns", ErrorClass.LIMIT, retryable=False)
        if (fault := self._workspace.takes_too_much()) is not None:
            return Broke(fault.code, fault.message, fault.error)
        return None

    def _tell_calls(self) -> None:
        while self._calls_told < self._door.calls:
            self._calls_told += 1
            self.link.note("turn", {"number": self._before.calls + self._calls_told, "model_kind": "live"})

    # --- what the agent does --------------------------------------------------------------------------------

    def said(self, text: str) -> None:
        """A whole message of the agent."""
        if text.strip():
            self._telling.log("agent", text + "\n")

    def saying(self, text: str) -> None:
        """Some more of the message that it is writing."""
        self.link.note("text", {"text": storable(text)})

    def tool_started(self, call_id: str, name: str, arguments: Mapping[str, Any]) -> None:
        self._telling.tool_started(call_id, name, arguments)

    def tool_finished(
        self, call_id: str, *, is_error: bool, output: str = "", changes_files: bool = True
    ) -> None:
        """`changes_files` False: it surely only read."""
        self._telling.tool_finished(call_id, is_error=is_error, output=output)
        if changes_files:
            self._changed_at = time.monotonic()

    def planned(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self._telling.planned(entries)

    def complained(self, text: str) -> None:
        """What its program wrote on stderr."""
        self._telling.log("stderr", text)

    def end_prompt(self) -> None:
        """Tells what was held back of it."""
        self._telling.close()

    # --- checkpoints ----------------------------------------------------------------------------------------

    def _keep_if_due(self) -> None:
        now = time.monotonic()
        if self._changed_at is None or now - self._kept_at < CHECKPOINT_SECONDS:
            return
        self._changed_at, self._kept_at = None, now
        try:
            self.checkpoint()
        except WorkspaceFault as fault:
            # The agent writes while we read: a file that has just gone is no reason to end its work.
            self.link.log("system", f"A checkpoint was missed: {fault.message}\n")

    def checkpoint(self) -> None:
        """From here the step goes on, whoever dies."""
        commit = self._workspace.checkpoint(f"prompt {self._prompt}")
        if commit is not None:
            self._sessions.keep_checkpoint(self._prompt, commit)
