"""Six ways in which plain git over a hostile tree ran the tree's code, and every path out of a tree."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.workspace import WorkspaceRefusal
from orchestrator.engine.ports import ToolResult
from orchestrator.engine.tools.patch import APPLY_PATCH
from orchestrator.engine.tools.tool import ToolContext
from orchestrator.workspaces.checkouts import Workspaces
from orchestrator.workspaces.files import Files
from orchestrator.workspaces.workspace import Workspace
from tests.integration.repositories import git, installation, owner, repository, without_bubblewrap

ATTACKS = {
    "core.fsmonitor": "{evil}",
    "filter.x.clean": "{evil}; cat",
    "filter.x.smudge": "{evil}; cat",
    "filter.x.process": "{evil}",
    "filter.x.required": "true",
    "core.hooksPath": "{hooks}",
    "diff.external": "{evil}",
    "diff.x.textconv": "{evil}; cat",
    "merge.x.driver": "{evil}",
    "core.sshCommand": "{evil}",
    "gpg.program": "{evil}",
    "commit.gpgSign": "true",
    "core.pager": "{evil}",
    "core.editor": "{evil}",
    "core.alternateRefsCommand": "{evil}",
    "credential.helper": "!{evil}",
    "uploadpack.packObjectsHook": "{evil}",
}
PLANT = """set -e
mkdir -p "$1"; cd "$1"
[ -e .git/config ] || {{ rm -rf .git; git init -q .; }}
printf '* filter=x diff=x merge=x\\n' > .gitattributes
echo content > planted; git add -A; git -c core.hooksPath=/dev/null commit -qm x
{settings}
"""


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A program that leaves a trace outside of the workspace whenever it runs outside of the sandbox."""
    program = tmp_path / "evil"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >> {tmp_path}/trace\n')
    program.chmod(0o755)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "post-checkout", "post-index-change", "reference-transaction", "post-commit"):
        (hooks / name).symlink_to(program)
    return program


@pytest.fixture
def workspaces(tmp_path: Path) -> Workspaces:
    made = installation(tmp_path / "root")
    if made.sandbox.kind != "bubblewrap":
        pytest.skip(f"NOT TESTED HERE: {made.sandbox.warning}")
    return made


def plant(workspace: Workspace, folder: str, evil: Path) -> None:
    settings = "\n".join(
        f"git config {name} '{value.format(evil=evil, hooks=evil.parent / 'hooks')}'"
        for name, value in ATTACKS.items()
    )
    ran = workspace.run(
        f"set -- {folder}\n" + PLANT.format(settings=settings),
        timeout=timedelta(seconds=20),
        on_output=lambda _text: None,
        stop=Stop(),
    )
    assert ran.exit_code == 0, ran.output


def work(workspace: Workspace, workspaces: Workspaces) -> None:
    """All that is ever done with git over a tree."""
    first = workspace.checkpoint("one")
    assert first is not None
    workspace.write("more", "more\n")
    second = workspace.checkpoint("two")
    assert second is not None
    workspace.restore(first)
    workspace.restore(second)
    workspace.search("content", ".", None)
    result = workspace.result("Work", {"Step": "step-1"}, workspace.start)
    assert result is not None
    assert "content" in workspace.patch(workspace.start, result)
    workspaces.remove(workspace.owner)


@pytest.mark.parametrize("folder", [".", "nested", "nested/deeper"])
def test_nothing_planted_in_a_tree_runs_outside_the_sandbox(
    workspaces: Workspaces, evil: Path, tmp_path: Path, folder: str
) -> None:
    base = workspaces.fetch(str(repository(tmp_path / "source", {"a": "a\n"})), None)
    workspace = workspaces.open(owner(), base.mirror, base.commit)
    plant(workspace, folder, evil)
    work(workspace, workspaces)
    assert not (tmp_path / "trace").exists()


def test_the_same_tree_is_dangerous_to_plain_git(workspaces: Workspaces, evil: Path, tmp_path: Path) -> None:
    """The control: without this the test above could pass because nothing was planted."""
    base = workspaces.fetch(str(repository(tmp_path / "source", {"a": "a\n"})), None)
    workspace = workspaces.open(owner(), base.mirror, base.commit)
    plant(workspace, "nested", evil)
    subprocess.run(["git", "status"], cwd=workspace.tree / "nested", capture_output=True, check=False)
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("folder", [".", "nested"])
def test_even_without_bubblewrap_our_own_git_runs_nothing_of_the_tree(
    evil: Path, tmp_path: Path, folder: str
) -> None:
    workspaces = installation(tmp_path / "root", sandbox=without_bubblewrap(tmp_path / "plain"))
    base = workspaces.fetch(str(repository(tmp_path / "source", {"a": "a\n"})), None)
    workspace = workspaces.open(owner(), base.mirror, base.commit)
    plant(workspace, folder, evil)
    (tmp_path / "trace").unlink(missing_ok=True)  # planting itself ran there
    work(workspace, workspaces)
    assert not (tmp_path / "trace").exists()


