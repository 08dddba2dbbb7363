"""Which turn of a script a request is given, and in which words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from orchestrator.core.errors import Refused
from orchestrator.engine import prompt
from orchestrator.modelserver import chat, messages, responses
from orchestrator.modelserver.asked import Asked, Dialect, NotUnderstood, call_id
from orchestrator.modelserver.dialects import FORMS
from orchestrator.modelserver.faults import FaultPlan, Kind, Order
from orchestrator.modelserver.said import pieces
from orchestrator.modelserver.script import NoLine, Played, Script, load, said
from orchestrator.modelserver.sends import session_of

SHELLS: Mapping[str, Mapping[str, Any]] = {
    "run_command": {"command": {"type": "string"}},
    "Bash": {"command": {"type": "string"}},
    "exec_command": {"cmd": {"type": "string"}},
    "shell": {"command": {"type": "array"}},
}


def script(**conversation: Any) -> Script:
    return Script.model_validate({"conversations": [conversation]})


def asked(
    words: str = "fix the bug", said: Sequence[Mapping[str, Any]] = (), tools: Sequence[str] = ("Bash",)
) -> Asked:
    """A Messages request: the user's words, what was said since, and the tools that are offered."""
    return messages.read(
        {
            "model": "m",
            "messages": [{"role": "user", "content": words}, *said],
            "tools": [{"name": name, "input_schema": {"properties": SHELLS.get(name, {})}} for name in tools],
        }
    )


def spoken(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def called(*turns: int) -> list[dict[str, Any]]:
    """A call in each of these turns, with its result."""
    told: list[dict[str, Any]] = []
    for turn in turns:
        identity = call_id("toolu", turn, 0, "abc")
        use = {"type": "tool_use", "id": identity, "name": "Bash", "input": {}}
        result = {"type": "tool_result", "tool_use_id": identity, "content": f"result {turn}"}
        told += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return told


def play(script: Script, asked: Asked, headers: Mapping[str, str] | None = None) -> Played:
    return script.play(asked, headers or {})


def calls(script: Script, request: Asked) -> list[tuple[str | None, str, Any]]:
    played = play(script, request)
    words = said(played.turn, request, number=played.number, send="s", at=0)
    return [(call.namespace, call.name, json.loads(call.arguments)) for call in words.calls]


# ---- which turn


def test_a_turn_follows_from_what_was_said_not_from_how_often_was_asked() -> None:
    three = script(turns=[{"text": "one"}, {"text": "two"}, {"text": "three"}])
    history = [spoken("one"), user("go on"), spoken("two"), user("go on")]
    for _ in range(2):
        assert play(three, asked()).turn.text == "one"
        assert play(three, asked(said=history[:2])).turn.text == "two"
        assert play(three, asked(said=history)).turn.text == "three"


def test_a_shortened_conversation_keeps_count_by_the_ids_of_its_calls() -> None:
    assert asked(said=called(0, 1, 2)).turn == 3
    assert asked(said=called(7)).turn == 8
    assert asked(said=[*called(7), spoken("words"), user("go on")]).turn == 9


def test_words_that_broke_off_are_no_turn_of_their_own() -> None:
    assert asked(said=[*called(0), spoken("Now mo")]).turn == 1


def test_several_items_of_one_reply_are_one_turn() -> None:
    heard = [
        {"type": "message", "role": "user", "content": "fix"},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look"}]},
        {"type": "function_call", "call_id": "x", "name": "a", "arguments": "{}"},
        {"type": "function_call", "call_id": "y", "name": "b", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "x", "output": "1"},
        {"type": "function_call_output", "call_id": "y", "output": "2"},
    ]
    request = responses.read({"model": "m", "input": heard})
    assert request.turn == 1
    assert request.latest == "1\n2"


def test_the_system_is_no_part_of_what_the_user_said() -> None:
    told = [{"role": "system", "content": "rules"}, {"role": "user", "content": "fix"}]
    assert chat.read({"model": "m", "messages": told}).opening == "fix"
    item = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]}
    request = responses.read({"model": "m", "input": [item, *({**one} for one in told[1:])]})
    assert (request.opening, "rules" in request.system) == ("fix", True)


def test_a_script_that_is_through_says_so_unless_it_loops() -> None:
    turns = [{"text": "one"}, {"text": "two"}]
    history = [spoken("one"), user("go on"), spoken("two"), user("go on")]
    with pytest.raises(NoLine, match="2 turns"):
        play(script(turns=turns), asked(said=history))
    assert play(script(turns=turns, loop=True), asked(said=history)).turn.text == "one"


