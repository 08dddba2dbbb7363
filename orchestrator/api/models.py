"""What live models were asked, what they cost, and which providers and agents are left alone for now."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from fastapi.responses import Response

from orchestrator.api.bodies import plain
from orchestrator.api.once import Reply
from orchestrator.api.wiring import Admin, Reader, The
from orchestrator.core.errors import Unknown
from orchestrator.db import breakers
from orchestrator.db.breakers import BreakerKind
from orchestrator.queries import calls as queries
from orchestrator.queries.reading import glance, snapshot
from orchestrator.queries.task import resolve

router: Final = APIRouter(prefix="/api/v1", tags=["models"])


@router.get("/tasks/{task_id}/calls", operation_id="tasks.calls")
def list_calls(wiring: The, caller: Reader, task_id: str) -> Response:
    """Its calls of live models, the latest first."""
    with snapshot(wiring.engine) as connection:
        found = resolve(connection, caller.tenant_id, task_id)
        lines = queries.calls(connection, caller.tenant_id, found)
    return Reply(200, {"data": [plain(line) for line in lines]}).response()


@router.get("/tasks/{task_id}/calls/{call_id}", operation_id="tasks.call")
def get_call(wiring: The, caller: Reader, task_id: str, call_id: str) -> Response:
    """What was said in one call, redacted: of the request what the run's previous call hadn't said yet."""
    with snapshot(wiring.engine) as connection:
        found = resolve(connection, caller.tenant_id, task_id)
        key = queries.evidence_key(connection, caller.tenant_id, found, call_id)
    name = f"attachment; filename={key.rpartition('/')[2]}"
    return Response(
        wiring.artifacts.get(key), media_type="application/json", headers={"Content-Disposition": name}
    )


@router.get("/tasks/{task_id}/costs", operation_id="tasks.costs")
def costs(wiring: The, caller: Reader, task_id: str) -> Response:
    """Of the whole tree that the task belongs to, by agent, provider and model; with the tree's budget."""
    with snapshot(wiring.engine) as connection:
        found = resolve(connection, caller.tenant_id, task_id)
        return Reply(200, plain(queries.tree_costs(connection, caller.tenant_id, found))).response()


@router.get("/breakers", operation_id="breakers.list")
def list_breakers(wiring: The, caller: Reader) -> Response:
    """Every provider and type of agent that has ever failed, and whether it is left alone now."""
    with glance(wiring.engine) as connection:
        found = breakers.breakers(connection, caller.tenant_id)
    return Reply(200, {"data": [plain(one) for one in found]}).response()


@router.post("/breakers/{kind}/{name}/reset", operation_id="breakers.reset")
def reset_breaker(wiring: The, caller: Admin, kind: str, name: str) -> Response:
    """Closes it at once. Asking twice is as good as once, so that no Idempotency-Key is needed."""
    known = kind in set(BreakerKind) and name.isprintable()
    with wiring.engine.begin() as connection:
        done = known and breakers.reset(connection, caller.tenant_id, BreakerKind(kind), name)
    if not done:
        raise Unknown(
            "breaker-unknown",
            f"There is no breaker of {kind[:40]} {name[:80]}.",
            "See those that there are: orchestrator breakers list",
        )
    return Reply(200, {"kind": kind, "name": name, "state": "closed"}).response()
