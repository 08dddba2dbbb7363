from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.agents.equipment import equipped
from orchestrator.config import Settings
from orchestrator.core.mcp_server import McpServer, read_server
from orchestrator.engine.tools import TOOLS, toolbox
from orchestrator.engine.tools.mcp import risk_of
from orchestrator.engine.tools.policy import ToolPolicy, no_servers
from orchestrator.engine.web import HostPolicy
from tests.engine_world import Wire, assignment

DOCS = McpServer(url="https://mcp.test/mcp", headers={"x": "secret-of-ours"}, allow=("search", "read"))
LINT = McpServer(command=("lint-mcp",))
POLICY = ToolPolicy(
    HostPolicy(("docs.test", "*.example.org", "any.test:8443")), {"docs": DOCS, "lint": LINT}, subtasks=True
)


def test_without_a_policy_there_are_the_plain_tools_alone() -> None:
    assert toolbox(ToolPolicy()) == TOOLS
    assert "fetch_url" not in TOOLS
    assert "start_subtask" not in TOOLS


def test_policy_adds_fetching_and_subtasks_and_a_task_takes_them_away() -> None:
    assert set(toolbox(POLICY)) - set(TOOLS) == {"fetch_url", "start_subtask"}
    assert toolbox(POLICY.for_task({"fetch_hosts": [], "subtasks": False})) == TOOLS
    assert "docs.test" in toolbox(POLICY)["fetch_url"].description


def test_a_task_narrows_the_hosts_and_never_widens_them() -> None:
    asked = ["docs.test", "a.example.org", "*.b.example.org", "any.test:8443"]
    assert POLICY.for_task({"fetch_hosts": asked}).hosts.hosts == tuple(asked)
    for more in ("*", "example.org", "*.org", "any.test", "docs.test:22", "*.docs.test", "evil-example.org"):
        own = POLICY.for_task({"fetch_hosts": ["docs.test", more]})
        assert own.hosts.hosts == ("docs.test",)
        assert own.problems == (f"fetch_hosts: {more} may not be reached here",)
    assert ToolPolicy(HostPolicy(("*",))).for_task({"fetch_hosts": ["x.test"]}).hosts.hosts == ("x.test",)


def test_a_task_adds_servers_and_picks_from_those_of_the_installation() -> None:
    own = POLICY.for_task(
        {
            "mcp": {
                "lint": None,
                "docs": {"allow": ["search", "drop_table"]},
                "mine": {"command": ["m"], "seconds": 5},
            }
        }
    )
    assert own.problems == ()
    assert dict(own.servers) == {
        "docs": McpServer(url=DOCS.url, headers=DOCS.headers, allow=("search",)),
        "mine": McpServer(command=("m",), seconds=5.0),
    }
    assert POLICY.for_task({"mcp": {"docs": {}}}).servers["docs"] == DOCS
    assert POLICY.for_task({"mcp": {"lint": {"allow": ["x"]}}}).servers["lint"].allow == ("x",)


@pytest.mark.parametrize(
    "asked",
    [
        5,
        {"mcp": 5},
        {"fetch_hosts": "docs.test"},
        {"fetch_hosts": [1]},
        {"mcp": {"a__b": {"command": ["x"]}}},
        {"mcp": {"-x": {"command": ["x"]}}},
        {"mcp": {"x": []}},
        {"mcp": {"x": {}}},
        {"mcp": {"x": {"command": ["a"], "url": "http://b"}}},
        {"mcp": {"x": {"command": "a b"}}},
        {"mcp": {"x": {"command": ["a\0"]}}},
        {"mcp": {"x": {"url": "http://b", "headers": {"authorization": "x"}}}},
        {"mcp": {"x": {"url": "http://b", "environment": {"A": "b"}}}},
        {"mcp": {"x": {"command": ["a"], "risk": "read"}}},
        {"mcp": {"x": {"command": ["a"], "seconds": 0}}},
        {"mcp": {"x": {"command": ["a"], "seconds": float("nan")}}},
        {"mcp": {"x": {"command": ["a"], "allow": [1]}}},
        {"mcp": {"docs": {"allow": [1]}}},
        {"mcp": {"docs": {"url": "http://b", "headers": {}}}},
    ],
)
def test_what_a_task_asks_for_wrongly_is_a_problem_and_gives_nothing(asked: Any) -> None:
    own = POLICY.for_task(asked)
    assert len(own.problems) == 1
    assert "secret-of-ours" not in own.problems[0]
    assert set(own.servers) <= {"docs", "lint"}


def test_a_recorded_conversation_knows_the_plain_tools_alone() -> None:
    step = assignment(spec={"recording": "fix-bug/reproduce", "tools": {"mcp": {"x": {"command": ["x"]}}}})
    with equipped(POLICY, no_servers, step, None, Wire()) as tools:  # type: ignore[arg-type]  # nothing is started
        assert tools is TOOLS


def test_what_a_step_can_not_have_is_said_in_its_log() -> None:
    link = Wire()
    step = assignment(spec={"tools": {"fetch_hosts": ["evil.test"], "mcp": {"lint": None, "docs": None}}})
    with equipped(POLICY, no_servers, step, None, link) as tools:  # type: ignore[arg-type]  # nothing is started
        assert set(tools) - set(TOOLS) == {"start_subtask"}
    assert link.logs == [("system", "fetch_hosts: evil.test may not be reached here\n")]
    assert link.notes == [("tools", {"problem": "fetch_hosts: evil.test may not be reached here"})]


def test_settings_name_hosts_and_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_FETCH_HOSTS", "docs.test, *.example.org")
    monkeypatch.setenv(
        "ORCHESTRATOR_MCP_SERVERS",
        '{"docs": {"url": "https://mcp.test/mcp", "headers": {"x": "secret-of-ours"}, "risk": "read"}}',
    )
    settings = Settings()
    assert settings.fetch_hosts == ["docs.test", "*.example.org"]
    server = settings.mcp_servers["docs"]
    assert server == McpServer(url="https://mcp.test/mcp", headers={"x": "secret-of-ours"}, risk="read")
    assert risk_of(server).value == "read"
    assert "secret-of-ours" not in repr(settings)
    for wrong in ('{"a__b": {"command": ["x"]}}', '{"a": {}}', '{"a": {"command": ["x"], "risk": "none"}}'):
        monkeypatch.setenv("ORCHESTRATOR_MCP_SERVERS", wrong)
        with pytest.raises(ValidationError):
            Settings()
    monkeypatch.setenv("ORCHESTRATOR_MCP_SERVERS", "")
    monkeypatch.setenv("ORCHESTRATOR_FETCH_HOSTS", "")
    assert (Settings().mcp_servers, Settings().fetch_hosts) == ({}, [])


def test_a_server_s_own_risk_is_by_how_it_is_reached() -> None:
    assert risk_of(read_server({"command": ["x"]})).value == "execute"
    assert risk_of(read_server({"url": "http://x"})).value == "network"
