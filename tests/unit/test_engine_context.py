from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.model_choice import ModelSelection
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Broke, Done
from orchestrator.engine import prompt
from orchestrator.engine.context import Room
from orchestrator.engine.dialogue import Dialogue
from orchestrator.engine.ports import (
    Block,
    Compacted,
    ModelError,
    ModelRequest,
    Reply,
    StreamEvent,
    ToolResult,
    Turn,
    Usage,
)
from orchestrator.engine.providers.switching import Switching
from orchestrator.engine.tools import TOOLS
from tests.engine_world import Killed, World, assignment, call, done, text

ROOM = Room(enough=0.2, latest=2)
TOO_LONG = ModelError(ErrorClass.CONTEXT_TOO_LONG, "context-too-long", "prompt is too long", retryable=False)


@dataclass
class Reader:
    """Reads a long file in each of `turns` turns, and then is done. It sees by the id of the last result how
    far it has come, since requests get shorter."""

    turns: int
    first: tuple[Block, ...] = ()
    kind: Literal["live", "recorded"] = "recorded"
    name: str = "reader"
    context_tokens: int = 10_000
    too_long: int = 10**9
    """Characters from which a request is refused."""
    summary: str = "I have read some of it."
    requests: dict[int, Any] = field(default_factory=dict)
    summaries: list[Any] = field(default_factory=list)
    refused: int = 0

    def reply(self, request: ModelRequest, _: Callable[[StreamEvent], None], __: Stop, /) -> Reply:
        asked = json.loads(json.dumps(asdict(request)))
        if len(json.dumps(asked)) > self.too_long:
            self.refused += 1
            raise TOO_LONG
        if asked["messages"][-1]["content"][-1].get("text") == prompt.SUMMARISE:
            self.summaries.append(asked)
            return self._said(text(self.summary))
        turn = 1 + _last(asked)
        self.requests[turn] = asked
        if turn == 1 and self.first:
            return self._said(*self.first)
        if turn > self.turns:
            return self._said(done())
        return self._said(call(f"c{turn}", "read_file", path=f"{turn}.txt"))

    def _said(self, *blocks: Block) -> Reply:
        return Reply(blocks, "tool_use", Usage(), self.name)


def _last(asked: Any) -> int:
    ids = [block.get("tool_use_id", "c0") for block in asked["messages"][-1]["content"]]
    return int(next(call_id for call_id in ids if call_id[1:].isdigit())[1:])


def _characters(asked: Any) -> int:
    return len(json.dumps(asked["messages"]))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return filled(tmp_path)


def filled(path: Path) -> World:
    world = World(path)
    for number in range(1, 31):
        (world.workspace.root / f"{number}.txt").write_text(f"file {number}\n" + "word " * 800)
    return world


def test_older_outputs_are_sent_in_short_before_anything_is_summed_up(world: World) -> None:
    reader = Reader(7)
    assert isinstance(world.claim(reader, room=Room(enough=0.7, latest=2)), Done)
    assert reader.summaries == []
    last = reader.requests[8]["messages"]
    lengths = [len(message["content"][0].get("content", "")) for message in last if message["role"] == "user"]
    assert lengths[1] < 600
    assert lengths[-1] > 4000
    assert "read_output" in last[2]["content"][0]["content"]
    assert "call_id c1" in last[2]["content"][0]["content"]
    assert world.journal().output("c1", 0, 100_000) == world.journal().load().calls[0].result.text  # type: ignore[union-attr]


def test_a_long_conversation_never_outgrows_the_window(world: World) -> None:
    reader = Reader(30)
    assert isinstance(world.claim(reader, room=ROOM), Done)
    assert reader.summaries
    assert sorted(reader.requests) == list(range(1, 32)), "no turn was asked for twice"
    assert max(_characters(asked) for asked in reader.requests.values()) < reader.context_tokens * 3
    assert len([entry for entry in world.journal().load().entries if isinstance(entry, Turn)]) == 31


