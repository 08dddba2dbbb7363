"""What the harness's agents are asked to do, and what they made of it."""

from __future__ import annotations

import signal
from typing import Any

from tests.integration.stack import PATIENCE_SECONDS, Stack, WorkerProcess, until


def plan(*steps: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": "Something",
        "steps": [{"description": f"Do {step['id']}", **step} for step in steps],
    }


SCRIPT = plan({"id": "a", "spec": {"do": "script"}})


def asked(stack: Stack, task_id: str) -> list[int]:
    """The turns that a model was asked for."""
    return [note["turn"] for note in stack.notes.read("asked") if note["task"] == task_id]


def child_at(stack: Stack, task_id: str, turn: int) -> int:
    """The pid of the pool's child that asks the model for this turn."""
    found = until(
        lambda: [n for n in stack.notes.read("asked") if (n["task"], n["turn"]) == (task_id, turn)],
        f"turn {turn}",
    )
    return int(found[-1]["pid"])


def end(process: WorkerProcess, by: signal.Signals = signal.SIGTERM) -> None:
    process.process.send_signal(by)
    process.process.wait(PATIENCE_SECONDS)


def agents(stack: Stack) -> list[tuple[str, str | None]]:
    found = stack.ledger.rows("SELECT status, step_id FROM agents ORDER BY id")
    return [(row["status"], row["step_id"]) for row in found]
