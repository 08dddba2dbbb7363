"""Whether a request would make the provider itself call an address that the caller names: the sandbox has no
network, and a model's provider must not be its way around that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_FETCHING: Final = ("mcp", "web_fetch")
"""Beginnings of the types of tools that the provider runs against an address of the caller's."""
_ADDRESSES: Final = ("image_url", "file_url")


def reaches_out(content: Mapping[str, Any]) -> str | None:
    """What of it does, for people; None if nothing does. Data that comes along in a `data:` URL stays."""
    if content.get("mcp_servers"):
        return "mcp_servers"
    for tool in _dicts(content.get("tools")):
        kind = tool.get("type")
        if isinstance(kind, str) and kind.startswith(_FETCHING):
            return f"the tool {kind}"
    prompt = content.get("prompt")
    variables = prompt.get("variables") if isinstance(prompt, Mapping) else None
    filled = list(variables.values()) if isinstance(variables, Mapping) else None
    for items in (content.get("messages"), content.get("input"), content.get("system"), filled):
        for block in _blocks(items):
            if _is_elsewhere(block):
                return "content behind a URL"
    return None


def _is_elsewhere(block: Mapping[str, Any]) -> bool:
    source = block.get("source")
    if isinstance(source, Mapping) and (source.get("type") == "url" or "url" in source):
        return True
    for name in _ADDRESSES:
        found = block.get(name)
        url = found.get("url") if isinstance(found, Mapping) else found
        if isinstance(url, str) and not url.lstrip().lower().startswith("data:"):
            return True
    return False


def _blocks(items: Any) -> Iterator[Mapping[str, Any]]:
    """Content at any depth: messages, their blocks, and those of tool results."""
    waiting = list(_dicts(items))
    while waiting:
        found = waiting.pop()
        yield found
        waiting += _dicts(found.get("content"))
        waiting += _dicts(found.get("output"))
        for source in _dicts(found.get("source")):
            waiting += _dicts(source.get("content"))


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
    elif isinstance(value, list):
        yield from (one for one in value if isinstance(one, Mapping))
