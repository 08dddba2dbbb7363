"""Celery's results: for processes that never wait for one, and for those who watch a task that isn't done."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery, states
from celery.backends.redis import RedisBackend

_MODULE: Final = "orchestrator.queues.results"
AWAITED: Final = f"{_MODULE}:Awaited+"
UNAWAITED: Final = f"{_MODULE}:Unawaited+"
"""Put before a Redis URL, each makes Celery take the class of that name."""


class Awaited(RedisBackend):
    """Celery's own, but for this: it listens for a result when one is asked for, not when a task is sent.

    With Redis away, sending would otherwise try twenty times to listen before it failed to send.
    """

    def on_task_call(self, *_: Any, **__: Any) -> None:
        """`.get()` listens before it looks, so nothing is missed."""


class Unawaited(Awaited):
    """Sends chords and stores results as Celery's does, and subscribes to nothing.

    Celery subscribes to each member when it merely composes a group or chord, and unsubscribes when the
    garbage collector finds the result: with Redis away that stalls whatever thread happens to allocate, in an
    API its event loop.
    """

    def add_pending_result(self, result: Any, *_: Any, **__: Any) -> Any:
        return result

    def remove_pending_result(self, result: Any) -> Any:
        return result


_UNLESS_ENDED: Final = """
local stored = redis.call('GET', KEYS[1])
if stored then
    local status = cjson.decode(stored)['status']
    if status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED' then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


def show(app: Celery, task_id: str, state: str) -> bool:
    """Makes a live task's result say `state`; False: it has an end already, which no late word may hide."""
    if state in states.READY_STATES:
        raise ValueError(f"{state} is an end")
    backend: Any = app.backend
    meta = backend._get_result_meta({"task_id": task_id, "status": state}, state, None, None)  # noqa: SLF001
    key = backend.get_key_for_task(task_id)
    stored = backend.encode({**meta, "task_id": task_id})
    expires = int(app.conf.result_expires.total_seconds())
    return bool(backend.client.eval(_UNLESS_ENDED, 1, key, stored, expires))
