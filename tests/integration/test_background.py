"""Commands in the background, in real checkouts, sandboxed and not: they end with the workspace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.verdict import StopReason
from orchestrator.core.workspace import BackgroundOutput, WorkspaceRefusal
from orchestrator.engine.ports import Stopped, ToolResult
from orchestrator.engine.tools import TOOLS
from orchestrator.engine.tools.tool import ToolContext
from orchestrator.workspaces.background import MOST_RUNNING, UNREAD_CHARACTERS
from orchestrator.workspaces.sandbox import Bounds, Sandbox
from orchestrator.workspaces.workspace import Workspace
from tests.integration.repositories import installation, owner, repository, without_bubblewrap
from tests.integration.test_sandbox import alive

LONG = timedelta(seconds=60)
BOUNDS = Bounds(processes=100, output_bytes=2 * 1024**2, shown_bytes=1000, kept_bytes=500)


@pytest.fixture(params=["bubblewrap", "none"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    sandbox: Sandbox | None = without_bubblewrap(tmp_path / "plain") if request.param == "none" else None
    made = installation(tmp_path / "root", sandbox=sandbox)
    if request.param != "none" and made.sandbox.kind != "bubblewrap":
        pytest.skip(f"NOT TESTED HERE: {made.sandbox.warning}")
    made.sandbox.bounds = BOUNDS
    base = made.fetch(str(repository(tmp_path / "source", {"a": "a\n"})), None)
    opened = made.open(owner(), base.mirror, base.commit)
    yield opened
    opened.close()


class Steps:
    """What an agent does, each call under its own id."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.stop = Stop()
        self.heard: list[str] = []
        self.calls = 0

    def __call__(self, name: str, **arguments: Any) -> ToolResult:
        self.calls += 1
        context = ToolContext(f"call-{self.calls}", self.stop, self.heard.append, timedelta(seconds=20))
        result = TOOLS[name].run(self.workspace, arguments, context)
        assert isinstance(result, ToolResult)
        return result

    def read_until(self, handle: str, found: Callable[[str], bool]) -> str:
        text = ""
        until = time.monotonic() + 20
        while not found(text) and time.monotonic() < until:
            text += self("read_background", handle=handle, wait_seconds=0).text
        assert found(text), text
        return text


@pytest.fixture
def run(workspace: Workspace) -> Steps:
    return Steps(workspace)


def gone(mark: str) -> bool:
    until = time.monotonic() + 10
    while alive(mark) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(mark)


def test_a_server_runs_on_while_other_commands_do_and_is_ended(run: Steps) -> None:
    """Every sandboxed command has a network of its own, so a fifo in the tree stands in for a port."""
    server = 'mkfifo in out; while read word < in; do echo "heard $word"; echo "got $word" > out; done'
    started = run("run_command", command=server, background=True)
    assert not started.is_error
    assert "its handle is call-1" in started.text
    assert "got one" in run("run_command", command="echo one > in; cat out").text
    assert "heard one" in run.read_until("call-1", lambda text: "heard one" in text)
    assert "heard one" not in run("read_background", handle="call-1").text
    assert "killed: stop" in run("stop_background", handle="call-1").text
    assert "killed: stop" in run("read_background", handle="call-1").text


def test_what_fails_at_once_is_seen_to_fail_and_what_ends_later_says_how(run: Steps) -> None:
    failed = run("run_command", command="echo no >&2; exit 3", background=True)
    assert failed.is_error
    assert failed.text.startswith("exit code 3\n")
    run("run_command", command="sleep 1; echo made > b; echo done", background=True)
    ended = run("read_background", handle="call-2", wait_seconds=20)
    assert not ended.is_error
    assert ended.text.startswith("exit code 0\n")
    assert "done" in ended.text
    assert run.workspace.read("b") == "made\n"