def test_a_turn_can_wait_for_what_was_said_last_instead_of_its_number() -> None:
    found = script(turns=[{"text": "one"}, {"text": "sorry", "latest": "result 4"}, {"text": "two"}])
    assert play(found, asked(said=called(4))).turn.text == "sorry"
    assert play(found, asked(said=called(0))).turn.text == "two"


def test_turns_are_counted_from_where_the_conversation_begins() -> None:
    found = script(when={"since": "fix the mean"}, turns=[{"text": "one"}, {"text": "two"}])
    examples = [spoken("I change main.py"), user("I switched"), spoken("Ok."), user("fix the mean")]
    first = asked("an example", said=examples)
    assert (play(found, first).turn.text, play(found, first).number) == ("one", 0)
    again = asked("an example", said=[*examples, spoken("one"), user("the tests fail")])
    assert (play(found, again).turn.text, play(found, again).number) == ("two", 1)
    with pytest.raises(NoLine):
        play(found, asked("fix the median"))


# ---- which conversation


def test_the_first_conversation_that_matches_answers() -> None:
    found = Script.model_validate(
        {
            "conversations": [
                {"name": "child", "when": {"contains": ["fix", "part two"]}, "turns": [{"text": "child"}]},
                {"name": "task", "when": {"headers": {"X-Task-Id": "t-*"}}, "turns": [{"text": "task"}]},
                {"name": "plain", "when": {"contains": "fix", "tools": False}, "turns": [{"text": "plain"}]},
            ]
        }
    )
    assert play(found, asked("fix part two")).conversation == "child"
    assert play(found, asked("fix"), {"x-task-id": "t-1"}).conversation == "task"
    assert play(found, asked("fix", tools=())).conversation == "plain"
    with pytest.raises(NoLine, match="fix it"):
        play(found, asked("fix it"))


def test_a_conversation_is_not_taken_by_words_that_came_later() -> None:
    found = script(when={"contains": "the child's task"}, turns=[{"text": "child"}])
    with pytest.raises(NoLine):
        play(found, asked("the parent", said=[*called(0), user("the child's task")]))


def test_a_request_without_tools_beside_a_conversation_with_calls_takes_no_turn_of_it() -> None:
    found = script(turns=[{"calls": [{"run": "ls"}]}], side="A title")
    played = play(found, asked(tools=()))
    assert (played.side, played.turn.text) == (True, "A title")


# ---- in which words


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("run_command", {"command": "ls"}),
        ("Bash", {"command": "ls"}),
        ("exec_command", {"cmd": "ls"}),
        ("shell", {"command": ["bash", "-lc", "ls"]}),
    ],
)
def test_a_command_goes_to_whichever_shell_is_offered(tool: str, arguments: dict[str, Any]) -> None:
    found = script(turns=[{"calls": [{"run": "ls"}]}])
    assert calls(found, asked(tools=["read", tool])) == [(None, tool, arguments)]


def test_of_several_spellings_the_one_that_is_offered_is_taken() -> None:
    spelled = [
        {"name": "Write", "arguments": {"file_path": "a"}},
        {"name": "write_file", "arguments": {"path": "a"}},
    ]
    found = script(turns=[{"calls": [{"any_of": [*spelled, {"run": "touch a"}]}]}])
    assert calls(found, asked(tools=["write_file"])) == [(None, "write_file", {"path": "a"})]
    assert calls(found, asked(tools=["Bash"])) == [(None, "Bash", {"command": "touch a"})]
    with pytest.raises(NoLine, match="no tool that is known"):
        calls(found, asked(tools=["read"]))


def test_a_tool_in_a_namespace_is_called_by_both_names() -> None:
    inner = {"type": "function", "name": "ask", "parameters": {}}
    tools = [{"type": "namespace", "name": "mcp__orch", "tools": [inner]}]
    request = responses.read({"model": "m", "input": "fix", "tools": tools})
    found = script(turns=[{"calls": [{"name": "mcp__orch__ask", "arguments": {"q": 1}}]}])
    assert calls(found, request) == [("mcp__orch", "ask", {"q": 1})]


def test_broken_arguments_go_over_the_wire_as_they_are() -> None:
    found = script(turns=[{"calls": [{"name": "Bash", "raw": '{"command": '}]}])
    request = asked()
    words = said(play(found, request).turn, request, number=0, send="s", at=0)
    assert words.calls[0].arguments == '{"command": '
    for form in FORMS.values():
        assert form.render(words, stream=True).frames
        assert json.loads(form.render(words, stream=False).frames[0])


