"""Searching with git grep and with ripgrep gives the same lines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.workspace import WorkspaceRefusal
from orchestrator.workspaces.sandbox import Sandbox
from orchestrator.workspaces.workspace import Workspace
from tests.integration.repositories import installation, owner, path_without_bubblewrap, repository

FILES = {
    ".gitignore": "ignored\n*.log\n",
    ".hidden/x.py": "def find(): ...\n",
    "a.py": "one\ndef find(self):\nthree\n",
    "src/b.py": "def find(x):\n    return find(x)\n",
    "src/deep/c.py": "find\r\n",
    "src/b.txt": "find me\n",
    "src/[odd]/d*.py": "find\n",
    "!odd.py": "find\n",
    "ignored/e.py": "find\n",
    "x.log": "find\n",
}


def ripgrep() -> Path | None:
    """On PATH, or where `scripts/install-agents` has put one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "orchestrator" / "agents"
    found = shutil.which("rg") or next(iter(sorted(cache.glob("codex-*/**/codex-path/rg"))), None)
    return Path(found) if found else None


def opened(tmp_path: Path, sandbox: Sandbox) -> Workspace:
    made = installation(tmp_path / "root", sandbox=sandbox)
    base = made.fetch(str(repository(tmp_path / "source", {"a.py": FILES["a.py"]})), None)
    workspace = made.open(owner(), base.mirror, base.commit)
    for name, text in FILES.items():
        workspace.write(name, text)
    (workspace.tree / "binary.py").write_bytes(b"find\0")
    (workspace.tree / "link.py").symlink_to("a.py")
    os.mkfifo(workspace.tree / "pipe.py")
    return workspace


@pytest.fixture(params=["git grep", "ripgrep", "ripgrep without a sandbox"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    program = ripgrep()
    kind = request.param
    path = os.environ["PATH"]
    if "without" in kind:
        path = path_without_bubblewrap(tmp_path)
    read_only = []
    if "ripgrep" in kind:
        if program is None:
            pytest.skip("NOT TESTED HERE: there is no ripgrep (rg) on this machine")
        (tmp_path / "programs-of-ours" / "bin").mkdir(parents=True)
        shutil.copy(program, tmp_path / "programs-of-ours" / "bin" / "rg")
        read_only = [tmp_path / "programs-of-ours"]
    sandbox = Sandbox(tmp_path / "sandbox", path=path, read_only=read_only)
    if "without" not in kind and sandbox.kind != "bubblewrap":
        pytest.skip(f"NOT TESTED HERE: {sandbox.warning}")
    if kind == "git grep" and sandbox.finds("rg"):
        sandbox.finds = lambda _program: False  # type: ignore[method-assign]
    assert sandbox.finds("rg") == ("ripgrep" in kind)
    return opened(tmp_path, sandbox)


Found = Callable[..., list[str]]


@pytest.fixture
def found(workspace: Workspace) -> Found:
    def search(pattern: str, path: str = ".", glob: str | None = None) -> list[str]:
        return sorted(f"{m.path}:{m.line}" for m in workspace.search(pattern, path, glob))

    return search


def test_text_files_are_searched_by_line_ignored_ones_are_not(found: Found) -> None:
    everywhere = ["!odd.py:1", ".hidden/x.py:1", "a.py:2", "src/[odd]/d*.py:1", "src/b.py:1", "src/b.py:2"]
    assert found("find") == [*everywhere, "src/b.txt:1", "src/deep/c.py:1"]
    assert found(r"^def \w+\(self\):$") == ["a.py:2"]
    assert found(r"find(?=\(x\):)") == ["src/b.py:1"]
    assert found("nothing like it") == []


def test_a_path_and_a_glob_narrow_it_and_their_signs_are_taken_literally(found: Found) -> None:
    assert found("find", "src/deep") == ["src/deep/c.py:1"]
    assert found("find", "src", "*.txt") == ["src/b.txt:1"]
    assert found("find", ".", "src/*.py") == ["src/b.py:1", "src/b.py:2"]
    assert found("find", "src", "deep/*.py") == ["src/deep/c.py:1"]
    assert found("find", "src/[odd]") == ["src/[odd]/d*.py:1"]
    assert found("find", ".", "!odd.py") == ["!odd.py:1"]
    assert found("find", "a.py") == ["a.py:2"]
    assert found("find", "a.py", "*.txt") == []
    assert found("find", "missing") == []
    assert found("find", "pipe.py") == []


def test_lines_are_shown_without_their_ends_and_bounded(workspace: Workspace) -> None:
    assert [match.text for match in workspace.search("find", "src/deep", None)] == ["find"]
    workspace.write("many", "x\n" * 1000)
    assert len(workspace.search("x", "many", None)) == 50
    workspace.write("wide", "y" * 1_000_000)
    (match,) = workspace.search("y", "wide", None)
    assert len(match.text) == 500


def test_a_pattern_that_is_none_is_refused_and_an_option_is_a_pattern(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceRefusal, match="the search failed"):
        workspace.search("(", ".", None)
    assert workspace.search("--files", ".", None) == []
    with pytest.raises(WorkspaceRefusal):
        workspace.search("find", "../..", None)


def test_files_of_settings_in_the_tree_change_nothing(workspace: Workspace, found: Found) -> None:
    for name in (".ignore", ".rgignore", ".ripgreprc"):
        workspace.write(name, "*\n")
    assert "a.py:2" in found("find")