def test_a_summary_stands_for_the_past_but_for_the_task_and_what_people_said(world: World) -> None:
    world.mail.append("Never touch setup.py.")
    reader = Reader(
        12,
        (
            call("c1", "write_file", path="new.txt", content="x"),
            call("r", "run_command", command="exit 3"),
            call("q", "ask_followup_question", question="Which one?"),
        ),
    )
    world.claim(reader, room=ROOM)
    world.journal().answer("q", "The left one.")
    assert isinstance(world.claim(reader, room=ROOM), Done)
    opening = reader.requests[13]["messages"][0]["content"]
    assert opening[0]["text"] == prompt.first_message(assignment())
    for kept in (
        reader.summary,
        "Never touch setup.py.",
        "Which one?",
        "The left one.",
        "new.txt",
        "'exit 3' → exit code 3",
    ):
        assert kept in opening[1]["text"]
    roles = [message["role"] for message in reader.requests[13]["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


@pytest.mark.parametrize("after", [False, True])
def test_a_step_killed_at_any_write_asks_what_the_unbroken_one_asked(tmp_path: Path, after: bool) -> None:
    unbroken = Reader(10)
    filled(tmp_path / "unbroken").claim(unbroken, room=ROOM)
    assert unbroken.summaries
    compared = 0
    for die_at in range(1, 100):
        world, reader = filled(tmp_path / f"{die_at}"), Reader(10)
        try:
            world.claim(reader, world.journal(die_at=die_at, after=after), room=ROOM)
            break
        except Killed:
            reader.requests.clear()
        assert world.claim(reader, room=ROOM) == Done("Done.")
        if "outcome unknown" not in (tmp_path / f"{die_at}" / "journal.jsonl").read_text():
            compared += 1
            for turn, asked in reader.requests.items():
                assert asked == unbroken.requests[turn]
        more = len(reader.summaries) - len(unbroken.summaries)
        assert more <= 1, "a summary that nobody had kept is asked for once more at most"
    assert compared > 20


def test_a_request_that_the_provider_finds_too_long_is_made_shorter_once(world: World) -> None:
    reader = Reader(8, context_tokens=10**6, too_long=30_000)
    assert isinstance(world.claim(reader, room=ROOM), Done)
    assert reader.refused >= 1
    assert reader.summaries == []
    assert any(prompt.NO_SUMMARY in json.dumps(asked) for asked in reader.requests.values())
    hopeless = World(world.path / "hopeless")
    verdict = hopeless.claim(Reader(8, too_long=10))
    assert isinstance(verdict, Broke)
    assert (verdict.code, verdict.retryable) == ("context-too-long", False)


def test_a_model_that_sums_up_nothing_still_gets_room(world: World) -> None:
    reader = Reader(12, summary="  ")
    assert isinstance(world.claim(reader, room=ROOM), Done)
    assert prompt.NO_SUMMARY in reader.requests[13]["messages"][0]["content"][1]["text"]


def test_each_request_says_whose_it_is_and_what_for(world: World) -> None:
    reader = Reader(8, context_tokens=10**6, too_long=30_000)
    world.claim(reader, room=ROOM, task_id="t", step_id="s", fence=7)
    facts = [(turn, asked["call"]) for turn, asked in reader.requests.items()]
    assert {(call["task_id"], call["step_id"], call["fence"]) for _, call in facts} == {("t", "s", 7)}
    assert [call["turn"] for _, call in facts] == [turn for turn, _ in facts]
    assert {call["purpose"] for _, call in facts} == {"turn", "shorter"}, "no two sends are the same"
    other = Reader(12)
    filled(world.path / "other").claim(other, room=ROOM)
    assert {asked["call"]["purpose"] for asked in other.summaries} == {"summary"}


@dataclass
class Counting(Reader):
    """Has a provider that counts: a token has six characters."""

    counted: list[int] = field(default_factory=list)

    def count(self, request: ModelRequest, /) -> int:
        self.counted.append(len(request.messages))
        return sum(len(json.dumps(message)) for message in request.messages) // 6


def test_the_provider_is_asked_for_a_count_only_near_the_threshold(world: World) -> None:
    counting, guessing = Counting(10), Reader(10)
    assert isinstance(world.claim(counting, room=ROOM), Done)
    assert isinstance(filled(world.path / "other").claim(guessing, room=ROOM), Done)
    assert guessing.summaries
    assert counting.summaries == [], "there is more room than the estimate says"
    assert 1 <= len(counting.counted) < 10
    assert min(counting.counted) > 5


@dataclass
class Uncountable(Reader):
    """Has a provider that knows no such request."""

    def count(self, _: ModelRequest, /) -> int:
        raise ModelError(ErrorClass.VALIDATION, "model-request-refused", "no such path", retryable=False)


def test_where_the_provider_does_not_count_the_estimate_does(world: World) -> None:
    reader = Uncountable(10)
    assert isinstance(world.claim(reader, room=ROOM), Done)
    assert reader.summaries


@dataclass
class Dense(Reader):
    """Says how many tokens it read: each character is one."""

    too_long: int = 40_000
    context_tokens: int = 40_000

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        reply = super().reply(request, listen, stop)
        return replace(reply, usage=Usage(input_tokens=len(json.dumps(asdict(request)))))


def test_what_a_provider_counted_last_is_not_replaced_by_a_guess(world: World) -> None:
    """Or the window would be full before anything was summed up."""
    reader = Dense(10)
    model = Switching(ModelSelection("reader"), lambda _: reader, context_tokens=reader.context_tokens)
    assert isinstance(world.claim(model, room=Room(full=0.6, enough=0.3, latest=1)), Done)
    assert reader.summaries
    assert not reader.refused


def _dialogue(turns: int, usage: Usage = Usage()) -> Dialogue:  # noqa: B008 - frozen
    dialogue = Dialogue("Do it.", TOOLS)
    for number in range(1, turns + 1):
        _add(dialogue, number, usage)
    return dialogue


def _add(dialogue: Dialogue, number: int, usage: Usage) -> None:
    blocks = (call(f"c{number}", "list_files"),)
    dialogue.add_turn(_turn(number, blocks, usage))
    dialogue.add_result(f"c{number}", ToolResult("x" * 3000))


def _turn(number: int, content: tuple[Mapping[str, Any], ...], usage: Usage) -> Turn:
    from_a = Reply(content, "tool_use", usage, "m")
    return Turn(
        number=number,
        content=from_a.content,
        stop_reason="tool_use",
        usage=usage,
        model="m",
        model_kind="recorded",
        request_id=None,
        cost_usd=None,
        elapsed=assignment().limits.wall_time * 0,
    )


def test_the_size_is_what_the_provider_counted_last_and_what_came_since() -> None:
    dialogue = _dialogue(3, Usage(input_tokens=700, output_tokens=50, cache_read_tokens=250))
    assert dialogue.estimate == 1000 + 3000 // 3
    dialogue.hear("y" * 300)
    assert 2100 < dialogue.estimate < 2150
    dialogue.counted(5000)
    assert dialogue.estimate == 5000
    dialogue.compact(Compacted(4, shortened_to=3))
    assert dialogue.estimate < 2000


def test_a_message_that_comes_after_a_compaction_joins_the_one_that_nobody_has_answered() -> None:
    dialogue = _dialogue(3)
    dialogue.compact(Compacted(4, 1, 1, "It went well."))
    dialogue.hear("Faster.")
    roles = [message["role"] for message in dialogue.messages()]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert dialogue.messages()[-1]["content"][-1]["text"] == prompt.message("Faster.")


def test_what_a_compaction_took_counts_for_the_limits() -> None:
    dialogue = _dialogue(2)
    dialogue.compact(Compacted(3, 1, 1, "So far.", Usage(100, 20)))
    assert dialogue.tokens == 120
