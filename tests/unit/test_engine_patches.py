from __future__ import annotations

import contextlib
import difflib
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from orchestrator.core.assignment import Stop
from orchestrator.core.workspace import WorkspaceRefusal
from orchestrator.engine.patches import FilePatch, PatchRefused, apply, parse
from orchestrator.engine.ports import ToolResult
from orchestrator.engine.tools.patch import APPLY_PATCH
from orchestrator.engine.tools.tool import ToolContext
from tests.engine_world import FolderWorkspace

CONTEXT = ToolContext("id", Stop(), lambda _: None, timedelta(seconds=20))
OLD = "one\ntwo\nthree\nfour\nfive\nsix\n"

lines = st.lists(
    st.sampled_from(
        ["a", "b", "", " ", "--", "-- x", "++ y", "+", "@@ -1 +1 @@", "\\", "\r", "\u2028", "\f"]
    ),
    max_size=12,
)


def patched(text: str, patch: str) -> str:
    (file,) = parse(patch, 10)
    return apply(text, file.hunks)


def hunk(body: str, header: str = "@@ -1,6 +1,6 @@") -> str:
    return f"--- a/f\n+++ b/f\n{header}\n{body}"


def git_diff(folder: Path, before: str, after: str) -> str:
    for name, text in (("before", before), ("after", after)):
        (folder / name).write_bytes(text.encode())
    words = ["git", "diff", "--no-index", "--no-color", "before", "after"]
    said = subprocess.run(words, cwd=folder, capture_output=True, check=False).stdout.decode()
    return said.replace("a/before", "a/f").replace("b/after", "b/f")


@settings(max_examples=150, deadline=None)
@given(before=lines, after=lines, ends=st.booleans(), ends_after=st.booleans())
def test_what_git_says_is_the_difference_makes_the_one_of_the_other(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[str],
    after: list[str],
    *,
    ends: bool,
    ends_after: bool,
) -> None:
    old = "\n".join(before) + ("\n" if ends and before else "")
    new = "\n".join(after) + ("\n" if ends_after and after else "")
    patch = git_diff(tmp_path_factory.getbasetemp(), old, new)
    if patch:
        assert patched(old, patch) == new


@given(before=st.lists(st.text("ab", max_size=2), max_size=30), after=st.lists(st.text("ab", max_size=2)))
def test_what_the_standard_library_says_is_the_difference_does_so_too(
    before: list[str], after: list[str]
) -> None:
    old, new = [[f"{line}\n" for line in side] for side in (before, after)]
    patch = "".join(difflib.unified_diff(old, new, "a/f", "b/f"))
    if patch:
        assert patched("".join(old), patch) == "".join(new)


@given(st.text(st.sampled_from("@-+ \\\n\r,1ab/di")), st.text("ab\n"))
def test_garbage_is_refused_or_applied_and_nothing_else(patch: str, text: str) -> None:
    for whole in (patch, hunk(patch), hunk(patch, "@@"), f"diff --git a/f b/f\n{patch}"):
        with contextlib.suppress(PatchRefused):
            for file in parse(whole, 10):
                apply(text, file.hunks)


def test_wrong_and_missing_counts_are_tolerated() -> None:
    body = " two\n-three\n+3\n four\n"
    for header in (
        "@@ -2,9 +2,1 @@",
        "@@ -2 +2 @@",
        "@@ -5,3 +5,3 @@ def f():",
        "@@",
        "@@ ... @@",
        "@@ f @@",
    ):
        assert patched(OLD, hunk(body, header)) == OLD.replace("three", "3")


def test_a_blank_line_stands_for_blank_context() -> None:
    assert patched("a\n\nb\n", hunk(" a\n\n-b\n+c\n", "@@ -1,3 +1,3 @@")) == "a\n\nc\n"


def test_several_hunks_follow_each_other_wherever_the_first_has_moved_to() -> None:
    patch = hunk("-two\n+2\n", "@@ -12 +12 @@") + "@@ -14 +14 @@\n-four\n+4\n"
    assert patched(OLD, patch) == OLD.replace("two", "2").replace("four", "4")


def test_what_does_not_fit_says_where_it_parts_from_the_file() -> None:
    cases = {
        hunk(" two\n-drei\n+3\n", "@@ -2,2 +2,2 @@"): "hunk 1 does not fit: at line 3 it wants 'drei', the",
        hunk("-x\n+y\n", "@@ -9 +9 @@"): "not in the file",
        hunk("-six\n-seven\n", "@@ -6,2 +5,0 @@"): "at line 7 it wants 'seven', the file ends before it",
        hunk("+x\n", "@@"): "says not where",
        hunk("+x\n", "@@ -40,0 +41 @@"): "no line 40",
        hunk(" one\n", "@@ -1 +1 @@"): "changes nothing",
        hunk("-one\n+1\nprose\n"): "begins with none of",
        hunk("-two\n+2\n", "@@ -2 +2 @@") + "@@ -1 +1 @@\n-one\n+1\n": "hunk 2 does not fit",
        "just words": "names no file",
        "--- a/f\n+++ b/f\n": "has no hunk",
        "--- a/f\n+++ b/g\n@@ -1 +1 @@\n-one\n+1\n": "f and g for one file",
        "diff --git a/x b/x\nGIT binary patch\n": "binary",
    }
    for patch, reason in cases.items():
        with pytest.raises(PatchRefused) as refused:
            patched(OLD, patch)
        assert reason in str(refused.value)


def test_lines_that_occur_twice_are_refused_unless_the_line_number_is_right() -> None:
    twice = "a\nb\na\nb\n"
    assert patched(twice, hunk("-b\n+c\n", "@@ -4 +4 @@")) == "a\nb\na\nc\n"
    with pytest.raises(PatchRefused, match="more than once"):
        patched(twice, hunk("-b\n+c\n", "@@ -9 +9 @@"))


