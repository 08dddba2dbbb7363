"""A worker whose steps write down what they see; run by `tests.integration.celery_worker`.

Steps take orders from Redis: `hold:<step>` makes one wait for `go:<step>`, `park:<step>` makes its first run
end with `Ignore` after it has stored its own signature.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Task
from celery.exceptions import Ignore
from redis import Redis

from orchestrator.queues.app import create_app
from orchestrator.queues.messages import opened
from orchestrator.queues.names import TaskName

SECRET = b"a secret of the test installation"
LOG = "log"
PATIENCE_SECONDS = 30


def seen_by(task: Task[Any, Any], step: str, event: str) -> dict[str, Any]:
    request: Any = task.request  # its fields are those of the message, which types don't know
    return {
        "step": step,
        "event": event,
        "at": time.monotonic(),
        "celery_id": request.id,
        "args": list(request.args or ()),
        "kwargs": dict(request.kwargs or {}),
        "argsrepr": request.argsrepr,
        "kwargsrepr": request.kwargsrepr,
        "shadow": request.shadow,
        "group": request.group,
        "queue": (request.delivery_info or {}).get("routing_key"),
        "priority": (request.delivery_info or {}).get("priority"),
    }


def make(broker_url: str, result_url: str) -> Any:
    app = create_app(
        broker_url, result_url, publish_retry=True, waits=False, worker_soft_shutdown_timeout=1.0
    )
    notes = Redis.from_url(result_url)

    @app.task(name=TaskName.RUN_STEP.value, bind=True, shared=False)
    def run_step(self: Task[Any, Any], /, **arguments: str) -> str:
        reference = opened(TaskName.RUN_STEP, arguments, SECRET)
        step = reference.step_id
        notes.rpush(LOG, json.dumps(seen_by(self, step, "started")))
        if notes.exists(f"hold:{step}") and not notes.blpop([f"go:{step}"], PATIENCE_SECONDS):
            raise TimeoutError(step)
        if notes.delete(f"park:{step}"):
            notes.rpush(f"parked:{step}", json.dumps(self.signature_from_request()))
            raise Ignore
        notes.rpush(LOG, json.dumps(seen_by(self, step, "ended")))
        return step

    return app


if "STEP_WORKER_BROKER" in os.environ:
    app = make(os.environ["STEP_WORKER_BROKER"], os.environ["STEP_WORKER_RESULTS"])
