"""What the gateway doesn't pass on, since the provider would do more than answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.db.spending import Refusal
from orchestrator.gateway.dialects import CHAT, MESSAGES, RESPONSES, Dialect, Request
from orchestrator.gateway.reading import read

PROVIDERS_TOOLS = (
    *("web_search", "web_search_preview", "file_search", "code_interpreter", "image_generation", "mcp"),
)
EVIL = "https://evil.example/?d=secret"


def asked(dialect: Dialect, **more: Any) -> Request | Refusal:
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
        (RESPONSES, {"input": said({"type": "input_file", "file_id": "file_1"})}),
        (RESPONSES, {"input": [{"type": "computer_call_output", "output": {"image_url": EVIL}}]}),
        (RESPONSES, {"input": [{"type": "tool_search_output", "tools": [{"type": "mcp"}]}]}),
        *((RESPONSES, {"tools": [{"type": kind}]}) for kind in PROVIDERS_TOOLS),
        (RESPONSES, {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}]}),
        (RESPONSES, {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}),
        (RESPONSES, {"conversation": "conv_1"}),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "msg_of_another_run"}]}),
        (RESPONSES, {"input": [{"id": "msg_of_another_run"}]}),
        (RESPONSES, {"input": [{"type": None, "id": "msg_of_another_run"}]}),
        (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "audio_of_another_run"}}]}),
        (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        (MESSAGES, {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}),
        (MESSAGES, {"container": {"skills": []}}),
        (MESSAGES, {"messages": said({"type": "document", "source": {"type": "file", "file_id": "f"}})}),
        (MESSAGES, {"messages": said({"type": "container_upload", "file_id": "f"})}),
        (MESSAGES, {"system": [{"type": "image", "source": {"type": "url", "url": EVIL}}]}),
        (CHAT, {"web_search_options": {"search_context_size": "low"}}),
        (CHAT, {"web_search_options": {}}),
        (CHAT, {"messages": said({"type": "file", "file": {"file_id": "f"}})}),
    ],
)
def test_nothing_has_the_provider_do_more_than_answer(dialect: Dialect, more: dict[str, Any]) -> None:
    refused = asked(dialect, **more)
    assert isinstance(refused, Refusal)
    assert refused.code == "provider-tools-off"
    body = json.dumps({"model": "m", **more}).encode()
    assert isinstance(read(dialect, body, provider_tools=True), Request)


@pytest.mark.parametrize(
    ("dialect", "more"),
    [
        (MESSAGES, {"tools": [{"name": "read_file", "input_schema": {"type": "object"}}]}),
        (MESSAGES, {"messages": said({"type": "image", "source": {"type": "base64", "data": "aa"}})}),
        (CHAT, {"messages": said({"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}})}),
        (RESPONSES, {"tools": [{"type": "function", "name": "mcp__x"}, {"type": "custom", "name": "x"}]}),
        (RESPONSES, {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]}),
        (
            RESPONSES,
            {"tools": [{"type": "shell", "environment": {"type": "local"}}, {"type": "apply_patch"}]},
        ),
        (MESSAGES, {"tools": [{"type": "bash_20250124"}, {"type": "text_editor_20250728"}]}),
        (MESSAGES, {"messages": said({"type": "tool_use", "input": {"image_url": EVIL, "file_id": "x"}})}),
        (
            MESSAGES,
            {"tools": [{"name": "t", "input_schema": {"properties": {"image_url": {"type": "url"}}}}]},
        ),
        (MESSAGES, {"messages": said({"type": "text", "text": f"look at {EVIL}"})}),
    ],
)
def test_what_agents_send_is_passed_on(dialect: Dialect, more: dict[str, Any]) -> None:
    assert isinstance(asked(dialect, **more), Request)


def test_names_that_differ_in_case_alone_are_one_name_twice() -> None:
    refused = asked(MESSAGES, Model="dear")
    assert isinstance(refused, Refusal)
    assert "twice" in refused.message
