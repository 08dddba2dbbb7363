from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from orchestrator.core.assignment import Stop
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.core.verdict import Ask, Done
from orchestrator.core.workspace import BackgroundOutput, Match
from orchestrator.engine.ports import ToolResult
from orchestrator.engine.tools import TOOLS
from orchestrator.engine.tools.talk import START_SUBTASK
from orchestrator.engine.tools.tool import Outcome, ToolContext
from orchestrator.engine.untrusted import RESULT_CHARACTERS, cut, marked, storable
from tests.engine_world import FolderWorkspace

Run = Callable[..., Outcome]


@pytest.fixture
def workspace(tmp_path: Path) -> FolderWorkspace:
    return FolderWorkspace(tmp_path / "workspace")


@pytest.fixture
def run(workspace: FolderWorkspace) -> Run:
    context = ToolContext("id", Stop(), lambda _: None, timedelta(seconds=20))
    return lambda name, **arguments: TOOLS[name].run(workspace, arguments, context)


def refused(outcome: Outcome) -> str:
    assert isinstance(outcome, ToolResult)
    assert outcome.is_error
    return outcome.text


def said(outcome: Outcome) -> str:
    assert isinstance(outcome, ToolResult)
    assert not outcome.is_error, outcome.text
    return outcome.text


def test_the_names_and_risks_of_all_tools_are_these() -> None:
    assert {tool.name: (tool.risk.value, tool.changes_files) for tool in TOOLS.values()} == {
        "read_file": ("read", False),
        "write_file": ("write", True),
        "edit_file": ("write", True),
        "apply_patch": ("write", True),
        "move_file": ("write", True),
        "delete_file": ("write", True),
        "list_files": ("read", False),
        "search_files": ("read", False),
        "run_command": ("execute", True),
        "read_background": ("talk", True),
        "stop_background": ("talk", True),
        "read_output": ("read", False),
        "update_plan": ("talk", False),
        "ask_followup_question": ("talk", False),
        "attempt_completion": ("talk", False),
    }


def test_every_schema_allows_only_what_it_names() -> None:
    for tool in TOOLS.values():
        schema = tool.schema()["input_schema"]
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is False
        assert "title" not in str(schema)


def test_a_range_of_lines_is_read_as_stored(run: Run, workspace: FolderWorkspace) -> None:
    workspace.write("a.txt", "1\r\n2\n3\n4\n")
    assert said(run("read_file", path="a.txt", start=2, end=3)).split("\n")[1:3] == ["2", "3"]
    assert "1\r\n" in said(run("read_file", path="a.txt"))
    refused(run("read_file", path="a.txt", start=3, end=2))
    refused(run("read_file", path="a.txt", start=0))


def test_a_long_file_is_cut_at_a_line_and_says_where_to_go_on(run: Run, workspace: FolderWorkspace) -> None:
    workspace.write("long", "".join(f"line {number}\n" for number in range(1, 20_000)))
    text = said(run("read_file", path="long"))
    assert len(text) < RESULT_CHARACTERS + 500
    following = int(text.rsplit("start=", 1)[1].rstrip("."))
    assert f"\nline {following - 1}\n</untrusted>" in text
    assert f"\nline {following}\n" in said(run("read_file", path="long", start=following))


def test_an_edit_replaces_exactly_one_place(run: Run, workspace: FolderWorkspace) -> None:
    workspace.write("a", "x = 1\ny = 1\n")
    assert "2 times" in refused(run("edit_file", path="a", old="1", new="2"))
    assert "does not occur" in refused(run("edit_file", path="a", old="z", new="2"))
    assert "the same" in refused(run("edit_file", path="a", old="x", new="x"))
    assert "no file" in refused(run("edit_file", path="b", old="x", new="y"))
    said(run("edit_file", path="a", old="x = 1", new="x = 3"))
    said(run("edit_file", path="a", old="1", new="3", every=True))
    assert workspace.read("a", None, None) == "x = 3\ny = 3\n"


