"""JSON in and out: bodies are read strictly, answers are written from the queries' dataclasses."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Final, Never, TypeVar

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.commands.request import check_depth, refused
from orchestrator.core.errors import Refused

M = TypeVar("M", bound=BaseModel)


async def _json_body(request: Request) -> Any:
    """The parsed body; None when there is none. Raises Refused (400, 415)."""
    raw = await request.body()
    if not raw:
        return None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Refused(
            "media-type-unsupported",
            f"The body is {kind or 'of no declared type'}.",
            "Send JSON with the header Content-Type: application/json.",
        )
    return parse_json(raw)


JsonBody = Annotated[Any, Depends(_json_body)]


def parse_json(raw: bytes) -> Any:
    """Raises Refused `request-malformed` for what JSON or Unicode don't allow."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates have no encoding
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refused(
            "request-malformed", f"The body is not JSON in UTF-8{where}.", "Send a JSON object."
        ) from None
    check_depth(value)
    return value


def read(model: type[M], body: Any) -> M:
    """The body as a model of ours; no body is an empty object. Raises Refused `request-invalid`."""
    if body is not None and not isinstance(body, dict):
        raise Refused("request-invalid", "The body must be a JSON object.", "Send a JSON object.")
    try:
        return model.model_validate(body or {})
    except ValidationError as error:
        raise refused(error) from None


_adapter: Final[Callable[[Any], TypeAdapter[Any]]] = cache(TypeAdapter)


def plain(value: Any) -> Any:
    """A dataclass as JSON-like values."""
    return _adapter(type(value)).dump_python(value, mode="json")


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A dataclass as a JSON answer."""
    raw = _adapter(type(value)).dump_json(value)
    return Response(raw, status, headers, media_type="application/json")


def _no_constant(name: str) -> Never:
    raise ValueError(name)
