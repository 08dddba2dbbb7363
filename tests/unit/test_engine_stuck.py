from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from orchestrator.core.verdict import Broke, Done, NeedsInput
from orchestrator.engine import stuck
from orchestrator.engine.ports import Block, Corrected, ModelRequest
from orchestrator.engine.stuck import Circle, Seen, Watch, circle
from tests.engine_world import Killed, Script, World, assignment, call, done


def look(number: int, what: str = "a", outcome: str = "same", error: str = "", acted: bool = True) -> Seen:
    return Seen(number, what, outcome, (error,) if error else (), acted)


def test_the_same_call_with_the_same_result_is_a_circle() -> None:
    assert circle([look(number) for number in range(1, 4)]) is None
    found = circle([look(number) for number in range(1, 5)])
    assert found is not None
    assert found.began == 1


def test_a_call_whose_result_changes_is_none() -> None:
    assert circle([look(number, outcome=str(number)) for number in range(20)]) is None


def test_to_and_fro_is_a_circle() -> None:
    turns = [look(number, "ab"[number % 2]) for number in range(6)]
    found = circle(turns)
    assert found is not None
    assert "in turn" in found.what
    assert circle(turns[1:]) is None


def test_the_same_error_is_a_circle_whatever_was_done_between() -> None:
    turns = [look(n, f"{n}", f"{n}", "E" if n % 2 else "") for n in range(8)]
    found = circle(turns)
    assert found == Circle("the same error 4 times", 1)
    assert circle(turns[:-1]) is None


def test_words_without_action_are_a_circle() -> None:
    assert circle([look(n, f"{n}", acted=False) for n in range(5)]) is not None
    assert circle([look(n, f"{n}", acted=n == 2) for n in range(5)]) is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=12))
def test_whoever_never_sees_the_same_twice_goes_in_no_circle(steps: list[tuple[str, str]]) -> None:
    turns = [look(n, what, f"{outcome}{n}") for n, (what, outcome) in enumerate(steps)]
    assert circle(turns) is None


def test_each_time_it_is_seen_again_the_next_rung_follows_and_a_good_stretch_forgives() -> None:
    watch = Watch()
    for rung in (1, 2, 3, 4):
        for number in range(4 * rung - 3, 4 * rung + 1):
            watch.feed(look(number))
        found = watch.look()
        assert found is not None
        assert found[1] == rung
        watch.corrected(Corrected(4 * rung + 1, rung, "stop that"))
        assert watch.look() is None, "the look begins anew"
    for number in range(17, 40):
        watch.feed(look(number, f"{number}"))
    for number in range(40, 44):
        watch.feed(look(number))
    found = watch.look()
    assert found is not None
    assert found[1] == 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def circling(then: dict[int, list[Block]] | None = None) -> Script:
    """Writes a file, then spoils it and looks at it again and again."""

    def answer(number: int) -> Any:
        def reply(_: ModelRequest) -> list[Block]:
            if then and number in then:
                return then[number]
            if number == 1:
                return [call("w", "write_file", path="x", content="good")]
            return [
                call(f"s{number}", "write_file", path="x", content="bad"),
                call(f"r{number}", "run_command", command="cat x; exit 1"),
            ]

        return reply

    return Script([answer(number) for number in range(1, 100)])


def test_an_agent_that_goes_in_circles_is_told_rolled_back_asked_about_and_given_up(world: World) -> None:
    script = circling()
    asked = world.claim(script)
    assert isinstance(asked, NeedsInput)
    assert asked.ask.options == (stuck.GO_ON, stuck.STOP)
    told = [request["messages"][-1]["content"][-1].get("text", "") for request in script.requests]
    assert "going in circles" in told[5]
    assert "were put back" in told[9]
    rungs = [data["rung"] for kind, data in world.wire.notes if kind == "stuck"]
    assert rungs == [1, 2]
    world.journal().answer(asked.ask.call_id, "Try harder.")
    verdict = world.claim(script)
    assert isinstance(verdict, Broke)
    assert (verdict.code, verdict.retryable) == ("agent-stuck", False)
    assert "<answer>\nTry harder.\n</answer>" in script.requests[13]["messages"][-1]["content"][-1]["text"]
    assert len(script.requests) == 17


def test_rolling_back_restores_the_files_from_before_the_circle(world: World) -> None:
    script = circling({10: [done()]})
    seen: list[str] = []
    note = world.wire.note

    def look_at_file(kind: str, data: Any) -> None:
        note(kind, data)
        if kind == "stuck":
            seen.append((world.workspace.root / "x").read_text())

    world.wire.note = look_at_file  # type: ignore[method-assign]
    assert world.claim(script) == Done("Done.")
    assert seen == ["bad", "good"]
    assert (world.workspace.root / "x").read_text() == "good"


@pytest.mark.parametrize("after", [False, True])
def test_a_step_killed_at_any_write_goes_on_up_the_same_ladder(tmp_path: Path, after: bool) -> None:
    for die_at in range(1, 200):
        world, script = World(tmp_path / f"{die_at}"), circling({12: [done()]})
        try:
            world.claim(script, world.journal(die_at=die_at, after=after))
            break
        except Killed:
            world.claim(script)
        corrections = [entry for entry in world.journal().load().entries if isinstance(entry, Corrected)]
        assert [entry.rung for entry in corrections] == list(range(1, len(corrections) + 1))
        assert len(corrections) in (1, 2), "a call whose outcome is unknown delays the circle"
    assert die_at > 40


def test_a_person_can_stop_it(world: World) -> None:
    script = circling()
    asked = world.claim(script)
    assert isinstance(asked, NeedsInput)
    world.journal().answer(asked.ask.call_id, stuck.STOP)
    verdict = world.claim(script)
    assert isinstance(verdict, Broke)
    assert verdict.code == "agent-stuck"
    assert len(script.requests) == 13
    assert assignment().limits.turns > 13
