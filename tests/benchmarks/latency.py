"""How soon an idle worker runs what was submitted, or what was answered: to the COMMIT of the claim."""

from __future__ import annotations

import secrets
import sys
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Final

import httpx2
from sqlalchemy import Connection, text

from orchestrator.local import ports, probes
from orchestrator.local.service import Service, StopOrder
from orchestrator.queues.names import Lane
from tests.benchmarks.installation import Installation, installed
from tests.benchmarks.rounds import PATIENCE_SECONDS, step

REQUESTS: Final = 240
_CLAIMED: Final = text(
    "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM events"
    " WHERE task_id = :task AND type = 'step' AND name = 'claim' AND fence = :fence"
)
_OPEN: Final = text("SELECT id FROM questions WHERE task_id = :task AND answered_at IS NULL")
_ENDED: Final = text("SELECT 1 FROM tasks WHERE id = :task AND finished_at IS NOT NULL")


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from the return of the request to the COMMIT of the claim."""

    submitted: list[float]
    answered: list[float]


def measure(requests: int = REQUESTS) -> Latency:
    found = Latency([], [])
    with installed(api_key=secrets.token_urlsafe(32)) as here:
        here.tell_commit_times()
        port = ports.choose(0)
        here.run(
            _api(here, port),
            here.worker("agent"),
            here.worker("system", (Lane.SYSTEM,)),
            here.beat(),
        )
        key = here.environment["ORCHESTRATOR_API_KEY"]
        address = f"http://127.0.0.1:{port}/api/v1"
        wiring = here.wiring("bench")
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(headers=headers, timeout=30) as client, wiring.engine.connect() as connection:
            for _ in range(requests):
                task_id, at = _post(client, f"{address}/tasks", _body())
                found.submitted.append(_claimed_after(connection, task_id, 1, at))
                _until(connection, _ENDED, task=task_id)
            for _ in range(requests):
                task_id, _ = _post(client, f"{address}/tasks", _body(asks=True))
                question = _until(connection, _OPEN, task=task_id)
                _, at = _post(client, f"{address}/questions/{question}/answer", {"answer": "Go on."})
                found.answered.append(_claimed_after(connection, task_id, 2, at))
                _until(connection, _ENDED, task=task_id)
    return found


def summary(values: list[float]) -> dict[str, float]:
    cuts = quantiles(values, n=100)
    return {"p50": round(median(values), 1), "p95": round(cuts[94], 1), "n": len(values)}


def _api(here: Installation, port: int) -> Service:
    return Service(
        name="api",
        kind="api",
        argv=(sys.executable, "-P", "-m", "orchestrator", "api", "--port", str(port)),
        ready=probes.answers(port, "/readyz"),
        stop_order=StopOrder.API,
        env=here.environment,
        port=port,
    )


def _body(**spec: Any) -> dict[str, Any]:
    return {"description": "Measured", "steps": [step("only", turns=0, **spec)]}


def _post(client: httpx2.Client, url: str, body: dict[str, Any]) -> tuple[str, float]:
    """The id of what came back, and when it did."""
    response = client.post(url, json=body)
    at = time.time()
    if response.status_code >= 300:
        raise AssertionError(f"{response.status_code} {response.text}")
    return str(response.json().get("id", "")), at


def _claimed_after(connection: Connection, task_id: str, fence: int, at: float) -> float:
    return 1000 * (float(_until(connection, _CLAIMED, task=task_id, fence=fence)) - at)


def _until(connection: Connection, query: Any, **values: Any) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := connection.execute(query, values).scalar_one_or_none()) is None:
        connection.rollback()
        if time.monotonic() > deadline:
            raise TimeoutError(str(values))
        time.sleep(0.005)
    connection.rollback()
    return found
