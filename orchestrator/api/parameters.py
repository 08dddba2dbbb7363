"""Query parameters: a name that the route doesn't know is an error, as an unknown field of a body is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import Request

from orchestrator.core.errors import Problem, Refused


def check(request: Request) -> None:
    """Raises Refused `parameter-unknown`."""
    if not request.query_params:
        return
    known = set(_names(request.scope["route"].dependant))
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        choice = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
        detail = f"There is no query parameter {unknown[0][:80]!r} here; {choice}."
        raise Refused(
            "parameter-unknown",
            detail,
            "Leave it out, or correct its name.",
            problems=tuple(
                Problem(f"/query/{name[:80]}", "parameter-unknown", "not known here") for name in unknown
            ),
        )


def _names(dependant: Any) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for other in dependant.dependencies:
        yield from _names(other)
