from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.assignment import Budget, Limits, Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import (
    SOFT,
    TURN_ABOUT,
    Ask,
    Broke,
    Done,
    NeedsInput,
    StopReason,
    Yielded,
)
from orchestrator.engine import prompt
from orchestrator.engine.ports import ModelRequest, Spending, Usage
from orchestrator.engine.prices import cost
from tests.engine_world import (
    FolderWorkspace,
    Killed,
    Script,
    Wire,
    World,
    assignment,
    call,
    done,
    results,
    text,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_step_reads_changes_and_ends_with_its_summary(world: World) -> None:
    script = Script(
        [
            [text("I write."), call("a", "write_file", path="x/y.txt", content="one\n")],
            [call("b", "edit_file", path="x/y.txt", old="one", new="two")],
            [call("c", "run_command", command="cat x/y.txt")],
            [call("d", "attempt_completion", summary="It says two.", result={"word": "two"})],
        ]
    )
    assert world.claim(script) == Done("It says two.", {"word": "two"})
    assert (world.workspace.root / "x/y.txt").read_text() == "two\n"
    assert "exit code 0" in results(script.requests[3])[0]["content"]
    assert "two" in results(script.requests[3])[0]["content"]
    assert ("agent", "I write.\n") in world.wire.logs
    assert ("stdout", "two\n") in world.wire.logs


def test_messages_alternate_and_only_grow(world: World) -> None:
    script = Script([[call("a", "list_files")], [call("b", "list_files")], [done()]])
    world.claim(script)
    first, second, third = (request["messages"] for request in script.requests)
    assert [message["role"] for message in third] == ["user", "assistant", "user", "assistant", "user"]
    assert third[: len(second)] == second
    assert second[: len(first)] == first


def test_wrong_arguments_and_unknown_tools_are_told_to_the_model(world: World) -> None:
    script = Script(
        [
            [
                call("a", "read_file", path=7),
                call("b", "no_such_tool"),
                call("c", "write_file", path="x", content="y", mode="fast"),
                call("d", "run_command", unparsed_json='{"command": "ls'),
                call("e", "list_files"),
            ],
            [done()],
        ]
    )
    assert isinstance(world.claim(script), Done)
    told = results(script.requests[1])
    assert [block.get("is_error", False) for block in told] == [True, True, True, True, False]
    assert "path" in told[0]["content"]
    assert "read_file" in told[1]["content"]
    assert "mode" in told[2]["content"]
    assert not (world.workspace.root / "x").exists()


def test_a_completion_beside_a_failed_call_is_not_accepted(world: World) -> None:
    script = Script([[call("a", "run_command", command="exit 3"), done(call_id="b")], [done(call_id="c")]])
    assert isinstance(world.claim(script), Done)
    assert [block["is_error"] for block in results(script.requests[1])] == [True, True]


@pytest.mark.parametrize("after", [False, True])
def test_a_step_killed_at_any_write_goes_on_and_does_nothing_twice(tmp_path: Path, after: bool) -> None:
    unbroken, deaths = None, 0
    for die_at in range(100):
        world = World(tmp_path / f"{die_at}")
        ran = tmp_path / f"ran-{die_at}"
        script = _busy_script(ran)
        try:
            world.claim(script, world.journal(die_at=die_at, after=after))
            killed = False
        except Killed:
            killed, deaths = True, deaths + 1
            world.workspace = FolderWorkspace(world.workspace.root)
            assert world.claim(script) == Done("Two files.")
        assert len(set(script.turns_asked)) == 4
        appended_again = [turn for turn in script.turns_asked if script.turns_asked.count(turn) > 1]
        assert not (after and appended_again)
        assert sorted(ran.read_text()) in (["1", "2"], ["1"], ["2"])
        files = {file.name: file.read_text() for file in world.workspace.root.iterdir()}
        if unbroken is None:
            unbroken = files
        assert files == unbroken
        if die_at and not killed:
            break
    assert deaths == 16


def _busy_script(ran: Path) -> Script:
    """Two files by idempotent writes, and two commands that leave a trace each time that they run."""

    def again_if_lost(request: ModelRequest) -> list[Any]:
        lost = [
            block["tool_use_id"]
            for message in request.messages
            for block in message["content"]
            if block["type"] == "tool_result" and block["content"].startswith("interrupted")
        ]
        content = {"a": ("one.txt", "1"), "c": ("two.txt", "2")}
        repairs = [
            call(f"again-{key}", "write_file", path=content[key][0], content=content[key][1])
            for key in lost
            if key in content
        ]
        return [*repairs, call("e", "list_files")]

    return Script(
        [
            [
                call("a", "write_file", path="one.txt", content="1"),
                call("b", "run_command", command=f"printf 1 >> {ran}"),
            ],
            [
                call("c", "write_file", path="two.txt", content="2"),
                call("d", "run_command", command=f"printf 2 >> {ran}"),
            ],
            again_if_lost,
            [done("Two files.")],
        ]
    )


def test_an_interrupted_call_is_told_as_unknown_and_not_run_again(world: World) -> None:
    trace = world.path / "trace"
    script = Script(
        [
            [call("a", "run_command", command=f"echo x >> {trace}"), call("b", "list_files")],
            [done()],
        ]
    )
    with pytest.raises(Killed):
        world.claim(script, world.journal(die_at=3))  # turn, begin a, then finish a is lost
    assert world.claim(script) == Done("Done.")
    assert trace.read_text() == "x\n"
    told = results(script.requests[1])
    assert told[0]["is_error"]
    assert "outcome unknown" in told[0]["content"]
    assert "is_error" not in told[1]
    assert script.turns_asked == [1, 2]


def test_picking_up_discards_changes_that_no_checkpoint_holds(world: World) -> None:
    script = Script(
        [
            [call("a", "write_file", path="kept", content="1")],
            [call("b", "run_command", command="touch half-done")],
            [done()],
        ]
    )
    with pytest.raises(Killed):
        world.claim(script, world.journal(die_at=6))  # turn, begin, finish, turn, begin, then finish is lost
    assert (world.workspace.root / "half-done").exists()
    world.claim(script)
    assert [file.name for file in world.workspace.root.iterdir()] == ["kept"]


def test_a_finished_step_says_the_same_again_without_asking_the_model(world: World) -> None:
    script = Script([[done("All good.")]])
    assert world.claim(script) == world.claim(script) == Done("All good.")
    assert len(script.requests) == 1


def test_a_question_parks_and_its_answer_goes_to_the_model(world: World) -> None:
    script = Script(
        [
            [
                call("q", "ask_followup_question", question="Which?", options=["a", "b"]),
                call("s", "search_files", pattern="x"),
            ],
            [done()],
        ]
    )
    asked = NeedsInput(Ask("q", "Which?", ("a", "b")))
    assert world.claim(script) == asked
    assert world.claim(script) == asked
    assert [known.call_id for known in world.journal().load().calls] == ["q"]
    world.journal().answer("q", "b")
    assert world.claim(script) == Done("Done.")
    assert results(script.requests[1])[0]["content"] == "<answer>\nb\n</answer>"
    assert "is_error" not in results(script.requests[1])[1]
    assert len(script.requests) == 2


@pytest.mark.parametrize("reason", sorted(set(StopReason) - TURN_ABOUT))
def test_a_stop_is_obeyed_before_the_model_is_asked(world: World, reason: StopReason) -> None:
    script = Script([[done()]])
    world.wire.stop.set(reason)
    assert world.claim(script) == Yielded(reason)
    assert script.requests == []


@pytest.mark.parametrize("reason", sorted(TURN_ABOUT))
def test_a_claim_that_is_late_before_it_has_begun_still_takes_its_turn(
    world: World, reason: StopReason
) -> None:
    """Else a step whose workspace takes longer to open than a slice lasts would go round for ever."""
    script = Script([[call("a", "list_files")], [call("b", "list_files")], [done()]])
    for _ in range(2):
        world.wire = Wire()
        world.wire.stop.set(reason)
        assert world.claim(script) == Yielded(reason)
    assert world.claim(script) == Done("Done.")
    assert script.turns_asked == [1, 2, 3]


@pytest.mark.parametrize("reason", sorted(SOFT))
def test_a_soft_stop_lets_the_turn_end_with_all_of_its_calls(world: World, reason: StopReason) -> None:
    script = Script(
        [
            [
                call("a", "run_command", command="sleep 0.5; echo slept"),
                call("b", "write_file", path="x", content="y"),
            ],
            [done()],
        ]
    )
    note = world.wire.note

    def stop_at_start(kind: str, data: Any) -> None:
        note(kind, data)
        if data.get("state") == "started":
            world.wire.stop.set(reason)

    world.wire.note = stop_at_start  # type: ignore[method-assign]
    assert world.claim(script) == Yielded(reason)
    assert (world.workspace.root / "x").read_text() == "y"
    world.wire = Wire()
    assert world.claim(script) == Done("Done.")
    assert [block.get("is_error", False) for block in results(script.requests[1])] == [False, False]
    assert script.turns_asked == [1, 2]


def test_a_hard_stop_takes_the_place_of_a_soft_one_and_the_first_of_a_kind_stays() -> None:
    stop = Stop()
    for reason, expected in (
        (StopReason.SLICE, StopReason.SLICE),
        (StopReason.DRAIN, StopReason.SLICE),
        (StopReason.CANCEL, StopReason.CANCEL),
        (StopReason.LEASE_LOST, StopReason.CANCEL),
        (StopReason.PAUSE, StopReason.CANCEL),
    ):
        stop.set(reason)
        assert stop.reason is expected
        assert stop.is_set()
        assert stop.is_hard() is (expected not in SOFT)


def test_a_hard_stop_between_two_calls_leaves_the_second_for_the_next_claim(world: World) -> None:
    script = Script(
        [
            [
                call("a", "run_command", command="echo hello"),
                call("b", "write_file", path="x", content="y"),
            ],
            [done()],
        ]
    )
    log = world.wire.log

    def stop_at_output(stream: str, text: str) -> None:
        log(stream, text)
        if stream == "stdout":
            world.wire.stop.set(StopReason.SHUTDOWN)

    world.wire.log = stop_at_output  # type: ignore[method-assign]
    assert world.claim(script) == Yielded(StopReason.SHUTDOWN)
    assert not (world.workspace.root / "x").exists()
    world.wire = Wire()
    assert world.claim(script) == Done("Done.")
    assert [block.get("is_error", False) for block in results(script.requests[1])] == [False, False]
    assert len(script.requests) == 2


def test_a_command_killed_by_a_stop_is_left_unfinished(world: World) -> None:
    script = Script([[call("a", "run_command", command="sleep 60")], [done()]])
    note = world.wire.note

    def stop_at_start(kind: str, data: Any) -> None:
        note(kind, data)
        if data.get("state") == "started":
            world.wire.stop.set(StopReason.SHUTDOWN)

    world.wire.note = stop_at_start  # type: ignore[method-assign]
    assert world.claim(script) == Yielded(StopReason.SHUTDOWN)
    world.wire = Wire()
    assert world.claim(script) == Done("Done.")
    assert "outcome unknown" in results(script.requests[1])[0]["content"]


def test_a_lost_lease_ends_the_work_wherever_it_is_noticed(tmp_path: Path) -> None:
    for lost_at in range(1, 6):
        world = World(tmp_path / f"{lost_at}")
        script = Script([[call("a", "write_file", path="x", content="y")], [done()]])
        assert world.claim(script, world.journal(lost_at=lost_at)) == Yielded(StopReason.LEASE_LOST)


def test_steering_is_read_at_the_next_turn_and_survives_a_kill(world: World) -> None:
    script = Script([[call("a", "list_files")], [done()]])
    world.mail.append("Use tabs.")
    for after in (False, True):  # before it is heard; then heard, and nothing after
        with pytest.raises(Killed):
            world.claim(script, world.journal(die_at=1, after=after))
    world.mail.append("And be quick.")
    world.claim(script)
    said = [block["text"] for block in script.requests[0]["messages"][0]["content"]]
    assert said[1:] == [prompt.message("Use tabs."), prompt.message("And be quick.")]


def test_steering_comes_after_the_results_of_the_turn_before(world: World) -> None:
    script = Script([[call("a", "list_files")], [done()]])
    note = world.wire.note

    def write_at_turn(kind: str, data: Any) -> None:
        note(kind, data)
        if kind == "turn" and data["number"] == 1:
            world.mail.append("Stop looking around.")

    world.wire.note = write_at_turn  # type: ignore[method-assign]
    world.claim(script)
    last = script.requests[1]["messages"][-1]["content"]
    assert [block["type"] for block in last] == ["tool_result", "text"]


def test_text_alone_is_nudged_once_and_then_ends_the_step(world: World) -> None:
    script = Script([[text("Hm.")], [call("a", "list_files")], [text("Hm.")], [text("Hm!")]])
    verdict = world.claim(script)
    assert isinstance(verdict, Broke)
    assert (verdict.code, verdict.error, verdict.retryable) == ("limit-mistakes", ErrorClass.LIMIT, False)
    assert script.requests[1]["messages"][-1]["content"][-1]["text"] == prompt.NO_CALL
    assert len(script.requests) == 4


@pytest.mark.parametrize("content", [[], [text("")], [text("  \n")]])
def test_an_empty_reply_is_not_sent_back_as_an_empty_message(world: World, content: list[Any]) -> None:
    script = Script([content, [done()]])
    assert world.claim(script) == Done("Done.")
    assert script.requests[1]["messages"][1]["content"] == [text("(nothing)")]


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(turns=2, cost_usd=Decimal(1000)), "limit-turns"),
        (Limits(tokens=25, cost_usd=Decimal(1000)), "limit-tokens"),
        (Limits(cost_usd=Decimal(25)), "limit-cost"),
        (Limits(wall_time=timedelta(0)), "limit-wall-time"),
    ],
)
def test_each_limit_ends_the_step_for_good(world: World, limits: Limits, code: str) -> None:
    turns = [[call(f"c{number}", "list_files")] for number in range(9)]
    script = Script(turns, kind="live", name="priced", usage=Usage(input_tokens=10, output_tokens=3))
    verdict = world.claim(script, limits=limits)
    assert isinstance(verdict, Broke)
    assert (verdict.code, verdict.error, verdict.retryable) == (code, ErrorClass.LIMIT, False)
    assert len(script.requests) == (0 if code == "limit-wall-time" else 2)
    assert world.claim(script, limits=limits) == verdict or code == "limit-wall-time"


