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
    **more: Any,
) -> Celery:
    """An app of our settings; connects to nothing until it is used. `more` are further Celery settings.

    It isn't made the process's default: a producer's own app stays that.
    """
    app = Celery("orchestrator", set_as_current=False)
    app.config_from_object(settings)
    app.conf.update(
        settings.located(broker_url, result_url, key_prefix=key_prefix, publish_retry=publish_retry), **more
    )
    return app
