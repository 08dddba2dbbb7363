from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.states import Status, WaitingOn
from orchestrator.core.subtask import SubtaskEnd, SubtaskRequest
from orchestrator.core.verdict import Broke, Done, NeedsInput, StopReason, Verdict, Waits, Yielded
from orchestrator.engine import approval
from orchestrator.engine.ports import (
    Block,
    CallCompleted,
    ModelError,
    ModelRequest,
    ModelSwitched,
    Reply,
    Stopped,
    StreamEvent,
    ToolResult,
    Usage,
    Workspace,
)
from orchestrator.engine.tools import TOOLS
from orchestrator.engine.tools.tool import Arguments, Risk, Tool, ToolContext
from tests.engine_world import FolderWorkspace, Killed, Script, World, call, done, results


class StartSubtask(Arguments):
    objective: str


def _start(_: Workspace, asked: StartSubtask, context: ToolContext) -> SubtaskRequest:
    return SubtaskRequest(context.call_id, asked.objective)


START_SUBTASK: Final = Tool(
    name="start_subtask",
    description="Sets another agent to work.",
    arguments=StartSubtask,
    risk=Risk.DELEGATE,
    changes_files=False,
    carry_out=_start,
)
WITH_SUBTASKS: Final = {**TOOLS, "start_subtask": START_SUBTASK}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- leave for risky calls ----------------------------------------------------------------------------------


def test_a_risky_call_waits_for_leave_and_then_runs_as_it_was_shown(world: World) -> None:
    script = Script([[call("a", "run_command", command="touch made")], [done()]])
    parked = world.claim(script, approvals=("execute",))
    assert isinstance(parked, NeedsInput)
    ask = parked.ask
    assert (ask.kind, ask.options) == (WaitingOn.TOOL_APPROVAL, ("Approve", "Deny"))
    assert "run_command" in ask.text
    assert "touch made" in ask.text
    assert not (world.workspace.root / "made").exists()
    assert world.claim(script, approvals=("execute",)) == parked, "asked again, it is the same question"
    world.journal().answer("a", " approve ", ask.subject_digest)
    assert world.claim(script, approvals=("execute",)) == Done("Done.")
    assert (world.workspace.root / "made").exists()
    assert len(script.requests) == 2


def test_a_denied_call_does_not_run_and_the_model_hears_why(world: World) -> None:
    script = Script([[call("a", "delete_file", path="x")], [done()]])
    (world.workspace.root / "x").write_text("kept")
    world.workspace = FolderWorkspace(world.workspace.root)
    parked = world.claim(script, approvals=("delete_file",))
    assert isinstance(parked, NeedsInput)
    world.journal().answer("a", "Move it instead.", parked.ask.subject_digest)
    assert world.claim(script, approvals=("delete_file",)) == Done("Done.")
    assert (world.workspace.root / "x").read_text() == "kept"
    (told,) = results(script.requests[1])
    assert told["is_error"]
    assert "Move it instead." in told["content"]


def test_leave_for_one_call_is_none_for_another(world: World) -> None:
    script = Script([[call("a", "run_command", command="touch made")], [done()]])
    assert isinstance(world.claim(script, approvals=("execute",)), NeedsInput)
    world.journal().answer("a", "Approve", approval.digest("run_command", {"command": "touch other"}))
    assert world.claim(script, approvals=("execute",)) == Done("Done.")
    assert not (world.workspace.root / "made").exists()
    assert results(script.requests[1])[0]["content"] == approval.ANOTHER.text


def test_what_is_shown_is_what_is_kept_and_what_is_run(world: World) -> None:
    """The journal keeps no secret, so that neither the question nor the run that follows it can hold one."""
    secret = "sk-ant-" + "x" * 20
    script = Script([[call("a", "write_file", path="x", content=f"key={secret}\n")], [done()]])
    parked = world.claim(script, approvals=("write",))
    assert isinstance(parked, NeedsInput)
    assert secret not in parked.ask.text
    world.journal().answer("a", "Approve", parked.ask.subject_digest)
    assert world.claim(script, approvals=("write",)) == Done("Done.")
    assert (world.workspace.root / "x").read_text() == "key=[redacted]\n"


def test_what_only_reads_or_can_not_run_needs_no_leave(world: World) -> None:
    script = Script([[call("a", "list_files"), call("b", "run_command", command=7)], [done()]])
    assert world.claim(script, approvals=("execute", "write", "delete_file")) == Done("Done.")
    assert "arguments are wrong" in results(script.requests[1])[1]["content"]