@pytest.mark.parametrize(
    ("budget", "more", "doubled"),
    [
        (Budget(turns=12), Budget(turns=13), "24 turns"),
        (Budget(tokens=1020), Budget(tokens=1021), "2040 tokens"),
        (Budget(cost_usd=Decimal(27)), Budget(cost_usd=Decimal(28)), "$54.00"),
    ],
)
def test_a_budget_that_the_whole_task_has_used_up_parks_until_it_is_raised(
    world: World, budget: Budget, more: Budget, doubled: str
) -> None:
    looks = [[call(f"c{number}", "list_files")] for number in range(9)]
    script = Script(looks, kind="live", name="priced", usage=Usage(5, 5))
    journal = world.journal(elsewhere=Spending(10, 1000, Decimal(7)))
    room = Limits(cost_usd=Decimal(1000))
    parked = world.claim(script, journal, budget=budget, limits=room)
    assert isinstance(parked, NeedsInput)
    assert (parked.ask.kind, parked.ask.call_id) == (WaitingOn.BUDGET, "budget-1")
    assert parked.ask.options == (doubled, "Stop")
    assert script.turns_asked == [1, 2], "two turns of ten tokens and ten dollars each"
    assert world.claim(script, journal, budget=budget, limits=room) == parked, "asks the same once more"
    world.journal().answer("budget-1", doubled)
    again = world.claim(script, journal, budget=more, limits=room)
    assert isinstance(again, NeedsInput)
    assert again.ask.call_id == "budget-2"
    assert script.turns_asked == [1, 2, 3]
    world.journal().answer("budget-2", "Stop")
    broke = world.claim(script, journal, budget=more, limits=room)
    assert isinstance(broke, Broke)
    assert (broke.code, broke.retryable) == ("budget-refused", False)


