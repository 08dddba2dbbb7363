"""Celery's settings: what is always so as names of this module, what depends on the broker by `located`.

The app loads this module as an object; `celeryconfig.py` at the top of the project re-exports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final

from orchestrator.core.priority import Priority
from orchestrator.queues.names import EXCHANGE
from orchestrator.queues.results import AWAITED, UNAWAITED
from orchestrator.queues.topology import topology

WORKER_ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType({"REMAP_SIGTERM": "SIGQUIT"})
"""Set it before a worker starts, billiard reads it at import: SIGTERM then ends softly, not in hours."""

_A_DAY: Final = timedelta(days=1)
_A_MONTH: Final = timedelta(days=30)
_CONNECT_SECONDS: Final = 5.0
_SOCKET_SECONDS: Final = 30.0
_HEALTH_CHECK_SECONDS: Final = 25
_ONE_MORE_TRY: Final[Mapping[str, Any]] = MappingProxyType(
    {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
)
"""Connecting in order to publish; kombu would try for as long as connecting may take."""

# What crosses is JSON, and ids alone; arguments are never stored.
accept_content = ["json"]
result_accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"
event_serializer = "json"
result_extended = False

# A message is acknowledged when its row is written; a lost worker's message comes back, and the claim counts.
task_acks_late = True
task_reject_on_worker_lost = True
worker_cancel_long_running_tasks_on_connection_loss = False
worker_prefetch_multiplier = 1
worker_soft_shutdown_timeout = 10.0
worker_enable_soft_shutdown_on_idle = False

# A chain of a user's may lead to a queue that we don't know; ours come from one enum.
task_create_missing_queues = True
task_default_exchange = EXCHANGE
task_default_exchange_type = "direct"

# An open question may wait for weeks, and its chord with it.
result_expires = _A_MONTH
result_chord_expires = int(_A_MONTH.total_seconds())
redis_socket_timeout = _SOCKET_SECONDS
redis_socket_connect_timeout = _CONNECT_SECONDS
redis_socket_keepalive = True
redis_retry_on_timeout = True
redis_backend_health_check_interval = _HEALTH_CHECK_SECONDS

broker_connection_timeout = _CONNECT_SECONDS
broker_connection_retry_on_startup = True
broker_connection_max_retries = None

# Flower shows what is sent, too, not only what is received.
task_send_sent_event = True
worker_send_task_events = True
task_track_started = True

enable_utc = True
timezone = "UTC"


def located(
    broker_url: str,
    result_url: str | None = None,
    *,
    key_prefix: str = "",
    publish_retry: bool = False,
    waits: bool = True,
) -> dict[str, Any]:
    """The settings that depend on where things are.

    `result_url` is Redis, and may be left out if the broker is. `publish_retry` is for workers: a door that
    can't reach the broker answers at once, since the sweep publishes later. `waits` is False
    for processes that never call `.get()` on a result, all of ours. Raises Refused `broker-unsupported`.
    """
    laid_out = topology(broker_url)
    prefix = f"{key_prefix.rstrip(':')}:" if key_prefix else ""
    on_redis = laid_out.broker == "redis"
    return {
        "broker_url": broker_url,
        "result_backend": (AWAITED if waits else UNAWAITED) + (result_url or broker_url),
        "result_backend_transport_options": {"global_keyprefix": prefix} if prefix else {},
        "broker_transport_options": (_redis_transport(prefix) if on_redis else _amqp_transport())
        | ({} if publish_retry else dict(_ONE_MORE_TRY)),
        "worker_disable_prefetch": on_redis,
        # Without it a chord that follows in a chain takes the priority from its body: None overwrites it.
        "task_inherit_parent_priority": not on_redis,
        "task_queues": laid_out.queues,
        "task_default_queue": laid_out.destination(Priority.MEDIUM).queue.value,
        "task_default_routing_key": laid_out.destination(Priority.MEDIUM).queue.value,
        "task_publish_retry": publish_retry,
    }


def _redis_transport(prefix: str) -> dict[str, Any]:
    return {
        "queue_order_strategy": "priority",
        # One list per queue: a queue is a priority, a message has none.
        "priority_steps": [0],
        # The shortest timeout of all consumers of a database counts; recovery never waits for it.
        "visibility_timeout": int(_A_DAY.total_seconds()),
        "socket_timeout": _SOCKET_SECONDS,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_keepalive": True,
        "health_check_interval": _HEALTH_CHECK_SECONDS,
        **({"global_keyprefix": prefix} if prefix else {}),
    }


def _amqp_transport() -> dict[str, Any]:
    return {"confirm_publish": True, "connect_timeout": _CONNECT_SECONDS}
