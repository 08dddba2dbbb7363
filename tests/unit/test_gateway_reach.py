"""What the gateway doesn't pass on, since the provider would call an address of the caller's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.gateway.dialects import CHAT, MESSAGES, RESPONSES, Dialect, Request
from orchestrator.gateway.reading import read

EVIL = "https://evil.example/?d=secret"


def asked(dialect: Dialect, **more: Any) -> Request | str:
    items = {MESSAGES: "messages", CHAT: "messages", RESPONSES: "input"}[dialect]
    return read(
        dialect, json.dumps({"model": "m", items: [{"role": "user", "content": "hi"}], **more}).encode()
    )


def said(block: Any) -> list[Any]:
    return [{"role": "user", "content": [block]}]


@pytest.mark.parametrize(
    ("dialect", "more"),
    [
        (MESSAGES, {"mcp_servers": [{"type": "url", "url": EVIL, "name": "x"}]}),
        (MESSAGES, {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}),
        (MESSAGES, {"messages": said({"type": "image", "source": {"type": "url", "url": EVIL}})}),
        (
            MESSAGES,
            {
                "messages": said(
                    {
                        "type": "tool_result",
                        "content": [{"type": "document", "source": {"type": "url", "url": EVIL}}],
                    }
                )
            },
        ),
        (
            MESSAGES,
            {
                "messages": said(
                    {
                        "type": "document",
                        "source": {
                            "type": "content",
                            "content": [{"type": "image", "source": {"type": "url", "url": EVIL}}],
                        },
                    }
                )
            },
        ),
        (RESPONSES, {"prompt": {"id": "p", "variables": {"x": {"type": "input_image", "image_url": EVIL}}}}),
        (CHAT, {"messages": said({"type": "image_url", "image_url": {"url": EVIL}})}),
        (RESPONSES, {"tools": [{"type": "mcp", "server_url": EVIL}]}),
        (RESPONSES, {"input": said({"type": "input_image", "image_url": EVIL})}),
        (RESPONSES, {"input": said({"type": "input_file", "file_url": EVIL})}),
    ],
)
def test_nothing_makes_the_provider_call_the_caller_s_address(dialect: Dialect, more: dict[str, Any]) -> None:
    assert "do more than answer" in str(asked(dialect, **more))


@pytest.mark.parametrize(
    ("dialect", "more"),
    [
        (MESSAGES, {"tools": [{"name": "read_file", "input_schema": {"type": "object"}}]}),
        (MESSAGES, {"messages": said({"type": "image", "source": {"type": "base64", "data": "aa"}})}),
        (CHAT, {"messages": said({"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}})}),
        (RESPONSES, {"tools": [{"type": "function", "name": "mcp__x"}, {"type": "web_search"}]}),
        (MESSAGES, {"messages": said({"type": "text", "text": f"look at {EVIL}"})}),
    ],
)
def test_what_agents_send_is_passed_on(dialect: Dialect, more: dict[str, Any]) -> None:
    assert isinstance(asked(dialect, **more), Request)


def test_names_that_differ_in_case_alone_are_one_name_twice() -> None:
    assert "twice" in str(asked(MESSAGES, Model="dear"))