def test_an_edit_that_would_fill_the_memory_is_refused(run: Run, workspace: FolderWorkspace) -> None:
    (workspace.root / "a").write_text("a" * 20_000)
    text = refused(run("edit_file", path="a", old="a", new="b" * 1000, every=True))
    assert "20,000 times" in text
    assert said(run("edit_file", path="a", old="a", new="bb", every=True)) == "Edited a in 20000 places."


def test_a_patch_of_many_large_files_is_refused(run: Run, workspace: FolderWorkspace) -> None:
    names = [f"{number}" for number in range(9)]
    for name in names:
        (workspace.root / name).write_text("a\n" * 1_000_000)
    patch = "".join(f"--- a/{name}\n+++ b/{name}\n@@ -1 +1 @@\n-a\n+b\n" for name in names)
    assert "patch fewer at once" in refused(run("apply_patch", patch=patch))
    assert {(workspace.root / name).read_text()[0] for name in names} == {"a"}


@pytest.mark.parametrize("header", ["@@ -{0} +1 @@", "@@ -1,{0} +1 @@", "@@ -1 +1,{0} @@"])
def test_a_patch_with_a_number_without_end_is_refused_or_used(
    run: Run, workspace: FolderWorkspace, header: str
) -> None:
    (workspace.root / "a").write_text("a\n")
    patch = f"--- a/a\n+++ b/a\n{header.format('9' * 5000)}\n-a\n+b\n"
    assert said(run("apply_patch", patch=patch)).startswith("Applied")


def test_an_edit_that_fails_for_its_line_ends_says_so(run: Run, workspace: FolderWorkspace) -> None:
    workspace.write("a", "one\r\ntwo\r\n")
    assert "\\r\\n" in refused(run("edit_file", path="a", old="one\ntwo", new="x"))


def test_files_are_written_and_deleted(run: Run) -> None:
    said(run("write_file", path="deep/er/a", content="1"))
    assert "deep/er/a" in said(run("list_files", depth=3))
    said(run("delete_file", path="deep/er/a"))
    refused(run("delete_file", path="deep/er/a"))


def test_what_leads_outside_is_refused(run: Run) -> None:
    refused(run("read_file", path="../../etc/passwd"))
    refused(run("write_file", path="/etc/x", content=""))
    refused(run("read_file", path="a\0b"))


def test_a_search_shows_path_line_and_text(run: Run, workspace: FolderWorkspace) -> None:
    workspace.write("b.py", "one\ntwo\n")
    workspace.write("a.txt", "two\n")
    assert "\na.txt:1: two\nb.py:2: two\n" in said(run("search_files", pattern="tw."))
    assert "a.txt" not in said(run("search_files", pattern="two", glob="*.py"))
    assert said(run("search_files", pattern="three")) == "Nothing matches."


def test_a_search_with_thousands_of_matches_is_cut(tmp_path: Path) -> None:
    class Everywhere(FolderWorkspace):
        def search(self, *_: object) -> list[Match]:
            return [Match("a", number, "x" * 10_000) for number in range(1, 5000)]

    context = ToolContext("id", Stop(), lambda _: None, timedelta(seconds=1))
    text = said(TOOLS["search_files"].run(Everywhere(tmp_path / "w"), {"pattern": "x"}, context))
    assert len(text) < RESULT_CHARACTERS + 500
    assert "4,799 more" in text


def test_a_failing_command_is_an_error_with_its_output(run: Run) -> None:
    text = refused(run("run_command", command="echo to out; echo to err >&2; exit 7"))
    assert text.startswith("exit code 7\n")
    assert "to out\nto err\n" in text


def test_ten_megabytes_of_output_are_cut_and_the_end_is_kept(run: Run) -> None:
    command = "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo the end"
    text = said(run("run_command", command=command))
    assert len(text) < RESULT_CHARACTERS + 500
    assert "characters left out" in text
    assert "\nthe end\n</untrusted>\n[10,000,009 characters in all" in text


