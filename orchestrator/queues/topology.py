"""The one place that knows which broker it is.

Redis serves queues in the order in which they are listed: one queue per lane, always listed most urgent
first. RabbitMQ doesn't order across queues at all: one queue with `x-max-priority`, and the priority on the
message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from kombu import Exchange, Queue

from orchestrator.core.errors import Refused
from orchestrator.core.priority import Priority
from orchestrator.queues.names import EXCHANGE, PREFIX, Lane, QueueName

Broker = Literal["redis", "rabbitmq"]

_SCHEMES: Final[Mapping[str, Broker]] = MappingProxyType(
    {
        "redis": "redis",
        "rediss": "redis",
        "redis+socket": "redis",
        "sentinel": "redis",
        "amqp": "rabbitmq",
        "amqps": "rabbitmq",
        "pyamqp": "rabbitmq",
    }
)
_MAX_PRIORITY: Final = 9
_URGENCY: Final[Mapping[Lane, int]] = MappingProxyType(
    {Lane.CRITICAL: 9, Lane.HIGH: 6, Lane.MEDIUM: 3, Lane.LOW: 0}
)
"""RabbitMQ: the higher number is served first (on Redis it would be the lower; there no message has one)."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a message goes; `options` are `apply_async`'s."""

    queue: QueueName
    urgency: int | None

    @property
    def options(self) -> dict[str, Any]:
        found: dict[str, Any] = {"queue": self.queue.value}
        if self.urgency is not None:
            found["priority"] = self.urgency
        return found


@dataclass(frozen=True, slots=True)
class Topology:
    """The queues of one kind of broker, most urgent first, and the lanes that each serves."""

    broker: Broker
    queues: tuple[Queue, ...]
    destinations: Mapping[Lane, Destination]

    def destination(self, priority: Priority) -> Destination:
        return self.destinations[Lane(priority.value)]

    @property
    def system(self) -> Destination:
        return self.destinations[Lane.SYSTEM]

    def consumed(self, lanes: Iterable[Lane]) -> tuple[QueueName, ...]:
        """The queues that a worker of these lanes consumes, in the order in which it must be given them."""
        wanted = set(lanes)
        found = (self.destinations[lane].queue for lane in Lane if lane in wanted)
        return tuple(dict.fromkeys(found))


def topology(broker_url: str) -> Topology:
    """What is laid out on the broker of this URL. Raises Refused `broker-unsupported`."""
    scheme = broker_url.partition("://")[0]
    match _SCHEMES.get(scheme):
        case "redis":
            return _laid_out("redis", {lane: Destination(QueueName(PREFIX + lane), None) for lane in Lane})
        case "rabbitmq":
            steps = {lane: Destination(QueueName.STEPS, urgency) for lane, urgency in _URGENCY.items()}
            return _laid_out("rabbitmq", {Lane.SYSTEM: Destination(QueueName.SYSTEM, None), **steps})
        case None:
            raise Refused(
                "broker-unsupported",
                f"The broker's URL begins with {scheme[:20]!r}.",
                f"Use one of {', '.join(f'{known}://' for known in _SCHEMES)}.",
            )


def lanes_of(text: str) -> tuple[Lane, ...]:
    """`critical,high` → lanes, most urgent first; queues' names do, too. Raises Refused `unknown-queue`."""
    wanted = {name.strip().lower().removeprefix(PREFIX) for name in text.split(",") if name.strip()}
    unknown = sorted(wanted - set(Lane))
    if unknown or not wanted:
        choice = ", ".join(Lane)
        named = ", ".join(repr(name[:40]) for name in unknown) or "nothing"
        raise Refused("unknown-queue", f"No queue is called {named}.", f"Choose from {choice}.")
    return tuple(lane for lane in Lane if lane in wanted)


def _laid_out(broker: Broker, destinations: Mapping[Lane, Destination]) -> Topology:
    exchange = Exchange(EXCHANGE, type="direct", durable=True)
    names = dict.fromkeys(destination.queue for destination in destinations.values())
    queues = tuple(
        Queue(
            name.value,
            exchange=exchange,
            routing_key=name.value,
            durable=True,
            max_priority=_MAX_PRIORITY if name is QueueName.STEPS else None,
        )
        for name in names
    )
    return Topology(broker, queues, MappingProxyType(dict(destinations)))
