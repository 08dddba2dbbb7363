"""What the tests of subtasks share: short words for what shells and workers do to the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from orchestrator.commands import subtask
from orchestrator.commands.publication import Started
from orchestrator.commands.subtask import Bounds, Call
from orchestrator.core.subtask import SubtaskEnd, SubtaskRequest
from orchestrator.db import lineage, subtasks
from orchestrator.db.claims import Claimed
from orchestrator.db.sql import StepRef, TaskRef
from orchestrator.db.transitions import Applied
from tests.integration.ledger import TENANT, Ledger
from tests.integration.repositories import git
from tests.integration.stack import Stack

WIDE = Bounds(depth=3, children=20, tree=100)
AGENTS = frozenset({"engine", "replay"})
MODELS = ("claude-haiku-4-5", "small-*", "odd[*]")


def asked(*calls: str, **more: Any) -> list[SubtaskRequest]:
    return [SubtaskRequest(call, f"Do {call}", **more) for call in calls]


def start(
    ledger: Ledger, claimed: Claimed, requests: Sequence[SubtaskRequest], bounds: Bounds = WIDE
) -> tuple[Started, ...]:
    call = Call(claimed.step, claimed.fence, claimed.conflicts, "f" * 40)
    return ledger.do(
        lambda connection: subtask.start(
            connection, call, requests, bounds=bounds, agent_types=AGENTS, models=MODELS
        )
    )


def park(ledger: Ledger, claimed: Claimed) -> Applied | None:
    return ledger.do(lambda connection: subtasks.park(connection, claimed.step, claimed.fence, {}))


def ids(started: Sequence[Started]) -> list[str]:
    return [each.task.task_id for each in started]


def parent_with(ledger: Ledger, *calls: str, **body: Any) -> tuple[Claimed, list[str]]:
    """A parked parent and its live subtasks."""
    claimed = ledger.take(ledger.task("p", **body)["work"])
    started = ids(start(ledger, claimed, asked(*calls)))
    assert park(ledger, claimed) is not None
    return claimed, started


def complete(ledger: Ledger, task_id: str) -> Applied:
    applied = ledger.succeed(ledger.take(ledger.steps(task_id)["work"]))
    assert applied is not None
    return applied


def wake(ledger: Ledger, task_id: str) -> StepRef | None:
    woken = ledger.do(lambda connection: subtasks.wake_parent(connection, TaskRef(TENANT, task_id)))
    return None if woken is None else woken.step


def ends(ledger: Ledger, claimed: Claimed) -> dict[str, SubtaskEnd | None]:
    return ledger.do(lambda connection: lineage.ends(connection, claimed.step, claimed.conflicts))


def objective(**spec: Any) -> str:
    return json.dumps(spec)


def children(stack: Stack, task_id: str = "p") -> list[str]:
    found = stack.ledger.rows(
        "SELECT id FROM tasks WHERE parent_id = :task ORDER BY parent_call_id", task=task_id
    )
    return [row["id"] for row in found]


def shown(stack: Stack, task_id: str, path: str) -> str:
    """A file at the end of a task's branch."""
    (mirror,) = (stack.folder / "mirrors").glob("*.git")
    return git(mirror, "show", f"{stack.ledger.row(task_id)['tip_commit']}:{path}")
