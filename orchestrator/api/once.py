"""Every POST goes through here: with an `Idempotency-Key` it is done once, however often it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse

from orchestrator.bootstrap import Wiring
from orchestrator.commands import idempotency
from orchestrator.commands.idempotency import StoredAnswer
from orchestrator.commands.keys import Caller
from orchestrator.commands.publication import NOTHING, Publication
from orchestrator.core.errors import Refused
from orchestrator.db.connect import Connection
from orchestrator.tasks.publish import perform


@dataclass(frozen=True, slots=True)
class Ask:
    """How the caller wants it. `key` None: each request is a new one. `wait`: seconds, from `Prefer`."""

    key: str | None
    fingerprint: str
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command did, as an answer."""

    status_code: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    publish: Publication = NOTHING

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, dict(self.headers))


MOST_WAIT_SECONDS = 60.0


async def _ask(request: Request) -> Ask:
    key = request.headers.get("idempotency-key")
    if key is not None and not (
        0 < len(key) <= idempotency.LONGEST_KEY and key.isascii() and key.isprintable()
    ):
        raise Refused(
            "idempotency-key-invalid",
            f"The Idempotency-Key must be 1 to {idempotency.LONGEST_KEY} visible ASCII characters.",
            "Use a random one, such as a UUID.",
        )
    about = f"{request.method} {request.url.path}\n".encode()
    digest = hashlib.sha256(about + await request.body()).hexdigest()
    return Ask(key, digest, _wait(request.headers.get("prefer", "")))


def _wait(prefer: str) -> float:
    """RFC 7240: what isn't understood is ignored."""
    for preference in prefer.split(","):
        name, _, value = preference.partition(";")[0].strip().partition("=")
        if name.strip().lower() == "wait" and value.strip().isdigit():
            return min(float(value), MOST_WAIT_SECONDS)
    return 0.0


Asking = Annotated[Ask, Depends(_ask)]


def once(wiring: Wiring, caller: Caller, ask: Ask, work: Callable[[Connection], Reply]) -> Reply:
    """Runs `work` in a transaction, commits, publishes; or gives the answer that the same request had before.

    What `work` raises is not stored: the same key may be sent again with the fault corrected.
    """

    def within(connection: Connection) -> Reply:
        if ask.key is None:
            return work(connection)
        stored = idempotency.recall(connection, caller.tenant_id, ask.key, ask.fingerprint)
        if stored is not None:
            replayed = {**stored.headers, "Idempotency-Replayed": "true"}
            return Reply(stored.status_code, stored.body, replayed)
        reply = work(connection)
        answer = StoredAnswer(reply.status_code, reply.body, reply.headers)
        idempotency.remember(connection, caller.tenant_id, ask.key, ask.fingerprint, answer)
        return reply

    return perform(wiring, within)
