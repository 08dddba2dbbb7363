"""MCP servers' tools in real checkouts: a server as users write it, on stdio and behind HTTP, and a rogue."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.mcp_server import McpServer
from orchestrator.core.verdict import StopReason
from orchestrator.engine import mcp_session
from orchestrator.engine.json_schemas import ArgumentsSchema
from orchestrator.engine.ports import Stopped, ToolResult
from orchestrator.engine.tools.mcp import MOST_TOOLS, opened
from orchestrator.engine.tools.policy import McpTools
from orchestrator.engine.tools.tool import Risk, Tool, ToolContext
from orchestrator.engine.untrusted import RESULT_CHARACTERS
from orchestrator.engine.web import HostPolicy
from orchestrator.workspaces.sandbox import Bounds
from orchestrator.workspaces.workspace import Workspace
from tests.integration.repositories import installation, owner, repository, without_bubblewrap
from tests.integration.test_sandbox import alive

TESTS = Path(__file__).parent.parent
FILES = {
    "server.py": (TESTS / "mcp_server.py").read_text(),
    "rogue.py": (TESTS / "mcp_rogue.py").read_text(),
    "a.py": "one\ntodo: two\n",
    "b.txt": "the password is hunter2\n",
}
GOOD = McpServer(
    command=(sys.executable, "server.py"), allow=("code_analyzer", "security_scanner", "long_report")
)


@pytest.fixture(params=["bubblewrap", "none"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    sandbox = without_bubblewrap(tmp_path / "plain") if request.param == "none" else None
    made = installation(tmp_path / "root", sandbox=sandbox)
    if request.param != "none" and made.sandbox.kind != "bubblewrap":
        pytest.skip(f"NOT TESTED HERE: {made.sandbox.warning}")
    made.sandbox.bounds = Bounds(processes=100)
    base = made.fetch(str(repository(tmp_path / "source", FILES)), None)
    opened = made.open(owner(), base.mirror, base.commit)
    yield opened
    opened.close()


class Used:
    """The tools of opened servers, called as the engine calls them."""

    def __init__(self, workspace: Workspace, found: McpTools, stop: Stop) -> None:
        self.workspace = workspace
        self.tools: Mapping[str, Tool[Any]] = {tool.name: tool for tool in found.tools}
        self.problems = found.problems
        self.stop = stop

    def __call__(self, name: str, seconds: float = 30, **arguments: Any) -> ToolResult:
        context = ToolContext("call-1", self.stop, lambda _: None, timedelta(seconds=seconds))
        result = self.tools[name].run(self.workspace, arguments, context)
        assert isinstance(result, ToolResult)
        return result


@contextmanager
def using(workspace: Workspace, hosts: HostPolicy | None = None, **servers: McpServer) -> Iterator[Used]:
    stop = Stop()
    with opened(servers, workspace, hosts or HostPolicy(), stop) as found:
        yield Used(workspace, found, stop)


def rogue(how: str, *more: str, **changes: Any) -> McpServer:
    return McpServer(command=(sys.executable, "rogue.py", how, *more), **changes)


def gone(mark: str) -> bool:
    until = time.monotonic() + 10
    while alive(mark) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(mark)


def test_a_server_s_tools_are_named_listed_called_and_marked(workspace: Workspace) -> None:
    with using(workspace, seed=GOOD) as run:
        assert run.problems == ()
        assert list(run.tools) == [
            "mcp__seed__code_analyzer",
            "mcp__seed__security_scanner",
            "mcp__seed__long_report",
        ]
        tool = run.tools["mcp__seed__code_analyzer"]
        assert (tool.risk, tool.changes_files) == (Risk.EXECUTE, True)
        assert set(tool.schema()["input_schema"]["properties"]) == {"language", "files", "rules"}
        assert tool.description.startswith("From the MCP server seed: Counts the lines")
        found = run("mcp__seed__code_analyzer", language="python", files=["a.py"], rules=["todo"])
        assert not found.is_error
        assert found.text.startswith('<untrusted source="code_analyzer of the MCP server seed">')
        assert '"broken"' in found.text
        assert "2" in found.text
        refused = run("mcp__seed__code_analyzer", language="cobol", files=[])
        assert refused.is_error
        assert "no rules for cobol" in refused.text


def test_it_sees_the_files_and_no_secret(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "planted")
    with using(workspace, seed=GOOD) as run:
        found = run("mcp__seed__security_scanner", target=".", severity_threshold="low")
        assert "low: ['b.txt', 'server.py']" in found.text
        assert "secrets in the environment: []" in found.text


def test_wrong_arguments_never_reach_the_server(workspace: Workspace) -> None:
    with using(workspace, seed=GOOD) as run:
        tool = run.tools["mcp__seed__code_analyzer"]
        assert tool.problem({"language": "python", "files": ["a"]}) is None
        for wrong in ({}, {"language": 1, "files": []}, {"language": "python", "files": "a.py"}):
            problem = tool.problem(wrong)
            assert problem is not None
            assert "arguments are wrong" in problem
            assert run("mcp__seed__code_analyzer", **wrong).is_error
        assert len(tool.problem({"language": ["x" * 10_000_000], "files": []}) or "") < 2000


def test_a_long_answer_is_cut_and_can_not_leave_its_tags(workspace: Workspace) -> None:
    with using(workspace, seed=GOOD) as run:
        found = run("mcp__seed__long_report", lines=20_000)
        assert len(found.text) < RESULT_CHARACTERS * 1.1
        assert found.text.count("</untrusted>") == 1
        assert found.output is not None
        assert "line 10000 " in found.output


def test_what_is_not_allowed_is_not_there_and_what_is_missing_is_said(workspace: Workspace) -> None:
    with using(workspace, seed=McpServer(GOOD.command, allow=("long_report", "made_up"))) as run:
        assert list(run.tools) == ["mcp__seed__long_report"]
        assert run.problems == ("MCP server seed: it has no tool 'made_up'",)


def test_the_server_ends_with_the_claim(workspace: Workspace) -> None:
    mark = f"mark-{time.monotonic_ns()}"
    with using(workspace, rogue=rogue("escapes", mark)) as run:
        assert "ok" in run("mcp__rogue__call", a="x").text
        assert alive(mark)
    assert gone(mark)


# What a server may do to us ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["never starts", "ends at once"])
def test_a_server_that_does_not_start_is_a_problem_and_the_others_work(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(mcp_session, "START_SECONDS", 3.0)
    with using(workspace, bad=rogue(how), none=McpServer(("no-such-program",)), good=rogue("plain")) as run:
        assert list(run.tools) == ["mcp__good__call"]
        assert [problem.partition(":")[0] for problem in run.problems] == [
            "MCP server bad",
            "MCP server none",
        ]
        said = "not ready in 3 seconds" if how == "never starts" else "no such option"
        assert said in run.problems[0]
        if how == "ends at once":
            assert "did not start: it ended before it was ready; it said last:" in run.problems[0]
        assert "did not start: it ended before it was ready" in run.problems[1]
        assert "no-such-program" in run.problems[1]
        assert "ok" in run("mcp__good__call").text


def test_an_address_where_nobody_is_and_one_that_is_not_listed_are_named_as_such(
    workspace: Workspace,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        off = McpServer(url=f"http://127.0.0.1:{port}/mcp")
        hosts = HostPolicy((f"127.0.0.1:{port}",), allow_private=True)
        with using(workspace, hosts, off=off) as run:
            assert "did not start: nothing answers at its address" in run.problems[0]
        with using(workspace, HostPolicy(("127.0.0.1",), allow_private=True), off=off) as run:
            assert f"127.0.0.1:{port} is not among the hosts" in run.problems[0]
            assert "ORCHESTRATOR_FETCH_HOSTS" in run.problems[0]


def test_a_call_that_hangs_is_given_up_and_a_stop_cuts_it_short(workspace: Workspace) -> None:
    with using(workspace, rogue=rogue("hangs", seconds=1.0)) as run:
        assert "no answer in 1 seconds" in run("mcp__rogue__call").text
        run.stop.set(StopReason.CANCEL)
        with pytest.raises(Stopped):
            run("mcp__rogue__call")


def test_a_server_that_dies_is_an_error_and_is_started_anew_once(workspace: Workspace) -> None:
    with using(workspace, rogue=rogue("dies")) as run:
        first = run("mcp__rogue__call")
        assert first.is_error
        assert "the server died, the outcome is unknown; it said last: I die now" in first.text
        assert "died, the outcome is unknown" in run("mcp__rogue__call").text
        assert "died twice and is not started again" in run("mcp__rogue__call").text


def test_a_call_is_sent_once_even_if_the_server_dies_in_it(workspace: Workspace) -> None:
    with using(workspace, rogue=rogue("dies once")) as run:
        assert run("mcp__rogue__call").is_error
        assert "ok" in run("mcp__rogue__call").text


@pytest.mark.parametrize("how", ["one endless line", "endless lines"])
def test_a_flood_ends_the_server_and_not_the_worker(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(mcp_session, "LONGEST_MESSAGE", 1024**2)
    monkeypatch.setattr(mcp_session, "MOST_BYTES", 4 * 1024**2)
    with using(workspace, rogue=rogue(how)) as run:
        found = run("mcp__rogue__call")
        assert found.is_error
        assert "the server died" in found.text


def test_lines_that_are_no_messages_are_passed_over(workspace: Workspace) -> None:
    with using(workspace, rogue=rogue("garbage"), wrong=rogue("wrong result")) as run:
        assert "ok" in run("mcp__rogue__call").text
        assert run("mcp__wrong__call").is_error


def test_a_fork_bomb_stays_inside(workspace: Workspace) -> None:
    mark = f"mark-{time.monotonic_ns()}"
    with using(workspace, rogue=rogue("forks", mark, seconds=2.0)) as run:
        assert run("mcp__rogue__call").is_error
        assert len(alive(mark)) <= 100
    assert gone(mark)


def test_hostile_names_and_schemas_are_left_out_or_cost_nothing(workspace: Workspace) -> None:
    with using(workspace, rogue=rogue("lies")) as run:
        assert set(run.tools) == {f"mcp__rogue__{name}" for name in ("call", "billion", "round", "away")}
        assert len(run.problems) == 4
        started = time.process_time()
        evil = {"a": "a" * 60 + "!"}
        for tool in run.tools.values():
            assert tool.problem(evil) is None
            assert len(tool.description) < 1200
        assert time.process_time() - started < 10  # a schema's own expressions would take for ever


def test_a_number_beyond_all_floats_is_for_the_server_to_refuse() -> None:
    limits = {"multipleOf": 0.5, "minimum": 1.5}
    schema = ArgumentsSchema({"type": "object", "properties": {"n": {"type": "number", **limits}}})
    assert schema.faults({"n": 10**400}) == []
    assert schema.faults({"n": 1.75}) != []


def test_so_many_tools_are_too_many(workspace: Workspace) -> None:
    with using(workspace, rogue=rogue("many")) as run:
        assert len(run.tools) == MOST_TOOLS
        assert "only 64 of its 1000" in run.problems[0]


# Behind HTTP ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "mcp_server.py"), str(found)], stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", found)) == 0:
                    break
            time.sleep(0.05)
        yield found
    finally:
        process.kill()
        process.wait()


async def on_loopback(_host: str, _port: int) -> Sequence[str]:
    return ["127.0.0.1"]


def behind_http(port: int, host: str = "127.0.0.1") -> McpServer:
    return McpServer(
        url=f"http://{host}:{port}/mcp",
        headers={"authorization": "Bearer secret-of-ours"},
        allow=("long_report",),
    )


def test_a_server_behind_http_is_reached_where_policy_allows_it(workspace: Workspace, port: int) -> None:
    hosts = HostPolicy((f"127.0.0.1:{port}",), allow_private=True)
    with using(workspace, hosts, web=behind_http(port)) as run:
        assert run.problems == ()
        tool = run.tools["mcp__web__long_report"]
        assert (tool.risk, tool.changes_files) == (Risk.NETWORK, False)
        assert "line 1 " in run("mcp__web__long_report", lines=2).text


@pytest.mark.parametrize(
    "hosts",
    [
        HostPolicy(),
        HostPolicy(("docs.test",), allow_private=True),
        HostPolicy(("mcp.test:{port}",), allow_private=False, resolve=on_loopback),
    ],
)
def test_a_server_behind_http_is_not_reached_where_policy_forbids_it(
    workspace: Workspace, port: int, hosts: HostPolicy
) -> None:
    hosts = HostPolicy(
        tuple(host.format(port=port) for host in hosts.hosts), hosts.allow_private, hosts.resolve
    )
    with using(workspace, hosts, web=behind_http(port, "mcp.test")) as run:
        assert not run.tools
        assert "among the hosts" in run.problems[0] or "private" in run.problems[0]
        assert "secret-of-ours" not in run.problems[0]