@pytest.mark.parametrize("after", [False, True])
def test_an_approved_call_runs_once_whenever_the_worker_dies(tmp_path: Path, after: bool) -> None:
    for die_at in range(1, 20):
        world, trace = World(tmp_path / f"{die_at}"), tmp_path / f"trace-{die_at}"
        script = Script([[call("a", "run_command", command=f"echo x >> {trace}")], [done()]])
        parked = world.claim(script, approvals=("execute",))
        assert isinstance(parked, NeedsInput)
        world.journal().answer("a", "Approve", parked.ask.subject_digest)
        try:
            world.claim(script, world.journal(die_at=die_at, after=after), approvals=("execute",))
            break
        except Killed:
            assert world.claim(script, approvals=("execute",)) == Done("Done.")
        assert not trace.exists() or trace.read_text() == "x\n"
    assert die_at > 4


# --- subtasks -----------------------------------------------------------------------------------------------


def delegating() -> Script:
    return Script(
        [
            [
                call("w", "write_file", path="mine", content="m"),
                call("s1", "start_subtask", objective="The left half."),
                call("l", "list_files"),
                call("s2", "start_subtask", objective="The right half."),
            ],
            [done()],
        ]
    )


def ended(call_id: str, status: Status = Status.COMPLETED, commit: str | None = None) -> SubtaskEnd:
    return SubtaskEnd(call_id, f"task-of-{call_id}", status, f"{call_id} is done.", commit)


def test_several_subtasks_are_started_at_once_and_their_work_is_merged(world: World) -> None:
    script = delegating()
    waits = Waits(WaitingOn.SUBTASK, {"calls": ["s1", "s2"]})
    assert world.claim(script, tools=WITH_SUBTASKS) == waits
    kept = world.journal()
    lines = [line for line in kept.path.read_text().splitlines() if '"subtask"' in line]
    assert len(lines) == 2
    assert all(f'"checkpoint": "{kept.load().checkpoint}"' in line for line in lines)
    kept.end_subtask(ended("s1", commit="left"))
    assert world.claim(script, tools=WITH_SUBTASKS) == waits, "the other one lives"
    world.workspace.put_aside("left", {"left.txt": "l"})
    kept.end_subtask(ended("s2", Status.FAILED))
    assert world.claim(script, tools=WITH_SUBTASKS) == Done("Done.")
    told = {block["tool_use_id"]: block for block in results(script.requests[1])}
    assert list(told) == ["w", "s1", "l", "s2"], "in the order of their calls"
    assert "s1 is done." in told["s1"]["content"]
    assert "is_error" not in told["s1"]
    assert told["s2"]["is_error"]
    assert (world.workspace.root / "left.txt").read_text() == "l"
    assert len(script.requests) == 2


def test_a_subtask_whose_work_does_not_fit_changes_nothing_and_the_model_hears_of_it(world: World) -> None:
    script = delegating()
    world.claim(script, tools=WITH_SUBTASKS)
    world.workspace.put_aside("clash", {"mine": "theirs"})
    world.journal().end_subtask(ended("s1", commit="clash"))
    world.journal().end_subtask(ended("s2"))
    assert world.claim(script, tools=WITH_SUBTASKS) == Done("Done.")
    told = results(script.requests[1])[1]
    assert told["is_error"]
    assert "both changed mine" in told["content"]
    assert (world.workspace.root / "mine").read_text() == "m"


def test_a_refused_subtask_is_an_error_of_the_call_alone(world: World) -> None:
    journal = world.journal()
    journal.refuses_subtasks = True
    script = delegating()
    assert world.claim(script, journal, tools=WITH_SUBTASKS) == Done("Done.")
    assert "three deep" in results(script.requests[1])[1]["content"]


def test_a_step_is_not_done_while_subtasks_of_the_same_reply_live(world: World) -> None:
    script = Script([[call("s1", "start_subtask", objective="x"), done(call_id="d")], [done(call_id="e")]])
    assert isinstance(world.claim(script, tools=WITH_SUBTASKS), Waits)
    world.journal().end_subtask(ended("s1"))
    assert world.claim(script, tools=WITH_SUBTASKS) == Done("Done.")
    assert "not accepted" in results(script.requests[1])[1]["content"]


