"""The Celery half of the compiler: a canvas of `core.flow` becomes chains and chords of step messages.

Celery rewrites signatures while it composes, sends and hands them on. So each is immutable and carries its
id, queue and label in its own options from the start. A chord's header gets its id when the canvas is sent,
each chord one of its own: a step that hands on twice fills one set of counters. All of it is tried on real
servers in `tests/integration/test_canvas.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from celery import Celery, chain, chord, group
from celery.canvas import Signature

from orchestrator.core.flow import Canvas, Chain, Fork, Join, Node, Single
from orchestrator.queues.messages import Label, Reference, sealed
from orchestrator.queues.topology import Destination

_NOT_SENT_AGAIN: Final = frozenset(
    {
        "expires",
        "eta",
        "countdown",
        "retries",
        "delivery_info",
        "priority",
        "queue",
        "exchange",
        "routing_key",
    }
)
"""What a stored signature says about one sending; with `expires` the repeated message would be revoked."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of ours. `celery_id` is the same however often it is sent: for a step its id."""

    celery_id: str
    reference: Reference
    destination: Destination
    label: Label


def signature(app: Celery, message: Message, secret: bytes) -> Signature[Any]:
    """A signature that can be sent or composed; `message.reference.kind` is the Celery task's name."""
    return app.signature(
        str(message.reference.kind),  # of an enum's member Celery would take the `name`
        kwargs=sealed(message.reference, secret),
        immutable=True,
        options={"task_id": message.celery_id, **message.destination.options, **message.label.options},
    )


def compiled(canvas: Canvas, signature_of: Callable[[str], Signature[Any]], app: Celery) -> Signature[Any]:
    """The canvas as one signature, sent by `apply_async()`; `signature_of` gives each step's by its key."""
    return _Compiler(signature_of, app).compiled(canvas.root)


def sent_again(
    app: Celery, stored: Mapping[str, Any], destination: Destination, label: Label
) -> Signature[Any]:
    """What `signature_from_request()` gave, to be sent again: same id, same place in its chain and chord.

    `stored` is the JSON of it, unchanged. It goes where the row's current priority belongs. `label` is due
    again, since a request doesn't know the text that stood for its arguments.
    """
    options = {key: value for key, value in stored["options"].items() if key not in _NOT_SENT_AGAIN}
    return app.signature(
        {**stored, "options": {**options, **destination.options, **label.options}, "immutable": True}
    )


@dataclass(frozen=True, slots=True)
class _Compiler:
    signature_of: Callable[[str], Signature[Any]]
    app: Celery

    def compiled(self, node: Node) -> Signature[Any]:
        match node:
            case Single(key, beside):
                step = self.signature_of(key)
                for branch in beside:
                    step.link(self.compiled(branch))
                return step
            case Chain(nodes):
                return chain(*(self.compiled(each) for each in nodes), app=self.app)
            case Fork(branches):
                return group([self.compiled(branch) for branch in branches], app=self.app)
            case Join(header, body):
                return chord([self.compiled(branch) for branch in header], self.compiled(body), app=self.app)
