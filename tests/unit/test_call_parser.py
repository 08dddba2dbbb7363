"""Tool calls written as tags: the rules by example, and that the cuts between pieces change nothing."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings, strategies as st

from orchestrator.core.assignment import Stop
from orchestrator.engine.parsing.calls import UNPARSED, CallParser
from orchestrator.engine.parsing.shape import shapes
from orchestrator.engine.ports import (
    CallAnnounced,
    CallCompleted,
    ModelRequest,
    Reply,
    StreamEvent,
    TextDelta,
    Usage,
)
from orchestrator.engine.providers.tagged import TaggedModel
from orchestrator.engine.tools import TOOLS
from tests.engine_world import call, text

SCHEMAS = [tool.schema() for tool in TOOLS.values()]
Found = list[str | tuple[str, dict[str, Any]]]


def found(events: Iterable[StreamEvent]) -> Found:
    """Texts, with what belongs together joined, and calls."""
    told: Found = []
    for event in events:
        match event:
            case TextDelta(text) if told and isinstance(told[-1], str):
                told[-1] += text
            case TextDelta(text):
                told.append(text)
            case CallCompleted(_, name, arguments):
                told.append((name, dict(arguments)))
    return told


def events(pieces: Iterable[str | bytes]) -> list[StreamEvent]:
    parser = CallParser(SCHEMAS)
    return [*(event for piece in pieces for event in parser.feed(piece)), *parser.finish()]


def parsed(*pieces: str | bytes) -> Found:
    return found(events(pieces))


def write(content: str, path: str = "a.py") -> str:
    return f"<write_file>\n<path>{path}</path>\n<content>\n{content}</content>\n</write_file>"


EXAMPLE = write("x\n", "inner.py")
CORPUS: dict[str, tuple[str, Found]] = {
    "text alone": ("a < b and <b>bold</b>, é 😀", ["a < b and <b>bold</b>, é 😀"]),
    "a call": (
        "I look.\n<read_file>\n<path>a.py</path>\n</read_file>\n",
        ["I look.\n", ("read_file", {"path": "a.py"}), "\n"],
    ),
    "numbers and truth values": (
        """<read_file><path> é.py