@pytest.mark.parametrize("after", [False, True])
def test_subtasks_are_started_and_adopted_once_whenever_the_worker_dies(tmp_path: Path, after: bool) -> None:
    for die_at in range(1, 40):
        world, script, died = World(tmp_path / f"{die_at}"), delegating(), False
        world.workspace.put_aside("left", {"left.txt": "l"})
        world.workspace.put_aside("right", {"right.txt": "r"})
        journal = world.journal(die_at=die_at, after=after)
        verdict: Verdict | None = None
        for _ in range(3):
            try:
                verdict = world.claim(script, journal, tools=WITH_SUBTASKS)
            except Killed:
                died, journal = True, world.journal()
                continue
            kept = world.journal()
            if isinstance(verdict, Waits) and not all(kept.load().subtasks.values()):
                kept.end_subtask(ended("s1", commit="left"))
                kept.end_subtask(ended("s2", commit="right"))
        if verdict != Done("Done."):
            verdict = world.claim(script, tools=WITH_SUBTASKS)
        assert verdict == Done("Done.")
        assert (world.workspace.root / "left.txt").read_text() == "l"
        assert (world.workspace.root / "right.txt").read_text() == "r"
        assert set(world.journal().load().subtasks) == {"s1", "s2"}
        if not died:
            break
    assert die_at > 8


# --- a model that refuses -----------------------------------------------------------------------------------


@dataclass
class Refusing:
    """Refuses every request."""

    error: ModelError
    kind: Literal["live", "recorded"] = "live"
    name: str = "refusing"

    def reply(self, _: ModelRequest, __: Callable[[StreamEvent], None], ___: Stop, /) -> Reply:
        raise self.error


def refusal(code: str, error: ErrorClass, after: timedelta | None = None) -> Refusing:
    return Refusing(ModelError(error, code, "no", retryable=True, retry_after=after))


def test_a_refusal_parks_waits_or_breaks_by_what_it_says(world: World) -> None:
    detail = {"code": "model-rate-limited", "message": "no"}
    long, short = timedelta(minutes=5), timedelta(seconds=20)
    throttled = world.claim(refusal("model-rate-limited", ErrorClass.RATE_LIMIT, long))
    assert throttled == Waits(WaitingOn.RATE_LIMIT, detail, long)
    held = world.claim(refusal("provider-throttled", ErrorClass.RATE_LIMIT, short))
    assert isinstance(held, Waits), "nothing was sent, so no attempt has failed"
    assert (held.on, held.wake_after) == (WaitingOn.RATE_LIMIT, short)
    broke = world.claim(refusal("model-rate-limited", ErrorClass.RATE_LIMIT, short))
    assert broke == Broke("model-rate-limited", "no", ErrorClass.RATE_LIMIT, True, short)
    opened = world.claim(refusal("circuit-open", ErrorClass.OVERLOADED, short))
    assert opened == Waits(WaitingOn.CIRCUIT_BREAKER, {"code": "circuit-open", "message": "no"}, short)
    asked = world.claim(refusal("budget-exhausted", ErrorClass.LIMIT))
    assert isinstance(asked, NeedsInput)
    assert (asked.ask.kind, asked.ask.call_id) == (WaitingOn.BUDGET, "budget-1")


# --- the claim to be done -----------------------------------------------------------------------------------


def test_a_claim_to_be_done_comes_with_what_really_ran_and_changed(world: World) -> None:
    script = Script(
        [
            [call("w", "write_file", path="a.py", content="1"), call("x", "run_command", command="exit 3")],
            [call("y", "run_command", command="true"), call("z", "write_file", path="../b", content="2")],
            [done("All tests pass.")],
        ]
    )
    evidence = {
        "commands": [{"command": "exit 3", "exit_code": 3}, {"command": "true", "exit_code": 0}],
        "files": ["a.py"],
    }
    for _ in range(2):  # the second time from the journal alone
        verdict = world.claim(script)
        assert verdict == Done("All tests pass.")
        assert isinstance(verdict, Done)
        assert verdict.evidence == evidence
    assert [data["evidence"] for kind, data in world.wire.notes if kind == "completion"] == [evidence] * 2


