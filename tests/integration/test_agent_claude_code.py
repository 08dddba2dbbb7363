"""Claude Code's real program, in the sandbox, against the local model server."""

from __future__ import annotations

import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.assignment import Limits
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Broke, Done, NeedsInput, StopReason, Yielded
from tests.agent_world import FIX, AgentWorld, fixing
from tests.agents_installed import installed, with_claude
from tests.engine_world import Wire
from tests.integration.repositories import installation
from tests.model_server import RunningModel, model_server

with_claude()

from orchestrator.agents.claude_code import ClaudeCode  # noqa: E402 - needs what may be missing

MODEL = "claude-sonnet-4-6"
ASKING = {
    "calls": [
        {
            "name": "AskUserQuestion",
            "arguments": {
                "questions": [
                    {
                        "question": "Which sign?",
                        "header": "Sign",
                        "multiSelect": False,
                        "options": [
                            {"label": "Plus", "description": "+"},
                            {"label": "Minus", "description": "-"},
                        ],
                    }
                ]
            },
        }
    ]
}


class MemoryTranscripts:
    """As rows would keep them."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)

    def append(
        self, project: str, session: str, subpath: str, entries: Sequence[Mapping[str, Any]], /
    ) -> None:
        here = self.entries[project, session, subpath]
        known = {entry.get("uuid") for entry in here}
        here.extend(dict(entry) for entry in entries if not entry.get("uuid") or entry["uuid"] not in known)

    def load(self, project: str, session: str, subpath: str, /) -> Sequence[Mapping[str, Any]]:
        return list(self.entries.get((project, session, subpath), ()))

    def subpaths(self, project: str, session: str, /) -> Sequence[str]:
        return [key[2] for key in self.entries if key[:2] == (project, session) and key[2]]


@pytest.fixture
def model() -> Iterator[RunningModel]:
    with model_server(fixing()) as found:
        yield found


@pytest.fixture
def transcripts() -> MemoryTranscripts:
    return MemoryTranscripts()


@pytest.fixture
def world(tmp_path: Path, model: RunningModel, transcripts: MemoryTranscripts) -> AgentWorld:
    adapter = ClaudeCode(installed("claude-code"), MODEL, lambda _: transcripts)
    return AgentWorld(installation(tmp_path / "root"), tmp_path, adapter, model.url, MODEL)


def test_it_fixes_a_bug_and_is_seen_doing_it(world: AgentWorld, model: RunningModel) -> None:
    verdict = world.work()
    assert isinstance(verdict, Done), (verdict, world.log())
    assert verdict.summary.startswith("Fixed add()")
    assert "a + b" in world.file("sums.py")
    assert world.tools == ["Bash", "Bash"]
    assert "all good" in world.log()
    assert world.left() == []
    assert model.finished_twice() == []
    assert {send.headers.get("x-claude-code-session-id") for send in model.sends()} == {
        world.sessions.kept.session.session_id
    }


def test_a_question_ends_the_program_and_its_answer_resumes_the_session(
    world: AgentWorld, model: RunningModel
) -> None:
    model.play(fixing(ASKING))
    verdict = world.work()
    assert isinstance(verdict, NeedsInput), (verdict, world.log())
    assert (verdict.ask.text, verdict.ask.options) == ("Which sign?", ("Plus", "Minus"))
    assert verdict.ask.kind is WaitingOn.QUESTION
    assert world.left() == []
    world.sessions.answer("Plus")
    verdict = world.work()
    assert isinstance(verdict, Done), (verdict, world.log())
    heard = str(model.bodies()[1]["messages"])
    assert "Plus" in heard
    assert "a + b" in world.file("sums.py")


def test_a_risky_call_waits_for_leave_and_is_then_run(world: AgentWorld, model: RunningModel) -> None:
    verdict = world.work(approvals=("execute",))
    assert isinstance(verdict, NeedsInput), (verdict, world.log())
    assert verdict.ask.kind is WaitingOn.TOOL_APPROVAL
    assert "a - b/a + b" in verdict.ask.text
    assert "a - b" in world.file("sums.py")
    world.sessions.answer("Approve")
    verdict = world.work(approvals=("execute",))
    assert isinstance(verdict, NeedsInput), (verdict, world.log())  # the second command
    assert "a + b" in world.file("sums.py")
    assert "check.py" in verdict.ask.text
    world.sessions.answer("Approve")
    assert isinstance(world.work(approvals=("execute",)), Done)
    assert model.finished_twice() == []


@pytest.mark.parametrize("_", range(3))
def test_what_a_person_denied_is_not_run(world: AgentWorld, model: RunningModel, _: int) -> None:
    """Again and again: a session that goes on may run its call before it is told which calls to ask about."""
    assert isinstance(world.work(approvals=("execute",)), NeedsInput)
    world.sessions.answer("Deny")
    world.work(approvals=("execute",))
    assert "a - b" in world.file("sums.py")
    assert "A person denied it" in str(model.bodies()[1]["messages"])


def test_of_several_risky_calls_in_one_message_none_is_lost(world: AgentWorld, model: RunningModel) -> None:
    both = {"calls": [{"run": "echo one > one.txt"}, {"run": "echo two > two.txt"}]}
    model.play(fixing(both))
    answers = 0
    while isinstance(verdict := world.work(approvals=("execute",)), NeedsInput):
        answers += 1
        assert answers < 6
        world.sessions.answer("Approve")
    assert world.file("one.txt") == "one\n"
    heard = str(model.bodies()[1]["messages"])
    assert "One at a time" in heard
    assert isinstance(verdict, Done)


@pytest.mark.parametrize("approvals", [(), ("execute",)])
def test_a_subagent_is_waited_for_and_what_it_may_not_do_its_agent_can_ask_for(
    world: AgentWorld, model: RunningModel, approvals: tuple[str, ...]
) -> None:
    arguments = {"description": "Sums", "prompt": "Do the sums.", "subagent_type": "general-purpose"}
    below = {
        "name": "below",
        "when": {"contains": "Do the sums.", "lacks": "<step>"},
        "turns": [{"calls": [{"run": "echo 5 > below.txt"}]}, {"text": "Done."}],
    }
    asks = [{"calls": [{"run": FIX}]}] if approvals else []
    turns = [{"calls": [{"name": "Agent", "arguments": arguments}]}, *asks, {"text": "Done."}]
    model.play({"conversations": [below, {"name": "above", "turns": turns}]})
    verdict = world.work(approvals=approvals)
    if approvals:
        assert isinstance(verdict, NeedsInput), (verdict, world.log())
        assert "sed -i" in verdict.ask.text
        assert "below.txt" not in world.names()
    else:
        assert isinstance(verdict, Done), (verdict, world.log())
        assert world.file("below.txt") == "5\n"


def test_a_cancel_leaves_no_process(world: AgentWorld, model: RunningModel) -> None:
    model.play(fixing({"calls": [{"run": "setsid sleep 300 & python3 -c 'import time; time.sleep(300)'"}]}))
    wire = Wire()
    _soon(lambda: "Bash" in str(wire.notes), lambda: wire.stop.set(StopReason.CANCEL))
    began = time.monotonic()
    verdict = world.work(wire)
    assert verdict == Yielded(StopReason.CANCEL), world.log()
    assert world.left() == []
    assert time.monotonic() - began < 60


def test_a_message_of_a_person_is_heard_while_it_works(world: AgentWorld, model: RunningModel) -> None:
    more = {"text": "I see.", "latest": ["Mind the sign"]}
    model.play(fixing({"calls": [{"run": "python3 -c 'import time; time.sleep(4)'"}]}, more))
    wire = Wire()
    _soon(lambda: "Bash" in str(wire.notes), lambda: world.sessions.inbox.append("Mind the sign"))
    verdict = world.work(wire)
    assert any("Mind the sign" in str(body["messages"]) for body in model.bodies()), world.log()
    assert isinstance(verdict, Done | Broke)


def test_another_host_resumes_the_session_from_the_rows(
    world: AgentWorld, model: RunningModel, transcripts: MemoryTranscripts
) -> None:
    model.play(fixing(ASKING))
    assert isinstance(world.work(), NeedsInput)
    assert transcripts.entries
    for home in (path for path in world.workspaces.homes._root.iterdir() if path.is_dir()):
        shutil.rmtree(home)
    world.sessions.answer("Plus")
    verdict = world.work()
    assert isinstance(verdict, Done), (verdict, world.log())
    assert len(model.sends()) == 4


def test_a_provider_that_refuses_ends_the_run_and_is_not_asked_again(
    world: AgentWorld, model: RunningModel
) -> None:
    model.fault("overloaded", times=9)
    verdict = world.work()
    assert isinstance(verdict, Broke), verdict
    assert verdict.code == "model-overloaded"
    assert len(model.sends()) == 1


def test_it_stops_at_its_limit_of_turns(world: AgentWorld, model: RunningModel) -> None:
    model.play({"conversations": [{"turns": [{"calls": [{"run": "date"}]}], "loop": True}]})
    verdict = world.work(limits=_limits(3))
    assert isinstance(verdict, Broke)
    assert verdict.code == "limit-turns"
    assert len(model.sends()) <= 4
    assert world.left() == []


def _limits(turns: int) -> Any:
    return Limits(turns=turns)


def _soon(seen: Callable[[], bool], act: Callable[[], object]) -> None:
    def watch() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if seen():
                act()
                return
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()
