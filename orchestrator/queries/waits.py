"""What a task waits for, read from its steps: all that are open and could be under way wait for the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from orchestrator.core.states import Status

_OPEN_SQL: Final = """
    FROM workflows ow JOIN steps o ON o.tenant_id = ow.tenant_id AND o.workflow_id = ow.id
    WHERE ow.tenant_id = t.tenant_id AND ow.task_id = t.id AND ow.number = t.workflow_number
      AND (o.status IN ('running', 'pending_input') OR (o.status = 'queued' AND o.ready_at IS NOT NULL))
"""
"""Steps whose turn it is; those that need others first say nothing."""
_COMMON: Final = "CASE WHEN count(*) = count(o.waiting_on) AND min(o.waiting_on) = max(o.waiting_on) THEN "

WAIT_SQL: Final = f"""
    SELECT {_COMMON} min(o.waiting_on) END AS open_on,
        {_COMMON} min(o.waiting_since) END AS open_since,
        {_COMMON} (array_agg(
            coalesce(o.waiting_detail, jsonb_build_object()) || jsonb_build_object('step_id', o.id)
            ORDER BY o.waiting_since, o.id))[1] END AS open_detail
    {_OPEN_SQL}
"""
"""For a lateral join on `tasks t`: NULL where the steps don't all wait for the same."""
WAITS_FOR_SQL: Final = f"""(waiting_on = ANY(:waits) OR (status IN ('running', 'queued')
    AND waiting_on IS NULL AND (SELECT {_COMMON} min(o.waiting_on) END {_OPEN_SQL}) = ANY(:waits)))"""
"""A condition on `tasks t`."""


def awaited(row: Mapping[str, Any]) -> dict[str, Any]:
    """`waiting_on`, `waiting_since` and `waiting_detail` of a row of `tasks` with `WAIT_SQL`.

    What the row itself says comes first; the detail is that of the step which has waited longest.
    """
    on, since = row["waiting_on"], row["waiting_since"]
    if row["status"] not in {Status.RUNNING, Status.QUEUED}:
        return {"waiting_on": on, "waiting_since": since, "waiting_detail": row["waiting_detail"]}
    if on is None:
        on, since = row["open_on"], row["open_since"]
    detail = row["open_detail"] if on == row["open_on"] else row["waiting_detail"]
    return {"waiting_on": on, "waiting_since": since, "waiting_detail": detail}
