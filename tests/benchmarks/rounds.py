"""What every measurement shares: tasks written and published as doors do it, and waiting for their end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import text

from orchestrator.bootstrap import Wiring
from orchestrator.commands import request, submit
from orchestrator.tasks.publish import perform

ROUNDS: Final = 3
PATIENCE_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 0.25
"""The time of the last COMMIT is Postgres' own: looking more often would only be one more load."""
_ENDED: Final = text("SELECT count(*) FROM tasks WHERE finished_at IS NOT NULL AND starts_with(id, :prefix)")

Steps = Sequence[Mapping[str, Any]]


def step(key: str, needs: Sequence[str] = (), **spec: Any) -> dict[str, Any]:
    return {"id": key, "description": key, "needs": list(needs), "spec": spec}


FORK_JOIN: Final = (
    step("start"),
    *(step(f"part-{number}", ["start"]) for number in range(1, 6)),
    step("join", [f"part-{number}" for number in range(1, 6)]),
)
"""Seven steps, one chord."""


def body(steps: Steps, repository: str | None = None) -> dict[str, Any]:
    at = {"repository": {"path": repository}} if repository else {}
    return {"description": "Measured", "steps": list(steps), **at}


def send(wiring: Wiring, task_id: str, steps: Steps, repository: str | None = None) -> None:
    """The production path of a new task: validated, written, committed, published. `repository` is a path."""
    wanted = request.parse(body(steps, repository))
    perform(
        wiring,
        lambda connection: submit.submit(
            connection,
            wanted,
            policy=wiring.policy,
            tenant_id=wiring.tenant_id,
            task_id=task_id,
            created_by="bench",
            now=wiring.clock(),
        ),
    )


def await_ended(wiring: Wiring, prefix: str, count: int) -> None:
    """Returns when so many tasks whose id begins so have ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with wiring.engine.connect() as connection:
        while connection.execute(_ENDED, {"prefix": prefix}).scalar_one() < count:
            connection.rollback()
            if time.monotonic() > deadline:
                raise TimeoutError(f"fewer than {count} of {prefix} ended")
            time.sleep(_LOOK_SECONDS)
