"""Whether a request would have the provider do something for its caller besides answering: call an address,
search the web, run code, open a file. The sandbox has no network, and a model's provider must not be its way
around that; nor is what such tools cost among the tokens that are counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_FIELDS: Final = ("mcp_servers", "container", "prompt", "conversation", "web_search_options", "plugins")
"""Of a request; `prompt` and `conversation` are kept by the provider, with tools and files of their own."""
_NOTHING: Final[tuple[object, ...]] = (None, False, "", [])
_CALLERS_TOOLS: Final = frozenset(
    {
        *("function", "custom", "namespace", "local_shell", "apply_patch", "tool_search"),
        *("computer", "computer_use_preview"),
    }
)
_CALLERS_VERSIONED: Final = ("bash_", "text_editor_", "computer_", "memory_", "tool_search_tool_")
"""Types of tools that the caller runs, or that only look through the other tools."""
_ADDRESSES: Final = ("image_url", "file_url", "audio_url", "video_url")
_CALLS: Final = ("tool_use", "server_tool_use", "mcp_tool_use")
"""Blocks whose `input` is a model's own words, which nobody follows."""


def reaches_out(content: Mapping[str, Any]) -> str | None:
    """What of it does, for people; None if nothing does. Data that comes along in a `data:` URL stays."""
    for name in _FIELDS:
        if content.get(name) not in _NOTHING:  # an empty object is a wish without further ones
            return f"`{name}`"
    if (tool := _providers_tool(content)) is not None:
        return tool
    for items in (content.get("messages"), content.get("input"), content.get("system")):
        for part in _parts(items):
            if _is_elsewhere(part):
                return "content behind an address or a file's id"
            if (tool := _providers_tool(part)) is not None:
                return tool
    return None


def _providers_tool(holder: Mapping[str, Any]) -> str | None:
    """The first one that the provider runs, of those that this object lists."""
    listed = holder.get("tools")
    for tool in listed if isinstance(listed, list) else ():
        if not isinstance(tool, Mapping):
            continue
        kind = tool.get("type")
        if kind is not None and not _is_callers(kind, tool):
            return f"the tool {kind!r:.80}"
        if (inner := _providers_tool(tool)) is not None:
            return inner
    return None


def _is_callers(kind: object, tool: Mapping[str, Any]) -> bool:
    if kind == "shell":
        where = tool.get("environment")
        return isinstance(where, Mapping) and where.get("type") == "local"
    return isinstance(kind, str) and (kind in _CALLERS_TOOLS or kind.startswith(_CALLERS_VERSIONED))


def _is_elsewhere(part: Mapping[str, Any]) -> bool:
    source = part.get("source")
    if isinstance(source, Mapping) and (source.get("type") in ("url", "file") or "url" in source):
        return True
    if any(isinstance(holder, Mapping) and holder.get("file_id") for holder in (part, part.get("file"))):
        return True
    if part.get("type") == "item_reference" or ("id" in part and part.keys() <= {"id", "type"}):
        return True  # an item or a sound that the provider has kept, perhaps from another run
    for name in _ADDRESSES:
        found = part.get(name)
        url = found.get("url") if isinstance(found, Mapping) else found
        if isinstance(url, str) and not url.lstrip().lower().startswith("data:"):
            return True
    return False


def _parts(items: Any) -> Iterator[Mapping[str, Any]]:
    """Objects at any depth."""
    waiting = [items]
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += [inner for inner in found if isinstance(inner, dict | list)]
        elif isinstance(found, dict):
            yield found
            hidden = "input" if found.get("type") in _CALLS else None
            waiting += [v for name, v in found.items() if isinstance(v, dict | list) and name != hidden]
