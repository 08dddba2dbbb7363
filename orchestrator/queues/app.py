"""The Celery app."""

from __future__ import annotations

from typing import Any

from celery import Celery

from orchestrator.queues import settings


def create_app(
    broker_url: str,
    result_url: str | None = None,
    *,
    key_prefix: str = "",
    publish_retry: bool = False,
    waits: bool = True,
    **more: Any,
) -> Celery:
    """An app of our settings; connects to nothing until it is used.

    See `settings.located` for the arguments; `more` are further Celery settings.

    It isn't made the process's default: a producer's own app stays that.
    """
    app = Celery("orchestrator", set_as_current=False)
    app.config_from_object(settings)
    located = settings.located(
        broker_url, result_url, key_prefix=key_prefix, publish_retry=publish_retry, waits=waits
    )
    app.conf.update(located, **more)
    return app