def test_a_hostile_source_repository_runs_nothing_when_it_is_fetched(
    workspaces: Workspaces, evil: Path, tmp_path: Path
) -> None:
    source = repository(tmp_path / "source", {"a": "a\n", ".gitattributes": "* filter=x diff=x\n"})
    for name, value in ATTACKS.items():
        git(source, "config", name, value.format(evil=evil, hooks=evil.parent / "hooks"))
    (tmp_path / "trace").unlink(missing_ok=True)
    base = workspaces.fetch(str(source), None)
    workspace = workspaces.open(owner(), base.mirror, base.commit)
    workspace.write("planted", "content\n")
    work(workspace, workspaces)
    assert not (tmp_path / "trace").exists()


def test_an_agent_cannot_change_the_settings_of_its_repository(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    base = workspaces.fetch(str(repository(tmp_path / "source", {"a": "a\n"})), None)
    workspace = workspaces.open(owner(), base.mirror, base.commit)
    before = (workspace.tree.parent / "git" / "config").read_text()
    ran = workspace.run(
        "git config core.fsmonitor x; echo x >> /git/config; rm -f /git/config; "
        "mv /git/config /git/c; ls /own",
        timeout=timedelta(seconds=20),
        on_output=lambda _text: None,
        stop=Stop(),
    )
    assert ran.exit_code != 0
    assert (workspace.tree.parent / "git" / "config").read_text() == before


# Files -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["openat2", "by hand"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    tree = tmp_path / "tree"
    (tree / "src").mkdir(parents=True)
    (tree / "src/a.txt").write_text("1\n2\n3\n")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "folder").mkdir()
    made = Files(tree)
    if request.param == "by hand":
        made._openat2 = False
    elif not made._openat2:
        pytest.skip("NOT TESTED HERE: this kernel has no openat2")
    return made


@pytest.mark.parametrize(
    "path",
    ["../secret", "/etc/passwd", "src/../../secret", "away/secret", "file", "chain", "proc", "\0", "src/\0"],
)
def test_no_path_leads_outside(files: Files, tmp_path: Path, path: str) -> None:
    (files.root / "away").symlink_to(tmp_path)
    (files.root / "file").symlink_to(tmp_path / "secret")
    (files.root / "chain").symlink_to("src/up")
    (files.root / "src/up").symlink_to("../../secret")
    (files.root / "proc").symlink_to(f"/proc/self/fd/{os.open(tmp_path / 'secret', os.O_RDONLY)}")
    with pytest.raises(WorkspaceRefusal):
        files.read(path)
    with pytest.raises(WorkspaceRefusal):
        files.write(path, "mine")
    with pytest.raises(WorkspaceRefusal):
        files.names(path, 1)
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "away/secret", "src/../../x", "\0", "\ud800"])
def test_nothing_is_moved_out_or_in(files: Files, tmp_path: Path, path: str) -> None:
    (files.root / "away").symlink_to(tmp_path)
    for source, target in ((path, "in"), ("src/a.txt", path)):
        with pytest.raises(WorkspaceRefusal):
            files.move(source, target)
    assert (tmp_path / "secret").read_text() == "secret"
    assert sorted(at.name for at in files.root.iterdir()) == ["away", "src"]
    assert not (tmp_path / "x").exists()


def test_what_is_moved_is_the_thing_itself_and_never_what_lies_at_its_goal(
    files: Files, tmp_path: Path
) -> None:
    (files.root / "link").symlink_to(tmp_path / "secret")
    files.move("link", "new/link")
    assert (files.root / "new/link").is_symlink()
    files.move("src", "moved")
    assert files.read("moved/a.txt") == "1\n2\n3\n"
    os.mkfifo(files.root / "pipe")
    for source, target in (
        ("moved/a.txt", "pipe"),
        ("moved/a.txt", "new/link"),
        ("moved", "new"),
        ("moved", "moved/inner"),
        ("missing", "x"),
        (".", "x"),
        ("moved", "."),
    ):
        with pytest.raises(WorkspaceRefusal):
            files.move(source, target)
    assert files.read("moved/a.txt") == "1\n2\n3\n"


def test_deleting_a_link_deletes_the_link(files: Files, tmp_path: Path) -> None:
    (files.root / "away").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "x").write_text("x")
    with pytest.raises(WorkspaceRefusal):
        files.delete("away/x")
    files.delete("away")
    assert (tmp_path / "folder" / "x").exists()
    assert not (files.root / "away").is_symlink()