@pytest.mark.parametrize("after", [False, True])
def test_a_claim_to_be_done_waits_for_the_calls_that_come_after_it(tmp_path: Path, after: bool) -> None:
    for die_at in range(1, 20):
        world, trace = World(tmp_path / f"{die_at}"), tmp_path / f"trace-{die_at}"
        append = call("x", "run_command", command=f"echo x >> {trace}; touch here")
        late = call("w", "write_file", path="late", content="l")
        script = Script([[done(), append, late], [done("Looked again.", "again")]])
        try:
            verdict = world.claim(script, world.journal(die_at=die_at, after=after))
            break
        except Killed:
            verdict = world.claim(script)
            ran = [known.result.text for known in world.journal().load().calls if known.result]
            interrupted = any(result.startswith("interrupted") for result in ran)
            assert verdict == Done("Looked again." if interrupted else "Done.")
        if interrupted:
            continue
        assert trace.read_text() == "x\n"
        assert (world.workspace.root / "late").read_text() == "l"
    assert verdict == Done("Done.")
    assert die_at > 5
    assert isinstance(verdict, Done)
    assert verdict.evidence["files"] == ["late"], "what came after the claim counts, too"


def test_a_claim_to_be_done_is_not_believed_if_a_call_that_comes_after_it_fails(world: World) -> None:
    failing = call("r", "read_file", path="missing")
    script = Script([[done(call_id="early"), failing], [done("Now it is.")]])
    assert world.claim(script) == Done("Now it is.")
    first, second = results(script.requests[1])
    assert "not accepted: another call of the same reply failed" in first["content"]
    assert "missing" in second["content"]


def test_what_was_decided_before_a_question_was_answered_is_not_done(world: World) -> None:
    """The question parks first, so what stands after it would run on an answer that the model never read."""
    script = Script(
        [
            [
                call("w", "write_file", path="before", content="b"),
                done(call_id="early"),
                call("q", "ask_followup_question", question="Delete it?"),
                call("l", "list_files"),
                call("d", "delete_file", path="before"),
                call("s", "start_subtask", objective="Tidy up."),
            ],
            [done("Left it.")],
        ]
    )
    asked = world.claim(script, tools=WITH_SUBTASKS, approvals=("delete_file",))
    assert isinstance(asked, NeedsInput)
    assert asked.ask.call_id == "q"
    world.journal().answer("q", "No!")
    assert world.claim(script, tools=WITH_SUBTASKS, approvals=("delete_file",)) == Done("Left it.")
    assert (world.workspace.root / "before").exists()
    told = {block["tool_use_id"]: block for block in results(script.requests[1])}
    assert {call_id for call_id, block in told.items() if "before the answer" in block["content"]} == {
        "early",
        "d",
        "s",
    }
    assert "before" in told["l"]["content"], "to look does no harm"
    assert world.journal().load().subtasks == {}


@pytest.mark.parametrize("after", [False, True])
def test_a_question_between_subtasks_and_calls_does_each_once(tmp_path: Path, after: bool) -> None:
    for die_at in range(1, 40):
        world, trace, died = World(tmp_path / f"{die_at}"), tmp_path / f"trace-{die_at}", False
        script = Script(
            [
                [
                    call("s", "start_subtask", objective="The left half."),
                    call("x", "run_command", command=f"echo x >> {trace}"),
                    call("q", "ask_followup_question", question="Go on?"),
                    call("y", "run_command", command=f"echo y >> {trace}"),
                ],
                [done()],
            ]
        )
        journal, verdict = world.journal(die_at=die_at, after=after), None
        for _ in range(5):
            try:
                verdict = world.claim(script, journal, tools=WITH_SUBTASKS)
            except Killed:
                died, journal = True, world.journal()
                continue
            if isinstance(verdict, NeedsInput):
                world.journal().answer("q", "Yes.")
            elif isinstance(verdict, Waits):
                world.journal().end_subtask(ended("s"))
            else:
                break
        assert verdict == Done("Done.")
        assert not trace.exists() or trace.read_text() == "x\n"
        assert set(world.journal().load().subtasks) == {"s"}
        if not died:
            break
    assert trace.exists()
    assert die_at > 8


# --- before the reply has ended -----------------------------------------------------------------------------