def test_line_ends_and_a_missing_last_newline_are_part_of_the_text() -> None:
    with pytest.raises(PatchRefused, match=r"\\r\\n"):
        patched("one\r\ntwo\r\n", hunk("-one\n+1\n", "@@ -1 +1 @@"))
    assert patched("one\r\ntwo\r\n", hunk("-one\r\n+1\r\n", "@@ -1 +1 @@")) == "1\r\ntwo\r\n"
    with pytest.raises(PatchRefused, match="No newline"):
        patched("one", hunk("-one\n+1\n", "@@ -1 +1 @@"))
    end = "\\ No newline at end of file\n"
    assert patched("one", hunk(f"-one\n{end}+1\n", "@@ -1 +1 @@")) == "1\n"


def test_a_search_for_lines_stays_linear_in_a_hostile_file() -> None:
    text, old = "\n" * 2_000_000, "\n" * 400_000
    started = time.process_time()
    with pytest.raises(PatchRefused):
        apply(text, parse(hunk(f"{old}-x\n+y\n", "@@"), 1)[0].hunks)
    assert time.process_time() - started < 20  # a quadratic one takes hours


# The tool -------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> FolderWorkspace:
    made = FolderWorkspace(tmp_path / "workspace")
    made.write("a", "one\ntwo\n")
    made.write("b", "b\n")
    return made


@pytest.fixture
def run(workspace: FolderWorkspace) -> Callable[[str], ToolResult]:
    def apply_patch(patch: str) -> ToolResult:
        result = APPLY_PATCH.run(workspace, {"patch": patch}, CONTEXT)
        assert isinstance(result, ToolResult)
        return result

    return apply_patch


EDIT = "--- a/a\n+++ b/a\n@@ -1,2 +1,2 @@\n-one\n+1\n two\n"
ADD = "--- /dev/null\n+++ b/new/c\n@@ -0,0 +1 @@\n+c\n"
DELETE = "--- a/b\n+++ /dev/null\n@@ -1 +0,0 @@\n-b\n"
MOVE = "diff --git a/b b/d\nsimilarity index 100%\nrename from b\nrename to d\n"


def test_files_are_changed_made_deleted_and_moved_at_once(
    run: Callable[[str], ToolResult], workspace: FolderWorkspace
) -> None:
    said = run(f"Some words above.\n\n{EDIT}\n{ADD}{DELETE}-- \n2.39.5\n")
    assert said.text == "Applied the patch:\n- changed a\n- made new/c\n- deleted b"
    assert workspace.read("a", None, None) == "1\ntwo\n"
    assert workspace.read("new/c", None, None) == "c\n"
    assert not workspace.has("b")
    assert not run(MOVE.replace("a/b", "a/a").replace("from b", "from a")).is_error
    assert workspace.read("d", None, None) == "1\ntwo\n"


@pytest.mark.parametrize(
    "bad",
    [
        EDIT.replace("-one", "-eins"),
        EDIT.replace("a/a", "a/zz").replace("b/a", "b/zz"),
        ADD.replace("new/c", "a"),
        "--- a/a\n+++ /dev/null\n@@ -1 +0,0 @@\n-one\n",
        ADD.replace("new/c", "../outside"),
        ADD.replace("b/new/c", "/etc/outside"),
        EDIT.replace("a/a", "a/../../x").replace("b/a", "b/../../x"),
        MOVE.replace("to d", "to ../d"),
        MOVE.replace("to d", "to a"),
        DELETE,
    ],
)
def test_one_file_that_does_not_fit_leaves_all_as_they_were(
    run: Callable[[str], ToolResult], workspace: FolderWorkspace, bad: str
) -> None:
    good = "--- a/b\n+++ b/b\n@@ -1 +1 @@\n-b\n+B\n" if bad != DELETE else DELETE
    said = run(good + ADD.replace("new/c", "made") + bad)
    assert said.is_error
    assert said.text.startswith("apply_patch changed nothing: ")
    assert sorted(at.name for at in workspace.root.iterdir()) == ["a", "b"]
    assert workspace.read("b", None, None) == "b\n"
    assert not (workspace.root.parent / "outside").exists()


def test_a_write_that_is_refused_halfway_is_taken_back(tmp_path: Path) -> None:
    class Stubborn(FolderWorkspace):
        def write(self, path: str, text: str, /) -> None:
            if path == "last":
                raise WorkspaceRefusal("last is not a file but a pipe")
            super().write(path, text)

    workspace = Stubborn(tmp_path / "workspace")
    workspace.write("a", "one\ntwo\n")
    workspace.write("b", "b\n")
    patch = f"{EDIT}{MOVE}{ADD.replace('new/c', 'last')}"
    result = APPLY_PATCH.run(workspace, {"patch": patch}, CONTEXT)
    assert result == ToolResult("apply_patch changed nothing: last is not a file but a pipe", is_error=True)
    assert workspace.read("a", None, None) == "one\ntwo\n"
    assert workspace.read("b", None, None) == "b\n"


def test_the_longest_patch_is_bounded(run: Callable[[str], ToolResult]) -> None:
    assert "at most" in run(EDIT + "+x\n" * 4_000_000).text
    assert "at most 200" in run("".join(ADD.replace("new/c", f"f{number}") for number in range(201))).text


def test_removing_what_looks_like_a_header_is_no_header() -> None:
    patch = hunk("--- x\n+++ y\n z\n", "@@ -1,2 +1,2 @@")
    assert parse(patch, 9) == [FilePatch("f", "f", parse(patch, 9)[0].hunks)]
    assert patched("-- x\nz\n", patch) == "++ y\nz\n"
