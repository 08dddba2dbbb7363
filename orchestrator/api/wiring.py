"""What routes are given: the wiring of this process, who calls, and the wake-ups for streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, cast

from fastapi import Depends, Request

from orchestrator.api import parameters
from orchestrator.api.wakeups import Wakeups
from orchestrator.bootstrap import Wiring
from orchestrator.commands import keys
from orchestrator.commands.keys import Caller, Scope
from orchestrator.core.errors import Denied
from orchestrator.queries.reading import glance


def _wiring(request: Request) -> Wiring:
    return cast(Wiring, request.app.state.wiring)


def _wakeups(request: Request) -> Wakeups:
    return cast(Wakeups, request.app.state.wakeups)


def shown_key(request: Request) -> str | None:
    """`Authorization: Bearer …` or `X-API-Key: …`; a key in a URL is not looked at."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return request.headers.get("x-api-key")


def identify(wiring: Wiring, key: str) -> Caller:
    with glance(wiring.engine) as connection:
        return keys.identify(connection, key)


def _needing(scope: Scope) -> Callable[..., Caller]:
    def caller(request: Request) -> Caller:
        key = shown_key(request)
        if key is None:
            raise Denied(
                "key-missing", "This needs an API key.", "Send the header Authorization: Bearer <key>."
            )
        found = identify(_wiring(request), key)
        found.require(scope)
        parameters.check(request)
        return found

    return caller


The = Annotated[Wiring, Depends(_wiring)]
Waking = Annotated[Wakeups, Depends(_wakeups)]
Reader = Annotated[Caller, Depends(_needing(Scope.READ))]
Writer = Annotated[Caller, Depends(_needing(Scope.WRITE))]
Admin = Annotated[Caller, Depends(_needing(Scope.ADMIN))]