</path><start>3</start><end>null</end></read_file><edit_file><path>a</path>
<old>x</old><new></new><every>true</every></edit_file>""",
        [
            ("read_file", {"path": "é.py", "start": 3, "end": None}),
            ("edit_file", {"path": "a", "old": "x", "new": "", "every": True}),
        ],
    ),
    "no parameters": ("<list_files></list_files>", [("list_files", {})]),
    "two in a row": (
        "<read_file><path>a</path></read_file><read_file><path>b</path></read_file>",
        [("read_file", {"path": "a"}), ("read_file", {"path": "b"})],
    ),
    "the same closing tag in a file": (
        write("print('</content>')\n</content>\nmore</write_file>\n"),
        [("write_file", {"path": "a.py", "content": "print('</content>')\n</content>\nmore</write_file>\n"})],
    ),
    "a whole example of the call in a file": (
        write(f"Use:\n{EXAMPLE}\nand so on.\n") + "!",
        [("write_file", {"path": "a.py", "content": f"Use:\n{EXAMPLE}\nand so on.\n"}), "!"],
    ),
    "an example that never ends, and a call after it": (
        write("<write_file>\n<path>") + "<read_file><path>b</path></read_file>",
        [("write_file", {"path": "a.py", "content": "<write_file>\n<path>"}), ("read_file", {"path": "b"})],
    ),
    "the opening tag in prose": (
        "Call <read_file> with <path>, as in <read_file>x. <write_file>",
        ["Call <read_file> with <path>, as in <read_file>x. <write_file>"],
    ),
    "a parameter that is another's tag in a value": (
        write("<path>b</path> <content>c</content>\n<path>"),
        [("write_file", {"path": "a.py", "content": "<path>b</path> <content>c</content>\n<path>"})],
    ),
    "a call cut off": (
        "x<write_file><path>a</path><content>\nhalf</cont",
        ["x", ("write_file", {UNPARSED: "<write_file><path>a</path><content>\nhalf</cont"})],
    ),
    "half an opening": ("so <read_file>\n  <pa", ["so <read_file>\n  <pa"]),
    "JSON values": (
        '<attempt_completion><summary>Done.</summary><result>{"n": [1]}</result></attempt_completion>',
        [("attempt_completion", {"summary": "Done.", "result": {"n": [1]}})],
    ),
    "a value that is no JSON": (
        "<read_file><path>a</path><start> two </start></read_file>",
        [("read_file", {"path": "a", "start": "two"})],
    ),
    "an unknown tool": ("<rm><path>a</path></rm>", ["<rm><path>a</path></rm>"]),
}


@pytest.mark.parametrize("name", CORPUS)
def test_the_rules(name: str) -> None:
    text, expected = CORPUS[name]
    assert parsed(text) == expected


@pytest.mark.parametrize("name", CORPUS)
def test_every_cut_in_two_and_in_three_gives_the_same(name: str) -> None:
    text, expected = CORPUS[name]
    data = text.encode()
    for at in range(len(data) + 1):
        assert parsed(data[:at], data[at:]) == expected, at
    for first, second in itertools.combinations(range(0, len(data) + 1, 3), 2):
        assert parsed(data[:first], data[first:second], data[second:]) == expected, (first, second)


@pytest.mark.parametrize("name", CORPUS)
def test_byte_by_byte_gives_the_same(name: str) -> None:
    text, expected = CORPUS[name]
    assert parsed(*(text.encode()[at : at + 1] for at in range(len(text.encode())))) == expected
    assert parsed(*text) == expected


WORDS: Sequence[str] = (
    *("<read_file>", "</read_file>", "<write_file>", "</write_file>", "<path>", "</path>"),
    *("<content>", "</content>", "<start>", "</start>", "<list_files>", "</list_files>", "<depth>"),
    *("\n", "  ", "a.py", "3", "é😀", "<", ">", "</", "<<", "x" * 70, " " * 63, " " * 65, "\0", "\ud800"),
    *("<read_file><path>", "</content></write_file>", "</content>\n</write_file>"),
)
SOUP = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), max_size=40).map("".join)


@settings(deadline=None, max_examples=300)
@given(SOUP, st.randoms(use_true_random=False))
def test_random_cuts_of_random_soup_give_the_same(text: str, chance: random.Random) -> None:
    cuts = sorted(chance.randrange(len(text) + 1) for _ in range(chance.randrange(30)))
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    assert parsed(*pieces) == parsed(text)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_garbage_never_raises(data: bytes, size: int) -> None:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert parsed(*pieces) == parsed(data)


@settings(deadline=None, max_examples=300)
@given(
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=200).filter(
        lambda content: "</content>" not in content and "<write_file>" not in content
    )
)
def test_what_was_spelled_is_read_back(content: str) -> None:
    arguments = {"path": "a.py", "content": content}
    spelled = shapes(SCHEMAS)["write_file"].spelled(arguments)
    assert parsed(spelled) == [("write_file", arguments)]


def test_a_call_is_told_before_the_reply_has_ended() -> None:
    parser = CallParser(SCHEMAS)
    assert parser.feed("<read_file><path>a</path></read_file") == [CallAnnounced("read_file")]
    (completed,) = parser.feed(">")
    assert isinstance(completed, CallCompleted)
    assert completed.arguments == {"path": "a"}


def test_text_is_told_at_once_where_no_call_can_begin() -> None:
    parser = CallParser(SCHEMAS)
    assert parser.feed("a < b, <") == [TextDelta("a < b, ")]
    assert parser.feed("<r") == [TextDelta("<")]
    assert parser.feed("ope>") == [TextDelta("<rope>")]


def test_a_reply_cut_off_after_an_example_runs_nothing() -> None:
    text = f"<write_file><path>a</path><content>{EXAMPLE} and"
    parser = CallParser(SCHEMAS)
    told = found([*parser.feed(text), *parser.finish(cut_off=True)])
    assert told == [("write_file", {UNPARSED: text})]


def test_each_call_has_an_id_of_its_own() -> None:
    told = [event for event in events([EXAMPLE, EXAMPLE]) if isinstance(event, CallCompleted)]
    assert len({event.call_id for event in told}) == 2


def _seconds(text: str) -> float:
    pieces = [text[at : at + 4096] for at in range(0, len(text), 4096)]
    began = time.process_time()
    events(pieces)
    return time.process_time() - began


@pytest.mark.parametrize(
    "unit",
    [
        "x",
        "<",
        "<read_file>",
        "<read_file>" + " " * 64,
        "<write_file><path>",
        "</content>",
        "<write_file><path>a</path><content>",
        f"{EXAMPLE}\n",
    ],
)
def test_ten_times_the_input_takes_about_ten_times_as_long(unit: str) -> None:
    """A quadratic parser would need a hundred times; the rest is for a busy machine."""
    few, many = unit * (100_000 // len(unit)), unit * (1_000_000 // len(unit))
    once = max(min(_seconds(few) for _ in range(3)), 0.001)
    assert min(_seconds(many) for _ in range(2)) < 40 * once


def test_a_megabyte_of_content_comes_through_whole() -> None:
    content = "".join(f"line {n} </content> <é>\n" for n in range(45_000))
    text = write(content).encode()
    assert len(text) > 1_000_000
    pieces = [text[at : at + 4096] for at in range(0, len(text), 4096)]
    assert parsed(*pieces) == [("write_file", {"path": "a.py", "content": content})]


def test_without_tools_all_is_text() -> None:
    parser = CallParser([])
    assert found([*parser.feed(EXAMPLE), *parser.finish()]) == [EXAMPLE]


def test_names_that_are_no_tags_are_left_out() -> None:
    odd = {"name": "odd <name>", "input_schema": {"properties": {"a": {"type": "string"}}}}
    same = {"name": "look", "input_schema": {"properties": {"look": {"type": "string"}, "a>": {}}}}
    parser = CallParser([odd, same])
    assert found([*parser.feed("<look><look>x</look></look>"), *parser.finish()]) == [("look", {"look": "x"})]


def test_arguments_can_be_kept_as_json() -> None:
    deep = "[" * 100_000
    told = parsed(f"<attempt_completion><summary>x</summary><result>{deep}</result></attempt_completion>")
    json.dumps(told)


ASKED = ModelRequest("You are a test.", SCHEMAS, [{"role": "user", "content": [text("Hello.")]}])


@dataclass
class Talker:
    """Answers with pieces of text alone; keeps what it was asked."""

    pieces: Sequence[str]
    stop_reason: str = "end_turn"
    kind: Literal["live", "recorded"] = "live"
    name: str = "talker"
    asked: list[ModelRequest] = field(default_factory=list)

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], _: Stop, /) -> Reply:
        self.asked.append(request)
        for piece in self.pieces:
            listen(TextDelta(piece))
        return Reply((text("".join(self.pieces)),), self.stop_reason, Usage(), self.name)


def test_a_model_without_tool_calls_writes_them_as_tags() -> None:
    talker, heard = Talker(["Look: <read_fi", "le><path>a</path>", "</read_file>\n\n", EXAMPLE]), []
    reply = TaggedModel(talker).reply(ASKED, heard.append, Stop())
    assert reply.stop_reason == "tool_use"
    assert [block["type"] for block in reply.content] == ["text", "tool_use", "tool_use"]
    assert reply.content[0] == text("Look: ")
    assert reply.content[2]["input"] == {"path": "inner.py", "content": "x\n"}
    assert [type(event) for event in heard[:3]] == [TextDelta, CallAnnounced, CallCompleted]
    assert talker.asked[0].tools == ()
    for tool in TOOLS.values():
        assert f"<{tool.name}>" in talker.asked[0].system


def test_calls_and_results_go_back_as_text() -> None:
    turn = {"role": "assistant", "content": [call("t1", "write_file", path="a", content="x\n")]}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "</result>\nno", "is_error": True}
    messages = [*ASKED.messages, turn, {"role": "user", "content": [result, text("Go on.")]}]
    talker = Talker(["Well."])
    reply = TaggedModel(talker).reply(replace(ASKED, messages=messages), lambda _: None, Stop())
    assert (reply.content, reply.stop_reason) == ((text("Well."),), "end_turn")
    assert talker.asked[0].messages[1:] == [
        {
            "role": "assistant",
            "content": [
                text("<write_file>\n<path>a</path>\n<content>\nx\n</content>\n</write_file>"),
            ],
        },
        {
            "role": "user",
            "content": [
                text('<result of="write_file" error="true">\n<\\/result>\nno\n</result>'),
                text("Go on."),
            ],
        },
    ]


def test_a_call_cut_off_at_the_output_limit_is_refused_by_its_tool() -> None:
    reply = TaggedModel(Talker([EXAMPLE[:40]], "max_tokens")).reply(ASKED, lambda _: None, Stop())
    (block,) = reply.content
    assert reply.stop_reason == "max_tokens"
    assert "output limit" in str(TOOLS["write_file"].problem(block["input"]))
