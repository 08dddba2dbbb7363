"""The engine with all that policy may give it, in a real checkout: what a turn leaves, the next one uses."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.agents.engine import EngineAgent
from orchestrator.core.assignment import Assignment
from orchestrator.core.mcp_server import McpServer
from orchestrator.core.verdict import Done, StopReason, Yielded
from orchestrator.engine.tools.mcp import opened
from orchestrator.engine.tools.policy import ToolPolicy
from orchestrator.engine.web import HostPolicy
from orchestrator.workspaces.checkouts import Workspaces
from orchestrator.workspaces.workspace import Workspace
from tests.engine_world import FileJournal, Killed, Script, Wire, assignment, call, done
from tests.integration.repositories import installation, owner, repository
from tests.integration.test_background import gone
from tests.integration.test_fetch import Site, on_loopback
from tests.integration.test_sandbox import alive

ROGUE = (Path(__file__).parent.parent / "mcp_rogue.py").read_text()
PATCH = "--- a/a\n+++ b/a\n@@ -1 +1,2 @@\n one\n+two\n"


class Place:
    """One step's checkout, journal and end, over as many claims as it takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspaces: Workspaces = installation(folder / "root")
        source = repository(folder / "source", {"a": "one\n", "rogue.py": ROGUE})
        self.base = self.workspaces.fetch(str(source), None)
        self.commit: str | None = None

    @contextmanager
    def workspace(self, _: Assignment) -> Iterator[Workspace]:
        opened = self.workspaces.open(owner(), self.base.mirror, self.base.commit)
        try:
            yield opened
        finally:
            opened.close()
        self.commit = opened.result("Work", {}, opened.start)

    def agent(self, script: Script, policy: ToolPolicy, die_at: int | None = None) -> EngineAgent:
        journal = FileJournal(self.folder / "journal.jsonl", die_at=die_at)
        return EngineAgent(
            lambda _: script, lambda _: journal, self.workspace, policy=policy, open_servers=opened
        )


def test_patches_background_commands_mcp_and_fetching_work_together(tmp_path: Path) -> None:
    place, site = Place(tmp_path), Site()
    site.answers["/page"] = (200, {"content-type": "text/plain"}, b"from the page")
    policy = ToolPolicy(
        HostPolicy((site.host,), allow_private=True, resolve=on_loopback),
        {"rogue": McpServer(command=(sys.executable, "rogue.py", "plain"))},
    )
    script = Script(
        [
            [
                call("c1", "apply_patch", patch=PATCH),
                call("c2", "run_command", command="cat a; tail -f /dev/null", background=True),
                call("c3", "mcp__rogue__call", a="x"),
                call("c4", "fetch_url", url=f"http://{site.host}/page"),
                call("c5", "update_plan", steps=[{"text": "all of it", "status": "done"}]),
            ],
            [call("c6", "stop_background", handle="c2"), call("c7", "move_file", path="a", to="b/a")],
            [done()],
        ]
    )
    link = Wire()
    try:
        verdict = place.agent(script, policy).work(assignment(), link)
    finally:
        site.close()
    assert isinstance(verdict, Done)
    first, second = str(script.requests[1]["messages"][-1]), str(script.requests[2]["messages"][-1])
    for part in ("changed a", "its handle is c2", "two", "\\nok\\n", "from the page", "1 of 1 steps done"):
        assert part in first
    assert "killed: stop" in second
    offered = {tool["name"] for tool in script.requests[0]["tools"]}
    assert {"fetch_url", "mcp__rogue__call", "apply_patch"} <= offered
    assert "start_subtask" not in offered
    assert ("plan", {"steps": [{"text": "all of it", "status": "done"}]}) in link.notes
    git = place.workspaces.mirrors.git(place.base.mirror)
    assert place.commit is not None
    assert git.text("show", f"{place.commit}:b/a") == "one\ntwo"


def test_a_killed_claim_leaves_nothing_running_and_the_next_one_is_told(tmp_path: Path) -> None:
    mark = f"mark-{time.monotonic_ns()}"
    place = Place(tmp_path)
    script = Script(
        [
            [call("c1", "run_command", command=f"tail -f /dev/null {mark}", background=True)],
            [call("c2", "read_background", handle="c1")],
            [done()],
        ]
    )
    server = McpServer(command=(sys.executable, "rogue.py", "plain", mark))
    policy = ToolPolicy(servers={"rogue": server})
    try:
        place.agent(script, policy, die_at=4).work(assignment(), Wire())
    except Killed:
        assert gone(mark)
    else:
        raise AssertionError("it was to be killed at the second turn")
    assert isinstance(place.agent(script, policy).work(assignment(), Wire()), Done)
    assert "before the agent was interrupted" in str(script.requests[-1]["messages"][-1])
    assert not alive(mark)


def test_a_stop_while_servers_start_gives_the_step_back(tmp_path: Path) -> None:
    place, link = Place(tmp_path), Wire()
    link.stop.set(StopReason.CANCEL)
    policy = ToolPolicy(servers={"rogue": McpServer(command=(sys.executable, "rogue.py", "never starts"))})
    assert place.agent(Script([]), policy).work(assignment(), link) == Yielded(StopReason.CANCEL)
