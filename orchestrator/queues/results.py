"""Celery's results for processes that never wait for one."""

from __future__ import annotations

from typing import Any, Final

from celery.backends.redis import RedisBackend

SCHEME: Final = "orchestrator.queues.results:Unawaited+"
"""Put before a Redis URL, it makes Celery take the class below."""


class Unawaited(RedisBackend):
    """Sends chords and stores results as Celery's does, and subscribes to nothing.

    Celery subscribes to each member when it merely composes a group or chord, and unsubscribes when the
    garbage collector finds the result: with Redis away that stalls whatever thread happens to allocate, in an
    API its event loop.
    """

    def add_pending_result(self, result: Any, *_: Any, **__: Any) -> Any:
        return result

    def remove_pending_result(self, result: Any) -> Any:
        return result
