"""Every kind of agent that is a program of its own goes through all scenarios."""

from __future__ import annotations

import pytest

from orchestrator.agents.conformance.scenarios import SCENARIOS
from orchestrator.agents.types import AGENT_TYPES
from orchestrator.cli import conformance
from orchestrator.core.errors import Refused
from tests.agents_installed import installed

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


def test_what_is_no_program_is_told_the_choice() -> None:
    with pytest.raises(Refused) as found:
        conformance.run("engine", None, print)
    assert found.value.code == "agent-not-external"