@dataclass
class Speaking:
    """Announces each of its calls as whole, then waits for `go` before its reply ends."""

    blocks: list[Block]
    go: threading.Event = field(default_factory=threading.Event)
    ends: bool = True
    kind: Literal["live", "recorded"] = "recorded"
    name: str = "speaking"

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], _: Stop, /) -> Reply:
        if len(request.messages) > 1:
            self.heard = request.messages[-1]["content"]
            return Reply((done(),), "tool_use", Usage(), self.name)
        for block in self.blocks:
            listen(CallCompleted(block["id"], block["name"], block["input"]))
        assert self.go.wait(10)
        if not self.ends:
            raise Stopped
        return Reply(tuple(self.blocks), "tool_use", Usage(), self.name)


class Counted(FolderWorkspace):
    """Says when a file is read."""

    def __init__(self, root: Path, read: Callable[[str], None]) -> None:
        super().__init__(root)
        self._heard = read

    def read(self, path: str, start: int | None, end: int | None, /) -> str:
        self._heard(path)
        return super().read(path, start, end)


def test_a_read_begins_while_the_reply_still_goes_on_and_is_done_once(world: World) -> None:
    model = Speaking([call("r", "read_file", path="x")])
    reads: list[str] = []

    def heard(path: str) -> None:
        reads.append(path)
        model.go.set()  # the reply ends only once the file was read

    (world.workspace.root / "x").write_text("here")
    world.workspace = Counted(world.workspace.root, heard)
    assert world.claim(model) == Done("Done.")
    assert reads == ["x"]
    assert "here" in model.heard[0]["content"]


def test_nothing_is_read_early_after_a_call_that_may_change_it(world: World) -> None:
    model = Speaking([call("w", "write_file", path="x", content="new"), call("r", "read_file", path="x")])
    model.go.set()
    (world.workspace.root / "x").write_text("old")
    assert world.claim(model) == Done("Done.")
    assert "new" in model.heard[1]["content"]


def test_of_a_reply_that_never_ends_nothing_is_kept(world: World) -> None:
    model = Speaking([call("r", "read_file", path="x"), call("w", "write_file", path="y", content="z")])
    model.ends = False
    model.go.set()
    world.wire.stop.set(StopReason.SLICE)
    assert world.claim(model) == Yielded(StopReason.SLICE)
    assert world.journal().load().entries == ()
    assert not (world.workspace.root / "y").exists()


def test_a_whole_call_is_checked_and_shown_before_the_reply_has_ended(world: World) -> None:
    model = Speaking([call("a", "no_such_tool"), call("b", "read_file", path=7), call("c", "list_files")])
    model.go.set()
    world.claim(model)
    early = [data for kind, data in world.wire.notes if data.get("state") == "announced"]
    assert [data["call_id"] for data in early] == ["a", "b", "c"]
    assert "no tool" in early[0]["problem"]
    assert "arguments are wrong" in early[1]["problem"]
    assert early[2]["problem"] is None


@dataclass
class Replaced(Speaking):
    """Another model answers after the first one's reply broke off."""

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        if len(request.messages) == 1:
            listen(CallCompleted("r", "read_file", {"path": "void"}))
            listen(ModelSwitched("second", "first failed"))
        return super().reply(request, listen, stop)


def test_what_was_heard_of_a_model_that_failed_is_void(world: World) -> None:
    model = Replaced([call("r", "read_file", path="x")])
    model.go.set()
    (world.workspace.root / "x").write_text("right")
    (world.workspace.root / "void").write_text("wrong")
    assert world.claim(model) == Done("Done.")
    assert "right" in model.heard[0]["content"]
    assert ("model", {"model": "second", "reason": "first failed"}) in world.wire.notes


def test_the_whole_of_an_output_that_was_cut_can_be_read_later(world: World) -> None:
    def cut(_: Workspace, __: Arguments, ___: ToolContext) -> ToolResult:
        return ToolResult("0123…", output="0123456789")

    def more(_: Workspace, __: Arguments, context: ToolContext) -> ToolResult:
        return ToolResult(str(context.read_output("a", 4, 3)) + str(context.read_output("b", 0, 3)))

    tool = TOOLS["list_files"]
    tools = {
        **TOOLS,
        "cut": replace(tool, name="cut", arguments=Arguments, carry_out=cut),
        "more": replace(tool, name="more", arguments=Arguments, carry_out=more),
    }
    script: Any = Script([[call("a", "cut")], [call("c", "more")], [done()]])
    assert world.claim(script, tools=tools) == Done("Done.")
    assert results(script.requests[1])[0]["content"] == "0123…"
    assert results(script.requests[2])[0]["content"] == "456None"