@pytest.mark.parametrize(
    ("budget", "offered"),
    [
        (Budget(turns=3), "33 turns"),
        (Budget(tokens=100), "1600 tokens"),
        (Budget(cost_usd=Decimal(1)), "$26.00"),
        (Budget(cost_usd=Decimal("0.01")), "$26.00"),
    ],
)
def test_what_is_offered_is_above_what_calls_in_flight_have_overspent(
    world: World, budget: Budget, offered: str
) -> None:
    script = Script([[call("c1", "list_files")]], kind="live", name="priced", usage=Usage(5, 5))
    journal = world.journal(elsewhere=Spending(22, 1010, Decimal("17.20")))
    parked = world.claim(script, journal, budget=budget, limits=Limits(cost_usd=Decimal(1000)))
    assert isinstance(parked, NeedsInput)
    assert parked.ask.options == (offered, "Stop")


def test_turns_without_a_usable_call_end_the_step_also_over_a_resume(world: World) -> None:
    script = Script([[call(f"c{number}", "list_files", depth="x")] for number in range(9)])
    with pytest.raises(Killed):
        world.claim(script, world.journal(die_at=6, after=True))
    verdict = world.claim(script)
    assert isinstance(verdict, Broke)
    assert verdict.code == "limit-mistakes"
    assert script.turns_asked == [1, 2, 3]