def test_binary_output_is_no_obstacle(run: Run) -> None:
    text = said(run("run_command", command="printf '\\000\\377\\376 ok'"))
    assert " ok" in text
    assert "\0" not in text


def test_a_command_over_its_timeout_is_killed_and_that_is_said(run: Run) -> None:
    assert "killed after 1 seconds, its timeout" in refused(
        run("run_command", command="sleep 60", timeout_seconds=1)
    )


def test_the_workspace_s_longest_timeout_beats_the_model_s(workspace: FolderWorkspace) -> None:
    context = ToolContext("id", Stop(), lambda _: None, timedelta(milliseconds=200))
    arguments = {"command": "sleep 60", "timeout_seconds": 3000}
    assert "killed after 0.2 seconds" in refused(TOOLS["run_command"].run(workspace, arguments, context))


def test_a_question_and_a_completion_hand_the_step_back(run: Run) -> None:
    assert run("ask_followup_question", question="Which?", options=["a"]) == Ask("id", "Which?", ("a",))
    assert run("attempt_completion", summary="Done.", result={"n": 1}) == Done("Done.", {"n": 1})


def test_a_question_may_bring_its_own_answer_and_a_completion_its_evidence(run: Run) -> None:
    asked = run("ask_followup_question", question="Which?", options=["a", "b"], default="a")
    assert asked == Ask("id", "Which?", ("a", "b"), default="a")
    evidence = [{"what": "the tests pass", "how": "make test"}]
    claimed = run("attempt_completion", summary="Done.", result={"n": 1}, evidence=evidence)
    assert claimed == Done("Done.", {"n": 1, "evidence": evidence})


def test_a_subtask_is_asked_for_under_the_call_s_own_id(workspace: FolderWorkspace) -> None:
    context = ToolContext("call-7", Stop(), lambda _: None, timedelta(seconds=1))
    arguments = {"objective": "Write the docs.", "agent": "codex", "model": "m"}
    asked = START_SUBTASK.run(workspace, arguments, context)
    assert asked == SubtaskRequest("call-7", "Write the docs.", "codex", "m")
    refused(START_SUBTASK.run(workspace, {"objective": ""}, context))


def test_the_plan_is_noted_for_those_who_watch(workspace: FolderWorkspace) -> None:
    notes: list[tuple[str, Any]] = []
    context = ToolContext(
        "id",
        Stop(),
        lambda _: None,
        timedelta(seconds=1),
        on_note=lambda kind, data: notes.append((kind, data)),
    )
    steps = [{"text": "read", "status": "done"}, {"text": "write", "status": "in_progress"}]
    assert "1 of 2" in said(TOOLS["update_plan"].run(workspace, {"steps": steps}, context))
    assert notes == [("plan", {"steps": steps})]
    refused(TOOLS["update_plan"].run(workspace, {"steps": [{"text": "x", "status": "maybe"}]}, context))


def test_the_rest_of_a_long_output_is_kept_and_can_be_read(workspace: FolderWorkspace) -> None:
    context = ToolContext("call-1", Stop(), lambda _: None, timedelta(seconds=20))
    result = TOOLS["run_command"].run(workspace, {"command": "seq 1 20000"}, context)
    assert isinstance(result, ToolResult)
    assert "read_output shows the rest, call_id call-1" in result.text
    assert result.output is not None
    kept = {"call-1": result.output}
    context = ToolContext(
        "call-2",
        Stop(),
        lambda _: None,
        timedelta(seconds=1),
        read_output=lambda call, start, count: kept[call][start : start + count] if call in kept else None,
    )
    start = result.output.index("\n10000\n")
    assert "\n10000\n10001\n" in said(
        TOOLS["read_output"].run(workspace, {"call_id": "call-1", "start": start}, context)
    )
    beyond = {"call_id": "call-1", "start": 10**9}
    assert "ends before" in said(TOOLS["read_output"].run(workspace, beyond, context))
    refused(TOOLS["read_output"].run(workspace, {"call_id": "other"}, context))


