"""What crosses the broker: ids and a signature over them, and what people see of it in Flower.

Whoever can write to the broker can send messages; without the installation's secret they are refused before
anything is claimed. A replayed message is harmless: rows decide.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any, Final

from orchestrator.core.errors import Denied

STEP_KINDS: Final = frozenset({"plan", "agent", "gate", "judge", "confirm", "integrate"})


@dataclass(frozen=True, slots=True)
class Reference:
    """The row that a message points to. `kind` is the name of the Celery task; `step_id` may be empty."""

    kind: str
    tenant_id: str
    task_id: str
    workflow_id: str = ""
    step_id: str = ""


def sign(reference: Reference, secret: bytes) -> str:
    """HMAC-SHA256, in hex. JSON keeps neighbouring fields apart."""
    return hmac.new(secret, json.dumps(astuple(reference)).encode(), "sha256").hexdigest()


def verify(reference: Reference, signature: str, secret: bytes) -> bool:
    return hmac.compare_digest(sign(reference, secret).encode(), signature.encode())


def sealed(reference: Reference, secret: bytes) -> dict[str, str]:
    """A message's keyword arguments: the reference's fields but `kind`, and `signature`."""
    fields: dict[str, str] = asdict(reference)
    del fields["kind"]
    return {**fields, "signature": sign(reference, secret)}


def opened(kind: str, arguments: Mapping[str, Any], secret: bytes) -> Reference:
    """What `sealed` was given. Raises Denied `message-forged` for anything else."""
    fields = dict(arguments)
    signature = fields.pop("signature", None)
    if isinstance(signature, str) and all(isinstance(value, str) for value in fields.values()):
        try:
            reference = Reference(kind, **fields)
        except TypeError:
            pass
        else:
            if verify(reference, signature, secret):
                return reference
    raise Denied(
        "message-forged",
        "A message's signature doesn't fit it.",
        "All processes of an installation need the same ORCHESTRATOR_MESSAGE_SECRET.",
    )


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
