"""What an agent asks of a subtask, for which it waits without a worker, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.states import Status


@dataclass(frozen=True, slots=True)
class SubtaskRequest:
    """`call_id` ties it to the tool call that asked: one call starts one subtask, whoever dies."""

    call_id: str
    objective: str
    agent_type: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class SubtaskEnd:
    """How a subtask ended, for the parent's agent; `commit` is the end of its branch, None: no change."""

    call_id: str
    task_id: str
    status: Status
    summary: str
    commit: str | None = None
