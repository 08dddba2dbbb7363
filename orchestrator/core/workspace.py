"""What a workspace hands back, in words that both the engine and the workspaces know."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.recovery import ErrorClass


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended; `output` is stdout and stderr as they came, cut at the workspace's limit."""

    exit_code: int | None
    """None when it was killed: by its timeout, by a stop, or by a limit."""
    output: str
    truncated: bool
    timed_out: bool


@dataclass(frozen=True, slots=True)
class BackgroundOutput:
    """A command in the background, as it was found: what it printed since it was last looked at."""

    output: str
    left_out: int
    """Bytes of it that were thrown away before anybody looked, the earliest."""
    running: bool
    exit_code: int | None = None
    """None while it runs, and when it was killed."""
    killed: str | None = None
    """Why it was killed: stopped, its timeout, or one of the workspace's limits."""


@dataclass(frozen=True, slots=True)
class Match:
    """One line that a search found; `line` counts from 1, `path` is relative to the workspace."""

    path: str
    line: int
    text: str


class WorkspaceRefusal(Exception):
    """What was asked can't be done (no such file, outside the workspace, not text); said to the model."""


class WorkspaceFault(Exception):
    """The workspace itself failed (disk full, git broke): nothing that the model could do better."""

    def __init__(self, code: str, message: str, error: ErrorClass = ErrorClass.RESOURCE) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.error = error
