"""Every kind of agent that is a program of its own goes through all scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.agents import programs
from orchestrator.agents.conformance import scenarios
from orchestrator.agents.conformance.scenarios import SCENARIOS
from orchestrator.agents.types import AGENT_TYPES
from orchestrator.cli import conformance
from orchestrator.core.errors import Refused, Unavailable
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Ask, Broke, NeedsInput
from tests.agents_installed import installed
from tests.readme import ROOT, blocks

MODELS = {
    "claude-code": "claude-sonnet-4-6",
    "codex": "gpt-5.2-codex",
    "goose": "claude-sonnet-4-6",
    "aider": "claude-sonnet-4-6",
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_it_does_what_each_must_and_says_what_it_cannot(name: str) -> None:
    installed(name)
    told: list[conformance.Outcome] = []
    conformance.run(name, MODELS[name], told.append)
    assert [one for one in told if one.state == "failed"] == []
    lacking = {one.name for one in SCENARIOS if one.needs - AGENT_TYPES[name].capabilities}
    assert {one.scenario for one in told if one.state == "skipped"} == lacking
    assert len(told) == len(SCENARIOS)


def test_the_how_to_s_example_of_an_agent_of_one_s_own_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("goose")
    (example,) = blocks("python", ROOT / "docs/how-to/agents.md")
    here = example.replace("~/.cache/orchestrator/agents", str(programs.default_root()))
    (tmp_path / "my_agent.py").write_text(here)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    some = {
        "fixes a bug; its calls of the model are seen",
        "asks a person, ends, and goes on with the answer",
    }
    monkeypatch.setattr(scenarios, "SCENARIOS", [one for one in SCENARIOS if one.name in some])
    told: list[conformance.Outcome] = []
    conformance.run("my_agent:make", MODELS["goose"], told.append)
    assert [(one.state, one.detail) for one in told] == [
        ("passed", ""),
        ("skipped", "it can't do: questions"),
    ]


def test_a_program_that_is_not_there_is_said_once_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_AGENTS_DIR", str(tmp_path))
    told: list[conformance.Outcome] = []
    with pytest.raises(Unavailable) as found:
        conformance.run("codex", None, told.append)
    assert (found.value.code, told) == ("agent-program-missing", [])
    assert "orchestrator agent install codex" in found.value.hint


def test_how_an_attempt_ended_is_told_in_words() -> None:
    broke = Broke("agent-died", "The program ended with code 1.", ErrorClass.AGENT, retryable=True)
    assert scenarios._ended(broke) == "broke (agent-died): The program ended with code 1."
    assert scenarios._ended(NeedsInput(Ask("call-1", "Which?"))) == "asked for question: Which?"


def test_what_is_no_program_is_told_the_choice() -> None:
    with pytest.raises(Refused) as found:
        conformance.run("engine", None, print)
    assert found.value.code == "agent-not-external"
