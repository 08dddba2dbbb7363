"""What a request's body asks for, read so that no provider can read anything else in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from orchestrator.db.spending import Refusal
from orchestrator.gateway.dialects import CHAT, MOST_PARTS, Dialect, Request, parts_of
from orchestrator.gateway.reach import reaches_out

LONGEST_NAME: Final = 200
_DEEPEST: Final = 100
"""Objects and lists within each other; tools' schemas take about 20 of them."""
_DEARER: Final = ("priority", "fast")
_ELSEWHERE: Final = ("models", "fallbacks", "api_base", "base_url", "api_key")
"""Of servers that stand before others."""
_SHORT: Final = 256 * 1024
_AT_ONCE: Final = 2


class Reading:
    """Reads bodies; long ones beside the event loop, and only a few of them at a time. `provider_tools`: the
    provider may do more for a caller than answer."""

    def __init__(self, *, provider_tools: bool = False) -> None:
        self._provider_tools = provider_tools
        self._long = asyncio.Semaphore(_AT_ONCE)

    async def read(self, dialect: Dialect, body: bytes) -> Request | Refusal:
        if len(body) <= _SHORT:
            return read(dialect, body, provider_tools=self._provider_tools)
        async with self._long:
            return await asyncio.to_thread(read, dialect, body, provider_tools=self._provider_tools)


def read(dialect: Dialect, body: bytes, *, provider_tools: bool = False) -> Request | Refusal:
    """What a body asks for, or what is wrong with it: also whatever a provider could read otherwise than we
    do, or do without being counted."""
    if parts_of(body) > MOST_PARTS:
        return _malformed("The body has too many parts.")
    try:
        content = json.loads(body.decode(), object_pairs_hook=_once_each)
    except (ValueError, RecursionError):
        return _malformed("The body is not JSON in UTF-8, or names something twice.")
    if not isinstance(content, dict) or not _is_name(content.get("model")):
        return _malformed("The body is not an object with a text `model`.")
    if (wrong := _ambiguous(content) or _uncounted(content)) is not None:
        return _malformed(wrong)
    if not provider_tools and (what := reaches_out(content)) is not None:
        return Refusal(
            "provider-tools-off",
            f"It would have the provider do more than answer: {what}. That passes only with"
            " ORCHESTRATOR_GATEWAY_PROVIDER_TOOLS=true, for all runs.",
        )
    most = [content[name] for name in dialect.max_output_fields if content.get(name) is not None]
    if not all(type(each) is int and each >= 0 for each in most):
        return _malformed("The most tokens that it may be answered with are no whole number, from 0.")
    # Of two such numbers a provider may heed either.
    request = Request(content["model"], content.get("stream") is True, max(most, default=None), content, body)
    if dialect is not CHAT or not request.streamed or _asks_for_usage(content):
        return request
    options = {**(content.get("stream_options") or {}), "include_usage": True}
    counted = json.dumps({**content, "stream_options": options}).encode()
    return replace(request, body=counted, hides_usage=True)


def _malformed(message: str) -> Refusal:
    return Refusal("request-malformed", message)


def _ambiguous(content: Mapping[str, Any]) -> str | None:
    """What another reader may take for something else, or may not survive."""
    if len({name.casefold() for name in content}) < len(content):
        return "The body names something twice, but for upper and lower case."
    if _deeper_than(_DEEPEST, content):
        return f"The body is nested deeper than {_DEEPEST} levels."
    if not isinstance(content.get("stream"), bool | None):
        return "`stream` is neither true nor false."
    if not isinstance(content.get("stream_options"), dict | None):
        return "`stream_options` is not an object."
    return None


def _uncounted(content: Mapping[str, Any]) -> str | None:
    """What would cost more than we count, go on when the call has ended, or ask another model."""
    if content.get("background"):
        return "A reply in the background is not passed on."
    if content.get("n") not in (None, 1):
        return "Several replies at once (`n`) are not passed on."
    if any(str(content.get(name)).casefold() in _DEARER for name in ("service_tier", "speed")):
        return "A dearer tier than the usual one is not passed on."
    if content.get("inference_geo") not in (None, "global"):
        return "Another place than the usual one (`inference_geo`), which is dearer, is not passed on."
    for name in _ELSEWHERE:
        if content.get(name):
            return f"`{name}` is not passed on: the gateway alone says which model and which server is asked."
    return None


def _deeper_than(most: int, content: object) -> bool:
    level = [content]
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)  # type: ignore[attr-defined]
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values of one name, ours could be another than the provider's."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


def _is_name(model: object) -> bool:
    return isinstance(model, str) and 0 < len(model) <= LONGEST_NAME and model.isprintable()


def _asks_for_usage(content: Mapping[str, Any]) -> bool:
    options = content.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
