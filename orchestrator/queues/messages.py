"""What crosses the broker: ids and a signature over them, and what people see of it in Flower.

Whoever can write to the broker can send messages; without the installation's secret they are refused before
anything is claimed. A replayed message is harmless: rows decide.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any, Final

from orchestrator.core.errors import Denied

STEP_KINDS: Final = frozenset({"plan", "agent", "gate", "judge", "confirm", "integrate"})


@dataclass(frozen=True, slots=True)
class Reference:
    """The row that a message points to. `kind` is the name of the Celery task; `step_id` may be empty.

    `digest` is that of the body that travels with the message, where no row is written yet; else empty.
    """

    kind: str
    tenant_id: str
    task_id: str
    workflow_id: str = ""
    step_id: str = ""
    digest: str = ""


def digest(body: str) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(body.encode()).hexdigest()


def sign(reference: Reference, secret: bytes) -> str:
    """HMAC-SHA256, in hex. JSON keeps neighbouring fields apart, and a digest from its absence."""
    *fields, body = astuple(reference)
    return hmac.new(secret, json.dumps([*fields, body] if body else fields).encode(), "sha256").hexdigest()


def verify(reference: Reference, signature: str, secret: bytes) -> bool:
    return hmac.compare_digest(sign(reference, secret).encode(), signature.encode())


def sealed(reference: Reference, secret: bytes) -> dict[str, str]:
    """A message's keyword arguments: the reference's fields but `kind`, and `signature`."""
    fields: dict[str, str] = asdict(reference)
    del fields["kind"]
    if not reference.digest:
        del fields["digest"]
    return {**fields, "signature": sign(reference, secret)}


def opened(kind: str, arguments: Mapping[str, Any], secret: bytes, body: object = None) -> Reference:
    """What `sealed` was given. Raises Denied `message-forged` for anything else.

    `body` (None: there is none) must be the one whose digest was sealed.
    """
    fields = dict(arguments)
    signature = fields.pop("signature", None)
    if isinstance(signature, str) and all(isinstance(value, str) for value in fields.values()):
        try:
            reference = Reference(kind, **fields)
        except TypeError:
            pass
        else:
            if verify(reference, signature, secret) and _is_sealed(body, reference):
                return reference
    raise Denied(
        "message-forged",
        "A message's signature doesn't fit it.",
        "All processes of an installation need the same ORCHESTRATOR_MESSAGE_SECRET.",
    )


def _is_sealed(body: object, reference: Reference) -> bool:
    if body is None:
        return True  # it may be left out, once there is a row
    return isinstance(body, str) and hmac.compare_digest(digest(body), reference.digest)


@dataclass(frozen=True, slots=True)
class Label:
    """What Flower and logs show of a message instead of its arguments."""

    shadow: str
    argsrepr: str

    @property
    def options(self) -> dict[str, str]:
        return {"shadow": self.shadow, "argsrepr": self.argsrepr, "kwargsrepr": "{}"}


def step_label(task_id: str, kind: str, number: int, total: int) -> Label:
    """`step:agent` and `('task_01JD4M2', 'step 3/5')`."""
    shadow = "plan" if kind == "plan" else f"step:{kind if kind in STEP_KINDS else 'other'}"
    return Label(shadow, repr((task_id, f"step {number}/{total}")))


def reclaim_label() -> Label:
    return Label("reclaim", "()")


def finalize_label(task_id: str) -> Label:
    return Label("finalize", repr((task_id,)))
