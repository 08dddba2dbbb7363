"""Real Claude Code and real Aider through real workers, gateway and model server."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from orchestrator.agents.conformance.scenarios import FIX, fixing
from tests.agents_installed import installed
from tests.integration.stack import Stack, until
from tests.integration.test_agents_worker import site

OPTIONS = [{"label": "Plus", "description": "+"}, {"label": "Minus", "description": "-"}]
WAIT = "python3 -c 'import time; time.sleep(7)'"
pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("agent", ["claude-code", "aider"])
def test_it_fixes_a_bug_and_its_calls_are_paid_for(agent: str, stack: Stack, tmp_path: Path) -> None:
    installed(agent)
    with site(agent, stack, tmp_path, fixing()) as at:
        with at.worker() as process:
            at.submit()
            assert at.stack.ends("t") == "completed", process.text()
        assert "return a + b" in at.result()
        used = at.stack.ledger.rows("SELECT * FROM usage")
        assert len(used) == len(at.server.sends())
        assert {row["agent_type"] for row in used} == {agent}
        assert at.left() == []


def test_claude_code_asks_and_is_killed_and_goes_on_in_its_session(stack: Stack, tmp_path: Path) -> None:
    installed("claude-code")
    question = {"question": "Which sign?", "header": "Sign", "multiSelect": False, "options": OPTIONS}
    ask = {"calls": [{"name": "AskUserQuestion", "arguments": {"questions": [question]}}]}
    begun = {"calls": [{"run": "echo half > half.txt"}]}, {"calls": [{"run": WAIT}]}
    again = {"latest": ["You were interrupted"], "calls": [{"run": FIX}]}
    with site("claude-code", stack, tmp_path, fixing(ask, *begun, again)) as at:
        with at.worker() as process:
            at.submit()
            asked = at.question()
            assert (asked["text"], asked["options"]) == ("Which sign?", ["Plus", "Minus"])
            assert at.left() == []
            at.answer(asked, "Plus")
            until(
                lambda: at.stack.ledger.rows("SELECT 1 FROM tool_calls WHERE name = 'checkpoint'"),
                "a checkpoint",
            )
            children = Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children").read_text()
            for pid in [process.process.pid, *map(int, children.split())]:
                os.kill(pid, signal.SIGKILL)
            process.process.wait()
        until(lambda: not at.left(), "no process of the killed worker")
        with at.worker() as process:
            at.stack.healed(lambda: at.stack.ledger.row("t")["finished_at"], "the end")
            assert at.stack.ledger.row("t")["status"] == "completed", process.text()
        assert "return a + b" in at.result()
        sessions = at.stack.ledger.rows("SELECT DISTINCT session FROM transcripts")
        assert len(sessions) == 1


def test_a_reply_that_its_provider_breaks_off_is_not_held_against_claude_code(
    stack: Stack, tmp_path: Path
) -> None:
    """It says that it failed itself; the gateway saw how its last call ended."""
    installed("claude-code")
    broken = {**fixing(), "faults": [{"kind": "error-event", "times": 2}]}
    with site("claude-code", stack, tmp_path, broken) as at, at.worker() as process:
        at.submit()
        at.stack.healed(lambda: at.stack.ledger.row("t")["finished_at"], "the end")
        assert at.stack.ledger.row("t")["status"] == "completed", process.text()
        first, *_ = at.stack.ledger.rows("SELECT outcome, error FROM attempts ORDER BY number")
        assert (first["outcome"], first["error"]["code"]) == ("broke", "agent-failed")
        assert first["error"]["class"] == "overloaded"
        assert at.stack.ledger.rows("SELECT kind FROM breakers") == [{"kind": "provider"}]
