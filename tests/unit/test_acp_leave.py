"""What a person's leave to an agent's call is bound to."""

from __future__ import annotations

from orchestrator.agents.acp_client import SHOWN, _Tool


def _call(content: str) -> _Tool:
    tool = _Tool()
    tool.arguments = {"content": content}
    return tool


def test_leave_covers_the_middle_of_a_call_that_is_too_long_to_be_shown_whole() -> None:
    ends = "x" * SHOWN
    good, evil = _call(f"{ends}harmless{ends}"), _call(f"{ends}rm -rf /{ends}")
    assert len(good.whole()) == len(evil.whole())
    assert good.whole() != evil.whole()