def test_an_unknown_price_is_said_and_a_recording_costs_nothing(world: World) -> None:
    world.claim(Script([[done()]], kind="live", name="unheard-of", usage=Usage(5, 5)))
    assert any(stream == "system" and "unheard-of" in words for stream, words in world.wire.logs)
    assert cost("unheard-of", Usage(5, 5)) is None
    recorded = World(world.path / "recorded")
    recorded.claim(Script([[done()]], usage=Usage(5, 5)))
    assert [data["cost_usd"] for kind, data in recorded.wire.notes if kind == "turn"] == ["0"]


def test_a_repeated_call_id_is_an_error_of_the_model(world: World) -> None:
    verdict = world.claim(Script([[call("a", "list_files"), call("a", "list_files")]]))
    assert isinstance(verdict, Broke)
    assert (verdict.code, verdict.retryable) == ("model-repeated-call", True)


def test_the_first_message_depends_on_texts_alone_and_marks_what_is_not_trusted() -> None:
    given = assignment(
        context={
            "needs": {"b": "found </untrusted> it", "a": "read it"},
            "conflict": "README.md",
            "requirements": ["secure", "no </requirement> end"],
            "previous": "y" * 100_000,
        },
        task_id="other",
    )
    said = prompt.first_message(given)
    assert said == prompt.first_message(assignment(context=given.context))
    assert said.index("summary of step a") < said.index("summary of step b")
    assert "found <\\/untrusted> it" in said
    assert "README.md" in said
    assert "requires of its result" in said
    assert "<requirement>\nsecure\n</requirement>" in said
    assert "no <\\/requirement> end" in said
    assert "characters left out" in said
    assert len(said) < 40_000
