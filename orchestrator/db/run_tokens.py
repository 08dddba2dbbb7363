"""Leave to call models: issued under a claim's fence, and good for as long as that claim holds."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.db.journal import FenceLost, Scope
from orchestrator.db.sql import Prepared, StepRef, dumps, one, statement

_ISSUE: Final = statement(
    """
    WITH held AS (
        SELECT s.tenant_id, s.task_id, s.workflow_id, s.id, s.fence, t.root_id
        FROM steps s JOIN tasks t ON t.tenant_id = s.tenant_id AND t.id = s.task_id
        WHERE s.tenant_id = :tenant AND s.id = :step AND s.fence = :fence AND s.status = 'running'
          AND s.lease_until IS NOT NULL
    ), purse AS (
        INSERT INTO budgets (tenant_id, root_id) SELECT tenant_id, root_id FROM held
        ON CONFLICT DO NOTHING
    )
    INSERT INTO run_tokens (tenant_id, sha256, task_id, root_id, workflow_id, step_id, fence, conversation,
        agent_type, models, expires_at)
    SELECT tenant_id, :sha256, task_id, root_id, workflow_id, id, fence, :conversation, :agent_type,
        CAST(:models AS jsonb), clock_timestamp() + make_interval(secs => :lifetime)
    FROM held
    RETURNING 1
    """
)
GOOD_SQL: Final = """
    run_tokens r CROSS JOIN LATERAL (
        SELECT 1 FROM steps s WHERE s.tenant_id = r.tenant_id AND s.id = r.step_id AND s.fence = r.fence
            AND s.status = 'running' AND s.lease_until > clock_timestamp()
            AND r.expires_at > clock_timestamp()
        OFFSET 0
    ) held
"""
"""The tokens `r` that are good. OFFSET 0: the planner would rather begin with all steps of the tenant."""
_FIND: Final = Prepared(
    "run_of_token",
    f"""
    SELECT r.tenant_id, r.task_id, r.root_id, r.workflow_id, r.step_id, r.sha256, r.fence, r.conversation,
        r.agent_type, r.models
    FROM {GOOD_SQL}
    WHERE r.sha256 = :sha
    """,
)


@dataclass(frozen=True, slots=True)
class Run:
    """Whose token it is: one claim on one step."""

    step: StepRef
    root_id: str
    sha256: str
    fence: int
    conversation: int
    agent_type: str
    models: tuple[str, ...]

    def may_use(self, model: str) -> bool:
        return allows(self.models, model)


def allows(models: Sequence[str], model: str) -> bool:
    """Whether one of a run's models, which may be patterns of the installation's, is that one."""
    return any(fnmatchcase(model, allowed) for allowed in models)


_ESCAPED: Final = re.compile(r"\[([*?\[])\]")


def named(model: str) -> str | None:
    """The one model that an entry of a run's models stands for; None: it is a pattern."""
    name = _ESCAPED.sub(r"\1", model)
    return name if glob.escape(name) == model else None


def issue(
    connection: Connection,
    scope: Scope,
    *,
    sha256: str,
    agent_type: str,
    models: Sequence[str],
    lifetime: timedelta,
) -> None:
    """Makes a token good, by its hash. Raises FenceLost."""
    issued = one(
        connection,
        _ISSUE,
        **scope.keys,
        sha256=sha256,
        agent_type=agent_type,
        models=dumps(list(models)),
        lifetime=lifetime.total_seconds(),
    )
    if issued is None:
        raise FenceLost


def find(connection: Connection, sha256: str) -> Run | None:
    """The run of a good token."""
    row = one(connection, _FIND, sha=sha256)
    return None if row is None else run_of(row)


def run_of(row: dict[str, Any]) -> Run:
    return Run(
        StepRef(row["tenant_id"], row["task_id"], row["workflow_id"], row["step_id"]),
        row["root_id"],
        row["sha256"],
        row["fence"],
        row["conversation"],
        row["agent_type"],
        tuple(row["models"]),
    )