def test_it_ends_with_the_workspace_with_all_that_it_started(run: Steps, workspace: Workspace) -> None:
    mark = f"mark-{time.monotonic_ns()}"
    hard = f"sh -c 'trap \"\" TERM INT HUP; tail -f /dev/null {mark}; true'"
    command = f"setsid tail -f /dev/null {mark} & {hard} & wait"
    run("run_command", command=command, background=True)
    assert alive(mark)
    workspace.close()
    assert gone(mark)
    workspace.close()


def test_a_hard_stop_of_the_step_ends_it_without_anybody_asking(run: Steps) -> None:
    mark = f"mark-{time.monotonic_ns()}"
    run("run_command", command=f"tail -f /dev/null {mark}", background=True)
    assert alive(mark)
    run.stop.set(StopReason.CANCEL)
    assert gone(mark)


def test_waiting_for_it_is_cut_short_by_a_hard_stop(run: Steps, workspace: Workspace) -> None:
    run("run_command", command="sleep 600", background=True)

    class Soon(Stop):
        """Hard from the third look on."""

        looks = 0

        def is_hard(self) -> bool:
            self.looks += 1
            return self.looks > 2

    context = ToolContext("read", Soon(), run.heard.append, timedelta(seconds=100))
    with pytest.raises(Stopped):
        TOOLS["read_background"].run(workspace, {"handle": "call-1", "wait_seconds": 90}, context)


def test_an_endless_printer_fills_neither_memory_nor_log_and_is_killed(
    run: Steps, workspace: Workspace
) -> None:
    workspace.start_background("h", "yes", timeout=LONG, on_output=run.heard.append, stop=run.stop)
    found = workspace.read_background("h", LONG, run.stop)
    assert found.killed == "output limit"
    assert len(found.output) <= UNREAD_CHARACTERS
    assert found.left_out > 0
    assert len("".join(run.heard)) < BOUNDS.shown_bytes + 65536


def test_a_fork_bomb_in_the_background_leaves_the_other_commands_alone(run: Steps) -> None:
    run("run_command", command="bomb() { bomb | bomb & }; bomb; sleep 600", background=True)
    assert "still here" in run("run_command", command="echo still here").text
    assert not run("stop_background", handle="call-1").is_error


def test_it_is_killed_at_its_own_timeout(run: Steps) -> None:
    run("run_command", command="sleep 600", background=True, timeout_seconds=1)
    assert "killed: timeout" in run("read_background", handle="call-1", wait_seconds=15).text


def test_there_is_room_for_so_many_and_a_handle_names_one(run: Steps, workspace: Workspace) -> None:
    for number in range(MOST_RUNNING):
        workspace.start_background(
            f"h{number}", "sleep 600", timeout=LONG, on_output=run.heard.append, stop=run.stop
        )
    assert "stop one first" in run("run_command", command="sleep 1", background=True).text
    with pytest.raises(WorkspaceRefusal, match="names a command already"):
        workspace.start_background("h0", "true", timeout=LONG, on_output=run.heard.append, stop=run.stop)
    workspace.stop_background("h0")
    assert "handle" in run("run_command", command="sleep 600", background=True).text


def test_a_resumed_step_is_told_that_they_are_gone(run: Steps, workspace: Workspace) -> None:
    run("run_command", command="sleep 600", background=True)
    workspace.close()
    again = Workspace(
        workspace.owner,
        workspace._place,
        workspace._git,
        workspace._sandbox,
        workspace.start,
        workspace._bring,
    )
    resumed = Steps(again)
    told = resumed("read_background", handle="call-1")
    assert told.is_error
    assert "before the agent was interrupted" in told.text


def test_a_listener_that_breaks_takes_the_command_along(run: Steps, workspace: Workspace) -> None:
    def broken(_text: str) -> None:
        raise OSError("the log is full")

    mark = f"mark-{time.monotonic_ns()}"
    workspace.start_background(
        "h", f"echo x; sh -c 'sleep 600; :' {mark}", timeout=LONG, on_output=broken, stop=run.stop
    )
    found = workspace.read_background("h", LONG, run.stop)
    assert found == BackgroundOutput("x\n", 0, running=False, killed="the log is full")
    assert gone(mark)
