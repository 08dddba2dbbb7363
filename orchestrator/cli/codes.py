"""Exit codes, and errors as people read them."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any

from orchestrator.cli.terminal import clean
from orchestrator.core.errors import Conflict, Denied, OrchestratorError, Refused, Unknown


class ExitCode(IntEnum):
    """Documented and stable."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    DECLINED = 3
    DENIED = 4
    UNKNOWN = 5
    CONFLICT = 6
    UNREACHABLE = 7
    WAITS = 8
    FAILED = 10
    CANCELLED = 11
    PARTIAL = 12
    INTERRUPTED = 130


def code_of(error: OrchestratorError) -> ExitCode:
    match error:
        case OrchestratorError(code="api-unreachable"):
            return ExitCode.UNREACHABLE
        case OrchestratorError(code="wait-timed-out"):
            return ExitCode.DECLINED
        case Refused():
            return ExitCode.USAGE
        case Denied():
            return ExitCode.DENIED
        case Unknown():
            return ExitCode.UNKNOWN
        case Conflict():
            return ExitCode.CONFLICT
        case _:
            return ExitCode.UNEXPECTED


def code_of_task(task: dict[str, Any]) -> ExitCode:
    """What a task's state means to a script that waited for it."""
    match task["status"]:
        case "completed" if (task.get("outcome") or {}).get("type") in {"partially_completed", "escalated"}:
            return ExitCode.PARTIAL
        case "failed":
            return ExitCode.FAILED
        case "cancelled":
            return ExitCode.CANCELLED
        case "pending_input":
            return ExitCode.WAITS
        case _:
            return ExitCode.OK


def report(error: OrchestratorError) -> ExitCode:
    """What happened, why, what to do; the code last."""
    code = code_of(error)
    lines = [f"✗ {error.message}"]
    lines += [
        f"  {fault.pointer or '/'}: {fault.detail}"
        for fault in error.problems
        if fault.detail not in lines[0]
    ]
    lines += [f"  {line}" for line in error.hint.splitlines() if line]
    lines.append(f"  code {error.code} · exit {code} · orchestrator explain {error.code}")
    print(clean("\n".join(lines)), file=sys.stderr)
    return code