def test_a_short_output_is_not_kept_twice(run: Run) -> None:
    result = run("run_command", command="echo short")
    assert isinstance(result, ToolResult)
    assert result.output is None


def test_ten_megabytes_of_arguments_are_refused_or_used_but_break_nothing(run: Run) -> None:
    huge = "x" * 10_000_000
    for name, arguments in {
        "run_command": {"command": huge},
        "search_files": {"pattern": huge},
        "read_file": {"path": huge},
        "ask_followup_question": {"question": huge},
        "attempt_completion": {"summary": huge},
        "apply_patch": {"patch": huge},
        "update_plan": {"steps": [{"text": huge, "status": "done"}]},
        "read_background": {"handle": huge},
    }.items():
        assert len(refused(run(name, **arguments))) < 3000


def test_a_file_is_moved_unless_something_is_there(run: Run, workspace: FolderWorkspace) -> None:
    workspace.write("a", "1\n")
    workspace.write("b", "2\n")
    refused(run("move_file", path="a", to="b"))
    refused(run("move_file", path="a", to="../b"))
    refused(run("move_file", path="missing", to="c"))
    said(run("move_file", path="a", to="deep/er/a"))
    assert workspace.read("deep/er/a", None, None) == "1\n"
    assert not workspace.has("a")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(
    [
        "patch",
        "steps",
        "handle",
        "call_id",
        "to",
        "default",
        "path",
        "content",
        "old",
        "new",
        "every",
        "start",
        "end",
        "pattern",
        "question",
        "summary",
    ]
)


@given(
    tool=st.sampled_from([tool for tool in TOOLS.values() if tool.name != "run_command"]),
    arguments=st.dictionaries(names | st.text(max_size=5), json_values, max_size=4),
)
def test_no_arguments_make_a_tool_raise(tool: Any, arguments: dict[str, Any]) -> None:
    context = ToolContext("id", Stop(), lambda _: None, timedelta(seconds=1))
    outcome = tool.run(Everything(), arguments, context)
    assert isinstance(outcome, ToolResult | Ask | Done)


class Everything:
    """Has every file and finds everything; only types are looked at here."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Any] = {"read": "text", "list": ["a"], "search": [Match("a", 1, "text")]}
        answers["read_background"] = answers["stop_background"] = BackgroundOutput("", 0, running=True)
        return lambda *_, **__: answers.get(name)


@given(st.text(), st.text())
def test_marked_text_can_not_leave_its_tags(source: str, text: str) -> None:
    wrapped = marked(source, text + "</untrusted>" + text)
    assert wrapped.count("</untrusted>") == 1
    assert wrapped.endswith("</untrusted>")
    assert wrapped.count("\n") >= 2
    assert wrapped.split("\n")[0].count('"') == 2


@given(st.text(alphabet=st.characters()))
def test_storable_text_has_no_nul_and_encodes(text: str) -> None:
    stored = storable(text)
    assert "\0" not in stored
    stored.encode("utf-8")
    assert storable(stored) == stored


@given(st.lists(st.integers(0, 10**8).map(str), min_size=1), st.integers(min_value=40, max_value=80))
def test_cut_text_keeps_both_ends_and_no_half_of_a_word(words: list[str], limit: int) -> None:
    """A secret that is cut in two would not be found by what looks for it in what is kept."""
    shown = cut(" ".join(words), limit)
    if len(" ".join(words)) <= limit:
        assert shown == " ".join(words)
        return
    head, _, rest = shown.partition("\n[…")
    tail = rest.partition("…]\n")[2]
    assert head.split() == words[: len(head.split())] != []
    assert tail.split() == words[-len(tail.split()) :] != []


def test_of_a_word_longer_than_any_secret_both_ends_are_shown() -> None:
    shown = cut("x" * 100_000 + "y" * 100_000)
    assert shown.startswith("x" * 10_000)
    assert shown.endswith("y" * 20_000)
