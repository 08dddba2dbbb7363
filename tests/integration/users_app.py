"""A user's own Celery app, which has execute_task in its canvases; run by the user's own worker.

It is what a user would write: their app, their queue, and an import.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from redis import Redis

from orchestrator.tasks import execute_task

app = Celery(
    "theirs", broker=os.environ["ORCHESTRATOR_BROKER_URL"], backend=os.environ["ORCHESTRATOR_BROKER_URL"]
)
app.conf.update(task_default_queue="theirs", broker_transport_options={"visibility_timeout": 86_400})
notes = Redis.from_url(os.environ["ORCHESTRATOR_BROKER_URL"])

__all__ = ["app", "execute_task"]


@app.task(shared=False)
def before(text: str) -> str:
    return text


@app.task(shared=False)
def after(result: Any) -> Any:
    """Says what it was given."""
    notes.incr("after")
    return result


@app.task(shared=False)
def broke(task_id: str) -> None:
    """An errback: it is told whose end it was."""
    notes.rpush("broke", task_id)


@app.task(shared=False)
def gathered(results: list[Any]) -> list[Any]:
    notes.incr("gathered")
    return [result["task_id"] if isinstance(result, dict) else result for result in results]
