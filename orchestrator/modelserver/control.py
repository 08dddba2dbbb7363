"""The server's own doors: `/_control/…`, and the list of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

from pydantic import TypeAdapter, ValidationError

from orchestrator.modelserver.faults import Order
from orchestrator.modelserver.script import Script
from orchestrator.modelserver.stage import Stage
from orchestrator.modelserver.wire import Request

_ORDERS = TypeAdapter(list[Order])
_SCRIPT = TypeAdapter(Script)
Answer = tuple[int, dict[str, Any]]


def answer(stage: Stage, request: Request) -> Answer:
    """Status and body. A request that changes something must say that it is JSON: no web page can do that
    from elsewhere without being asked first.
    """
    path = request.path.removeprefix("/_control/").rstrip("/")
    if request.method == "GET":
        return _told(stage, path, request.query)
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return 415, {"error": "send content-type: application/json"}
    try:
        return _changed(stage, request.method, path, request.body)
    except ValidationError as error:
        return 422, {"error": "not valid", "problems": error.errors(include_url=False, include_context=False)}


def _told(stage: Stage, path: str, query: str) -> Answer:
    match path:
        case "health":
            return 200, {"status": "ok"}
        case "log":
            after = parse_qs(query).get("after", ["0"])[0]
            number = int(after) if after.isdecimal() else 0
            return 200, {"sends": [send.record() for send in stage.log.all() if send.number > number]}
        case "faults":
            return 200, {"faults": [order.model_dump(mode="json") for order in stage.faults.standing()]}
        case _:
            return 404, {"error": f"nothing at /_control/{path}"}


def _changed(stage: Stage, method: str, path: str, body: bytes) -> Answer:
    match (method, path):
        case ("POST", "faults"):
            orders = _ORDERS.validate_json(body if body.lstrip().startswith(b"[") else b"[" + body + b"]")
            for order in orders:
                stage.faults.add(order)
            return 200, {"added": len(orders)}
        case ("DELETE", "faults"):
            stage.faults.clear()
        case ("POST", "script"):
            stage.load(_SCRIPT.validate_json(body))
        case ("DELETE", "log"):
            stage.log.clear()
        case _:
            return 404, {"error": f"no {method} /_control/{path}"}
    return 200, {"status": "ok"}


def models(names: Sequence[str]) -> dict[str, Any]:
    """Both APIs' list in one: each client takes the fields that it knows."""
    data = [
        {
            "id": name,
            "object": "model",
            "type": "model",
            "created": 1_767_225_600,
            "created_at": "2026-01-01T00:00:00Z",
            "display_name": name,
            "owned_by": "local",
            "lifecycle": "active",
            "max_input_tokens": 200_000,
            "max_tokens": 64_000,
        }
        for name in names
    ]
    ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
    return {"object": "list", "data": data, "has_more": False, **ends}