def test_counts_follow_from_lengths_unless_they_are_given() -> None:
    found = script(turns=[{"text": "x" * 400}])
    short, long = asked("a"), asked("a" * 4000)
    counts = [said(play(found, one).turn, one, number=0, send="s", at=0).counts for one in (short, long)]
    assert counts[1].input_tokens - counts[0].input_tokens == pytest.approx(1000, abs=1)
    assert counts[0].output_tokens == 100
    given = script(turns=[{"text": "x", "usage": {"input_tokens": 5, "cache_read_tokens": 3}}])
    counted = said(play(given, short).turn, short, number=0, send="s", at=0)
    assert (counted.counts.input_tokens, counted.counts.cache_read_tokens) == (5, 3)
    usage = json.loads(messages.render(counted, stream=False).frames[0])["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (2, 3)


@given(st.text(max_size=10_000))
def test_pieces_put_together_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


# ---- faults and sessions


def test_an_order_strikes_the_nth_send_and_as_often_as_it_says() -> None:
    plan = FaultPlan((Order.model_validate({"kind": "cut", "nth": 2, "times": 2}),))
    assert [plan.take(asked(), 0, {}) is not None for _ in range(5)] == [False, True, True, False, False]
    assert plan.standing() == []


def test_an_order_waits_for_the_sends_that_it_is_for() -> None:
    order = {"kind": "cut", "turn": 1, "when": {"contains": "fix"}, "times": None}
    plan = FaultPlan((Order.model_validate(order),))
    others = [asked("other", said=called(0)), asked("fix"), asked("fix", said=called(0, 1))]
    assert [plan.take(one, one.turn, {}) for one in others] == [None] * 3
    assert all(plan.take(asked("fix", said=called(0)), 1, {}) is not None for _ in range(3))


def test_a_session_is_the_task_then_the_clients_own_then_the_words() -> None:
    assert session_of({"x-task-id": "t", "session-id": "s"}, "fix") == "t"
    assert session_of({"session-id": "s"}, "fix") == "s"
    assert session_of({}, "fix") == session_of({}, "fix") != session_of({}, "mend")


# ---- what is refused


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (Dialect.MESSAGES, {"messages": []}),
        (Dialect.MESSAGES, {"messages": ["x"]}),
        (Dialect.MESSAGES, {"messages": {}}),
        (Dialect.MESSAGES, {"messages": [{"role": "user", "content": [1]}]}),
        (Dialect.RESPONSES, {"input": []}),
        (Dialect.RESPONSES, {"input": 7}),
        (Dialect.RESPONSES, {"input": "x", "tools": [1]}),
        (Dialect.CHAT, {}),
        (Dialect.CHAT, {"messages": [{"role": "assistant", "tool_calls": [1]}]}),
    ],
)
def test_a_request_that_is_none_is_refused(dialect: Dialect, body: Any) -> None:
    with pytest.raises(NotUnderstood):
        FORMS[dialect].read(body)


@pytest.mark.parametrize(
    ("call", "pointer"),
    [
        ({}, "/conversations/0/turns/0/calls/0"),
        ({"name": "a", "run": "b"}, "/conversations/0/turns/0/calls/0"),
        ({"name": "a", "args": {}}, "/conversations/0/turns/0/calls/0/args"),
    ],
)
def test_a_script_with_a_mistake_is_refused_with_its_place(
    tmp_path: Path, call: dict[str, Any], pointer: str
) -> None:
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"conversations": [{"turns": [{"calls": [call]}]}]}))
    with pytest.raises(Refused) as refused:
        load(path)
    assert [fault.pointer for fault in refused.value.problems] == [pointer]


# ---- what the documentation says

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "develop-with-the-model-server.md"


def test_the_script_in_the_documentation_is_one() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    found = Script.model_validate_json(example)
    assert calls(found, asked("please fix the mean", tools=["run_command", "write_file"])) == [
        (None, "run_command", {"command": "cat test_stats.py"})
    ]
    second = asked("please fix the mean", said=called(0), tools=["Bash"])
    assert [name for _, name, _ in calls(found, second)] == ["Bash"]
    assert play(found, asked("other", said=[spoken("Nothing to do."), user("again")])).turn.text


@pytest.mark.parametrize(("task", "turns"), [("fix the mean", (0, 1)), ("something else", ())])
def test_the_script_in_the_documentation_ends_the_engine_as_well(task: str, turns: tuple[int, ...]) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    found = Script.model_validate_json(example)
    tools = ["run_command", "attempt_completion"]

    text = play(found, asked(task, said=called(*turns), tools=tools)).turn.text
    reminded = asked(task, said=[*called(*turns), spoken(text), user(prompt.NO_CALL)], tools=tools)

    assert text
    assert [name for _, name, _ in calls(found, reminded)] == ["attempt_completion"]


def test_every_fault_is_documented() -> None:
    text = PAGE.read_text("utf-8").partition("## Faults")[2].partition("## What was sent")[0]
    assert {kind for kind in Kind if f"`{kind}`" not in text} == set()