def test_links_within_the_tree_lead_where_they_say(files: Files) -> None:
    if not files._openat2:
        pytest.skip("resolved by hand no link is followed at all")
    (files.root / "link").symlink_to("src/a.txt")
    (files.root / "folder").symlink_to("src")
    assert files.read("link", 2, 2) == "2\n"
    files.write("link", "new\n")
    files.write("folder/b.txt", "b\n")
    assert (files.root / "link").is_symlink()
    assert files.read("src/a.txt") == "new\n"
    assert files.read("src/b.txt") == "b\n"


def test_a_folder_that_turns_into_a_link_at_any_moment_leads_nowhere(files: Files, tmp_path: Path) -> None:
    """The race that a check by string loses."""
    outside = tmp_path / "folder"
    (outside / "a.txt").write_text("secret")
    swap, link, done = files.root / "swap", files.root / "link", threading.Event()
    swap.mkdir()
    (swap / "a.txt").write_text("inside")
    link.symlink_to(outside)
    libc = ctypes.CDLL(None)

    def turn() -> None:
        while not done.is_set():
            libc.renameat2(-100, bytes(swap), -100, bytes(link), 2)  # the two change places at once

    turner = threading.Thread(target=turn)
    turner.start()
    try:
        for _ in range(300):
            try:
                assert files.read("swap/a.txt") == "inside"
                files.write("swap/a.txt", "inside")
                files.move("swap/a.txt", "swap/b.txt")
            except WorkspaceRefusal:
                continue
            finally:
                with contextlib.suppress(WorkspaceRefusal):
                    files.move("swap/b.txt", "swap/a.txt")
    finally:
        done.set()
        turner.join()
    assert (outside / "a.txt").read_text() == "secret"
    assert sorted(at.name for at in outside.iterdir()) == ["a.txt"]


def test_no_patch_leads_outside_and_a_refused_one_changes_nothing(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    base = workspaces.fetch(str(repository(tmp_path / "source", {"a": "a\n"})), None)
    workspace = workspaces.open(owner(), base.mirror, base.commit)
    (tmp_path / "secret").write_text("secret\n")
    (workspace.tree / "away").symlink_to(tmp_path)
    (workspace.tree / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(workspace.tree / "pipe")
    context = ToolContext("id", Stop(), lambda _: None, timedelta(seconds=20))
    good = "--- a/a\n+++ b/a\n@@ -1 +1 @@\n-a\n+b\n"
    for path in (
        "../secret",
        "away/secret",
        "link",
        "pipe",
        "/etc/hostname",
        ".",
        "a/b",
        "x" * 300,
        "\ud800",
    ):
        for bad in (
            f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-secret\n+mine\n",
            f"--- a/{path}\n+++ /dev/null\n@@ -1 +0,0 @@\n-secret\n",
            f"diff --git a/c b/c\nrename from a\nrename to {path}\n",
        ):
            result = APPLY_PATCH.run(
                workspace, {"patch": f"{good}{bad}" if bad[:4] == "--- " else bad}, context
            )
            assert isinstance(result, ToolResult)
            assert result.is_error, (bad, result.text)
    assert (tmp_path / "secret").read_text() == "secret\n"
    assert workspace.read("a") == "a\n"


def special_files(tree: Path) -> Iterator[str]:
    os.mkfifo(tree / "pipe")
    yield "pipe"
    yield "src"


def test_what_is_not_a_text_file_is_refused_at_once(files: Files) -> None:
    for name in special_files(files.root):
        with pytest.raises(WorkspaceRefusal):
            files.read(name)
        with pytest.raises(WorkspaceRefusal):
            files.write(name, "x")
    (files.root / "binary").write_bytes(b"a\0b")
    (files.root / "latin").write_bytes(b"caf\xe9")
    with (files.root / "huge").open("wb") as huge:
        huge.truncate(10 * 1024**3)
    for name in ("binary", "latin", "huge", "missing", "src/a.txt/x", "x" * 300):
        with pytest.raises(WorkspaceRefusal):
            files.read(name)


def test_lines_are_counted_from_one_and_both_ends_belong(files: Files) -> None:
    assert files.read("src/a.txt", 2, None) == "2\n3\n"
    assert files.read("src/a.txt", None, 1) == "1\n"
    assert files.read("/workspace/src/a.txt", 3, 99) == "3\n"
    for start, end in ((4, None), (3, 2)):
        with pytest.raises(WorkspaceRefusal):
            files.read("src/a.txt", start, end)


def test_a_write_is_whole_and_keeps_the_mode(files: Files) -> None:
    (files.root / "src/a.txt").chmod(0o755)
    files.write("src/a.txt", "new\r\n")
    assert (files.root / "src/a.txt").read_bytes() == b"new\r\n"
    assert os.access(files.root / "src/a.txt", os.X_OK)
    files.write("made/on/the/way.txt", "x")
    assert files.names(".", 9) == [
        "made/",
        "made/on/",
        "made/on/the/",
        "made/on/the/way.txt",
        "src/",
        "src/a.txt",
    ]
