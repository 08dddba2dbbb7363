"""What a person's leave to an agent's call is bound to, and what they are shown of it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from acp.schema import ToolCallUpdate

from orchestrator.agents.acp_client import Client, _Tool
from orchestrator.agents.external import ASKED, Wish
from orchestrator.agents.oversight import Overseer


def _call(content: str) -> _Tool:
    tool = _Tool()
    tool.arguments = {"content": content}
    return tool


def test_leave_covers_the_middle_of_a_call_that_is_too_long_to_be_shown_whole() -> None:
    ends = "x" * ASKED
    good, evil = _call(f"{ends}harmless{ends}"), _call(f"{ends}rm -rf /{ends}")
    assert len(good.whole()) == len(evil.whole())
    assert good.whole() != evil.whole()


def _wish(arguments: dict[str, Any]) -> Wish | None:
    async def asked() -> Wish | None:
        client = Client(cast(Overseer, None), ("execute",), None)  # it is told of nothing here
        client.begin()
        update = ToolCallUpdate(tool_call_id="c", title="Write", raw_input=arguments)
        asking = asyncio.create_task(client.request_permission("s", update, []))
        await client.wished()[0]
        client.cancelled()
        await asking
        return client.wish

    return asyncio.run(asked())


def test_as_much_is_shown_of_a_call_as_of_any_other_agent_s() -> None:
    """One bound, where all of them hand their questions over."""
    content = "x" * (ASKED - 1000)
    found = _wish({"content": content})
    assert found is not None
    assert content in found.text
