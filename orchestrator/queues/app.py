"""The Celery app."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.app.amqp import AMQP

from orchestrator.queues import settings


class Labelled(AMQP):
    """Announces a message under its label from the start, as the worker does that receives it.

    Celery's own announcement has the bare task's name, and Flower shows whichever of the two came last.
    """

    def as_task_v2(self, task_id: str, name: str, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(task_id, name, *args, **kwargs)
        if message.sent_event is not None and message.headers["shadow"]:
            message.sent_event["name"] = message.headers["shadow"]
        return message


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
    app = Celery("orchestrator", amqp=Labelled, set_as_current=False)
    app.config_from_object(settings)
    located = settings.located(
        broker_url, result_url, key_prefix=key_prefix, publish_retry=publish_retry, waits=waits
    )
    app.conf.update(located, **more)
    return app
