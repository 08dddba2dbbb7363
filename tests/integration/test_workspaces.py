from __future__ import annotations

import os
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.workspace import CommandResult, Match, WorkspaceFault, WorkspaceRefusal
from orchestrator.workspaces import room
from orchestrator.workspaces.checkouts import READY, Workspaces
from orchestrator.workspaces.errors import CommitMissing, MergeConflict, RefMoved, TreeRefused
from orchestrator.workspaces.integrate import Conflict, Integrated, find_step, integrate, move, push
from orchestrator.workspaces.remotes import Reach
from orchestrator.workspaces.room import RoomBounds
from orchestrator.workspaces.workspace import AttemptOwner, Workspace
from tests.integration.repositories import commit, git, installation, owner, repository, without_bubblewrap

FILES = {"README.md": "hello\n", "src/app.py": "def f():\n    return 1\n", "src/deep/er/x.txt": "x\n"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return repository(tmp_path / "source", FILES)


@pytest.fixture(params=["bubblewrap", "none"])
def workspaces(request: pytest.FixtureRequest, tmp_path: Path) -> Workspaces:
    """Everything must hold with the sandbox and, but for what only it can do, without."""
    if request.param == "none":
        return installation(tmp_path / "root", sandbox=without_bubblewrap(tmp_path / "plain"))
    made = installation(tmp_path / "root")
    if made.sandbox.kind != "bubblewrap":
        pytest.skip(f"NOT TESTED HERE: {made.sandbox.warning}")
    return made


def opened(workspaces: Workspaces, source: Path | None, step: str = "step-1") -> Workspace:
    base = workspaces.fetch(str(source) if source else None, None)
    return workspaces.open(owner(step), base.mirror, base.commit)


def ran(workspace: Workspace, command: str) -> CommandResult:
    return workspace.run(command, timeout=timedelta(seconds=30), on_output=lambda _text: None, stop=Stop())


def test_a_checkout_holds_the_base_and_leaves_no_trace_of_ours_in_a_commit(
    workspaces: Workspaces, source: Path
) -> None:
    workspace = opened(workspaces, source)
    assert workspace.read("src/app.py") == FILES["src/app.py"]
    assert workspace.list(".", 2) == ["README.md", "src/", "src/app.py", "src/deep/"]
    assert workspace.checkpoint("nothing") is None
    assert workspace.result("nothing", {}, workspace.start) is None


def test_a_command_that_fills_the_disk_is_ended_and_its_workspace_with_it(
    workspaces: Workspaces, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "AGAIN", 1.0)  # other tests may free what this one takes
    workspaces.sandbox.bounds = replace(workspaces.sandbox.bounds, room=RoomBounds(bytes=20_000_000))
    workspace = opened(workspaces, source)
    fill = "for i in $(seq 200); do head -c 200000 /dev/zero > $i; done"
    with pytest.raises(WorkspaceFault) as raised:
        ran(workspace, f"{fill}; sleep 1000")
    assert raised.value.code == "workspace-too-large"
    with pytest.raises(WorkspaceFault, match=r"at most 0\.02 GB"):
        workspace.checkpoint("what it has filled")
    with pytest.raises(WorkspaceFault, match=r"at most 0\.02 GB"):
        ran(workspace, "true")


def test_commands_work_in_the_tree_with_git_and_python_of_their_own(
    workspaces: Workspaces, source: Path
) -> None:
    workspace = opened(workspaces, source)
    said = ran(workspace, "pwd; git status --short; git log --format=%s; python -c 'print(6*7)'")
    assert said.exit_code == 0, said.output
    assert said.output == f"{workspace.visible_path}\nsome work\n42\n"
    assert ran(
        workspace, "echo x >> README.md; git diff --stat; git commit -qam mine; git log -1 --format=%an"
    )
    assert workspace.checkpoint("kept whatever the agent's own git did") is not None


def test_a_checkpoint_can_be_restored_exactly(workspaces: Workspaces, source: Path) -> None:
    workspace = opened(workspaces, source)
    workspace.write("new/file.txt", "one\n")
    workspace.delete("README.md")
    ran(workspace, "chmod +x src/app.py; ln -s app.py src/link; mkdir empty")
    first = workspace.checkpoint("turn 1")
    assert first is not None
    assert workspace.checkpoint("turn 1 again") is None
    ran(
        workspace,
        "rm -rf src; mkdir README.md; echo y > README.md/inner; echo two > new/file.txt; git init -q sub",
    )
    second = workspace.checkpoint("turn 2")
    assert second is not None
    workspace.restore(first)
    assert workspace.read("new/file.txt") == "one\n"
    assert os.access(workspace.tree / "src/app.py", os.X_OK)
    assert (workspace.tree / "src/link").readlink() == Path("app.py")
    assert workspace.list(".", 1) == ["new/", "src/"]
    workspace.restore(second)
    assert workspace.list(".", 2) == ["README.md/", "README.md/inner", "new/", "new/file.txt"]
    assert ran(workspace, "git log --format=%s").output == "some work\n"


def test_a_restore_of_what_is_there_leaves_ignored_files_alone(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    workspace = opened(workspaces, repository(tmp_path / "s", {".gitignore": "build/\n", "a": "a\n"}))
    ran(workspace, "mkdir build; echo x > build/x; echo b > a")
    kept = workspace.checkpoint("one")
    assert kept is not None
    workspace.restore(kept)
    assert workspace.read("build/x") == "x\n"


def test_one_result_has_one_sha_wherever_and_whenever_it_is_made(source: Path, tmp_path: Path) -> None:
    shas = []
    for name in ("one", "two"):
        workspace = opened(installation(tmp_path / name), source, step=name)
        if name == "two":
            workspace.write("detour", "x")
            workspace.checkpoint("a detour")
            workspace.delete("detour")
        workspace.write("src/app.py", "def f():\n    return 2\n")
        shas.append(workspace.result("Return two", {"Task": "task-1", "Step": "step-1"}, workspace.start))
    assert shas[0] is not None
    assert shas[0] == shas[1]


def test_a_result_carries_its_trailers_and_can_be_shown(workspaces: Workspaces, source: Path) -> None:
    workspace = opened(workspaces, source)
    workspace.write("src/app.py", "def f():\n    return 2\n")
    (workspace.tree / "blob").write_bytes(b"\0\1")
    sha = workspace.result("Return two\n\nStep: forged", {"Step": "step-1"}, workspace.start)
    assert sha is not None
    info = workspaces.mirrors.git("x").directory.parent
    assert info.is_dir()
    assert "+    return 2\n" in workspace.patch(workspace.start, sha)
    assert [(c.path, c.added, c.deleted) for c in workspace.changes(workspace.start, sha)] == [
        ("blob", None, None),
        ("src/app.py", 1, 1),
    ]


def test_a_workspace_without_a_repository_starts_empty(workspaces: Workspaces) -> None:
    workspace = opened(workspaces, None)
    assert workspace.list(".", 3) == []
    workspace.write("a/b.txt", "new\n")
    assert workspace.result("Begin", {"Step": "s"}, workspace.start) is not None


ALL_OBJECTS = """git cat-file --batch-all-objects --batch-check | while read id kind size; do
    git cat-file "$kind" "$id"; done"""


def test_a_workspace_without_a_repository_shows_no_other_s_work(workspaces: Workspaces) -> None:
    """All of them have one mirror, whoever they belong to."""
    ours, theirs = opened(workspaces, None, "step-1"), opened(workspaces, None, "step-2")
    theirs.write("private.txt", "their secret\n")
    assert theirs.checkpoint("theirs") is not None
    ours.write("a.txt", "of ours\n")
    checkpoint = ours.checkpoint("first")
    ours.close()
    base = workspaces.fetch(None, None)
    again = workspaces.open(owner("step-3"), base.mirror, base.commit, checkpoint=checkpoint)
    for workspace in (theirs, ours, again):
        assert "their secret" not in ran(workspace, ALL_OBJECTS).output
    assert "of ours" in ran(again, ALL_OBJECTS).output
    assert "first" in ran(again, "git log --format=%s").output
    assert ran(again, "git fsck --strict && git status --porcelain").output.strip() == ""
    again.write("b.txt", "more\n")
    made = ran(again, "git add -A && git commit -qm more && git log --format=%s | head -1")
    assert made.output == "more\n", made.output


def test_a_workspace_shows_the_repository_s_history_and_its_own_task_s_work_and_no_other_s(
    workspaces: Workspaces, source: Path
) -> None:
    theirs = opened(workspaces, source, "step-1")
    theirs.write("private.txt", "their secret\n")
    hidden = theirs.result("theirs", {"Step": "s"}, theirs.start)
    assert hidden is not None
    first = opened(workspaces, source, "step-2")
    first.write("src/app.py", "def f():\n    return 'of ours'\n")
    built = first.result("ours", {"Step": "s"}, first.start)
    assert built is not None
    base = workspaces.fetch(str(source), None)
    start = workspaces.start_commit(base.mirror, base.commit, [built])
    second = workspaces.open(owner("step-3"), base.mirror, start)
    for workspace in (first, second):
        assert "their secret" not in ran(workspace, ALL_OBJECTS).output
        assert ran(workspace, f"git cat-file -e {hidden}").exit_code != 0
        assert "hello" in ran(workspace, "git show HEAD:README.md").output
        assert ran(workspace, "git fsck --strict").output.strip() == ""
    assert ran(second, "git log --format=%s").output == "ours\nsome work\n"
    assert "of ours" in ran(second, "git diff HEAD~1").output
    held = list((second.tree.parent / "git/objects/pack").glob("*.pack"))
    assert len(held) == 1
    packed = ran(second, "git count-objects -v").output
    assert "in-pack: 4\n" in packed, "its commit, two folders and a file: not the history once more"


def test_a_mirror_of_before_goes_on_and_shows_no_other_s_work_either(
    workspaces: Workspaces, source: Path, tmp_path: Path
) -> None:
    """It has all in one: what was fetched, and what tasks have built."""
    name = installation(tmp_path / "other").fetch(str(source), None).mirror
    mirror = tmp_path / "root/mirrors" / f"{name}.git"
    git(tmp_path, "init", "-q", "--bare", str(mirror))
    git(mirror, "fetch", "-q", str(source), "+refs/heads/main:refs/fetched/0")
    base = git(mirror, "rev-parse", "refs/fetched/0")
    hidden = git(mirror, "commit-tree", "-p", base, "-m", "their secret", f"{base}^{{tree}}")
    git(mirror, "update-ref", f"refs/keep/{hidden}", hidden)
    assert workspaces.mirrors.prepare(str(source), base) == name
    old = workspaces.open(owner("step-1"), name, base)
    newer = commit(source, {"README.md": "hello again\n"})
    assert workspaces.fetch(str(source), None).commit == newer
    assert git(mirror / "origin", "rev-parse", "refs/fetched/0") == base
    (mirror / "objects/info/alternates").unlink()  # as one leaves it who was killed on the way
    newest = commit(source, {"README.md": "hello for the third time\n"})
    assert workspaces.fetch(str(source), None).commit == newest
    new = workspaces.open(owner("step-2"), name, newest)
    again = workspaces.open(owner("step-1"), name, base)
    for workspace in (old, new, again):
        assert "their secret" not in ran(workspace, ALL_OBJECTS).output
        assert ran(workspace, "git fsck --strict && git status --porcelain").output.strip() == ""
        assert "some work" in ran(workspace, "git log --format=%s").output
    assert again.checkpoint("nothing") is None
    new.write("a.txt", "a\n")
    assert new.checkpoint("something") is not None


def test_a_search_finds_lines_by_expression_folder_and_name(workspaces: Workspaces, source: Path) -> None:
    workspace = opened(workspaces, source)
    workspace.write("src/untracked.py", "a = 1\n\nreturn_value = 12\n")
    assert workspace.search(r"return\s+\d", ".", None) == [Match("src/app.py", 2, "    return 1")]
    assert [m.path for m in workspace.search("return", "src", "*.py")] == ["src/app.py", "src/untracked.py"]
    assert [m.path for m in workspace.search("x|hello", ".", "**/*.txt")] == ["src/deep/er/x.txt"]
    assert [m.path for m in workspace.search("return", "src/app.py", None)] == ["src/app.py"]
    assert workspace.search("nowhere", ".", None) == []
    with pytest.raises(WorkspaceRefusal):
        workspace.search("(", ".", None)
    with pytest.raises(WorkspaceRefusal):
        workspace.search("x", "../..", None)


def test_odd_things_in_the_tree_are_taken_or_left_out_but_break_nothing(
    workspaces: Workspaces, source: Path
) -> None:
    workspace = opened(workspaces, source)
    said = ran(
        workspace,
        r"""mkfifo pipe; rm README.md; mkfifo README.md
        printf 'x' > "$(printf 'caf\351')"; printf 'y' > "$(printf 'new\nline')"; echo s > ':(top)x'
        git init -q inner; echo i > inner/i; mkdir inner/deep; git init -q inner/deep; echo d > inner/deep/d
        git init -q committed; echo c > committed/c
        cd committed; git add -A; git commit -qm x; cd ..
        ln -s /etc/passwd away; rm -rf src/deep; ln -s ../committed src/deep
        mkdir node_modules; echo j > node_modules/j""",
    )
    assert said.exit_code == 0, said.output
    sha = workspace.checkpoint("odd")
    assert sha is not None
    names = {
        name
        for change in workspace.changes(workspace.start, sha)
        for name in [change.path]
        if change.added or change.deleted
    }
    assert names == {
        "README.md", ":(top)x", "away", "caf\ufffd", "committed/c", "inner/deep/d", "inner/i", "new\nline",
        "src/deep", "src/deep/er/x.txt",
    }  # fmt: skip
    workspace.restore(workspace.start)
    workspace.restore(sha)
    assert (workspace.tree / "away").readlink() == Path("/etc/passwd")
    assert workspace.read("inner/deep/d") == "d\n"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (r"printf '[submodule \"s\"]\n path = s\n url = --upload-pack=x\n' > .gitmodules", "submodule url"),
        ("printf '*.t working-tree-encoding=UTF-16\\n' > .gitattributes; echo x > a.t", "byte order mark"),
        ("printf '%3000s text' x > .gitattributes", "too long lines"),
    ],
)
def test_what_git_takes_from_nobody_is_no_fault_of_git_s_and_not_tried_again(
    workspaces: Workspaces, source: Path, script: str, why: str
) -> None:
    workspace = opened(workspaces, source)
    assert ran(workspace, script).exit_code == 0
    with pytest.raises(TreeRefused, match=why) as raised:
        workspace.checkpoint("odd")
    assert raised.value.error is ErrorClass.VALIDATION
    workspace.restore(workspace.start)
    assert workspace.checkpoint("even") is None


def test_folders_in_the_place_of_many_files_cost_no_more_than_one(
    workspaces: Workspaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an agent could keep its worker busy for hours, by a loop of one line."""
    source = repository(tmp_path / "many", {f"f{number}": "" for number in range(50)})
    workspace = opened(workspaces, source)
    assert ran(workspace, "for f in f*; do rm $f; mkdir $f; touch $f/inner; done").exit_code == 0
    started: list[int] = []
    pipe = workspaces.sandbox.pipe
    monkeypatch.setattr(workspaces.sandbox, "pipe", lambda *a, **k: (started.append(1), pipe(*a, **k))[1])
    commit = workspace.checkpoint("folders")
    assert commit is not None
    assert len(started) < 10
    assert len(workspace.changes(workspace.start, commit)) == 100


def test_a_patch_of_large_files_is_never_whole_in_memory(workspaces: Workspaces, source: Path) -> None:
    """An agent can write a gigabyte, and its worker has to show the beginning."""
    workspace = opened(workspaces, source)
    assert ran(workspace, "yes | head -c 30000000 > big").exit_code == 0
    commit = workspace.result("big", {}, workspace.start)
    assert commit is not None
    tracemalloc.start()
    try:
        text = workspace.patch(workspace.start, commit, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert text.startswith("diff --git a/big b/big")
    assert "[cut: 45000" in text
    assert len(text) < 1100
    assert peak < 5_000_000


def test_a_file_too_large_for_any_forge_stays_out_and_is_named(workspaces: Workspaces, source: Path) -> None:
    workspace = opened(workspaces, source)
    ran(workspace, "truncate -s 101M large; echo small > small")
    sha = workspace.checkpoint("large")
    assert sha is not None
    assert [change.path for change in workspace.changes(workspace.start, sha)] == ["small"]
    assert "large" in workspace.left_out[0]


def test_submodules_stay_as_they_are(workspaces: Workspaces, source: Path) -> None:
    head = git(source, "rev-parse", "HEAD")
    git(source, "update-index", "--add", "--cacheinfo", f"160000,{head},vendor/lib")
    git(source, "commit", "-q", "-m", "link")
    workspace = opened(workspaces, source)
    assert workspace.checkpoint("untouched") is None
    ran(workspace, "cd vendor/lib; git init -q .; echo x > x; git add -A; git commit -qm x")
    workspace.checkpoint("touched")
    workspace.write("other", "x")
    sha = workspace.result("Other", {"Step": "s"}, workspace.start)
    assert sha is not None
    assert [change.path for change in workspace.changes(workspace.start, sha)] == ["other"]


def test_an_attempt_that_comes_back_finds_its_last_checkpoint_and_no_half_turn(
    workspaces: Workspaces, source: Path
) -> None:
    base = workspaces.fetch(str(source), None)
    workspace = workspaces.open(owner(), base.mirror, base.commit)
    workspace.write("a", "turn 1\n")
    kept = workspace.checkpoint("turn 1")
    workspace.write("a", "half of turn 2\n")
    again = workspaces.open(owner(), base.mirror, base.commit, checkpoint=kept)
    assert again.read("a") == "turn 1\n"
    assert again.checkpoint("same") is None
    fresh = workspaces.open(owner(), base.mirror, base.commit)
    assert "a" not in fresh.list(".", 1)


def test_a_checkout_that_was_killed_half_way_is_made_anew(workspaces: Workspaces, source: Path) -> None:
    workspace = opened(workspaces, source)
    (workspace.tree / "README.md").unlink()
    (workspace.tree.parent / "own" / READY).unlink()
    assert opened(workspaces, source).read("README.md") == "hello\n"


def test_only_what_belongs_to_the_dead_is_swept(workspaces: Workspaces, source: Path) -> None:
    base = workspaces.fetch(str(source), None)
    dead = workspaces.open(owner("dead"), base.mirror, base.commit)
    live = workspaces.open(owner("live"), base.mirror, base.commit)
    ran(dead, "mkdir -p a/b/c; chmod 000 a/b; ln -s / a/root; chmod 000 a")
    (dead.tree.parent.parent / "half-made").mkdir()
    asked: list[list[str]] = []

    def the_live(owners: Sequence[AttemptOwner]) -> list[AttemptOwner]:
        asked.append([found.step_id for found in owners])
        return [found for found in owners if found.step_id == "live"]

    removed = workspaces.sweep_orphans(the_live)
    assert asked == [["dead", "live"]], "one question, however many there are"
    assert removed == ["dead-1", "half-made"]
    assert workspaces.owners() == [live.owner]
    assert live.read("README.md") == "hello\n"
    workspaces.remove(live.owner)
    assert workspaces.owners() == []


def step(workspaces: Workspaces, mirror: str, start: str, name: str, files: dict[str, str]) -> str:
    workspace = workspaces.open(owner(name), mirror, start)
    for path, text in files.items():
        workspace.write(path, text)
    sha = workspace.result(name, {"Step": name}, start)
    assert sha is not None
    return sha


LINES = "".join(f"line {n}\n" for n in range(1, 8))


def test_results_become_one_linear_branch_with_one_commit_for_each_step(tmp_path: Path) -> None:
    workspaces = installation(tmp_path / "root")
    base = workspaces.fetch(str(repository(tmp_path / "s", {"a": LINES, "b": LINES})), None)
    mirror = workspaces.mirrors.git(base.mirror)
    one = step(workspaces, base.mirror, base.commit, "one", {"a": LINES.replace("line 1", "LINE 1")})
    two = step(workspaces, base.mirror, base.commit, "two", {"b": "new b\n"})
    start = workspaces.start_commit(base.mirror, base.commit, [one, two])
    assert start == workspaces.start_commit(base.mirror, base.commit, [one, two])
    # It changes a line that step one has changed: the natural merge base would call that a conflict.
    changed = LINES.replace("line 1", "LINE one").replace("line 7", "LINE 7")
    three = step(workspaces, base.mirror, start, "three", {"a": changed})
    tip = base.commit
    for name, sha in (("two", two), ("one", one), ("three", three)):
        done = integrate(mirror, base=base.commit, tip=tip, commit=sha, message=name, trailers={"Step": name})
        assert isinstance(done, Integrated), done
        assert done.created
        again = integrate(
            mirror, base=base.commit, tip=tip, commit=sha, message=name, trailers={"Step": name}
        )
        assert again == done
        tip = done.commit
        later = integrate(
            mirror, base=base.commit, tip=tip, commit=sha, message=name, trailers={"Step": name}
        )
        assert later == Integrated(tip, created=False)
    assert (
        mirror.text("log", "--format=%s %P %(trailers:key=Step,valueonly,separator=)", tip).count("\n") == 3
    )
    assert mirror.text("rev-list", "--merges", tip) == ""
    assert mirror.text("show", f"{tip}:a") + "\n" == changed
    assert mirror.text("show", f"{tip}:b") == "new b"
    assert find_step(mirror, base.commit, tip, "one") is not None
    assert find_step(mirror, base.commit, tip, "on") is None


def test_a_result_that_contradicts_the_branch_is_a_conflict_and_shows_it(tmp_path: Path) -> None:
    workspaces = installation(tmp_path / "root")
    base = workspaces.fetch(str(repository(tmp_path / "s", {"a": LINES})), None)
    mirror = workspaces.mirrors.git(base.mirror)
    one = step(workspaces, base.mirror, base.commit, "one", {"a": LINES.replace("line 3", "mine")})
    two = step(workspaces, base.mirror, base.commit, "two", {"a": LINES.replace("line 3", "yours")})
    done = integrate(
        mirror, base=base.commit, tip=base.commit, commit=one, message="1", trailers={"Step": "one"}
    )
    assert isinstance(done, Integrated)
    refused = integrate(
        mirror, base=base.commit, tip=done.commit, commit=two, message="2", trailers={"Step": "two"}
    )
    assert isinstance(refused, Conflict)
    assert refused.files == ("a",)
    assert "<<<<<<<" in refused.text
    assert "yours" in refused.text
    with pytest.raises(MergeConflict) as caught:
        workspaces.start_commit(base.mirror, base.commit, [one, two])
    assert caught.value.files == ("a",)
    # Its second run starts from the tip; what needs both steps then finds the first one inside the second.
    again = step(workspaces, base.mirror, done.commit, "two", {"a": LINES.replace("line 3", "ours")})
    assert workspaces.start_commit(base.mirror, base.commit, [one, again]) == again
    second = integrate(
        mirror, base=base.commit, tip=done.commit, commit=again, message="2", trailers={"Step": "two"}
    )
    assert isinstance(second, Integrated)
    assert second.created


def test_a_ref_moves_only_from_where_it_is_believed_to_be(tmp_path: Path) -> None:
    workspaces = installation(tmp_path / "root")
    source = repository(tmp_path / "s", {"a": "1\n"})
    base = workspaces.fetch(str(source), None)
    mirror = workspaces.mirrors.git(base.mirror)
    other = step(workspaces, base.mirror, base.commit, "one", {"a": "2\n"})
    ref = "refs/heads/agent/task-1"
    move(mirror, ref, base.commit, None)
    move(mirror, ref, base.commit, None)
    move(mirror, ref, other, base.commit)
    with pytest.raises(RefMoved) as caught:
        move(mirror, ref, base.commit, "1" * 40)
    assert caught.value.actual == other
    assert mirror.ref(ref) == other


def test_a_push_replaces_only_what_it_expects_and_runs_no_hook_of_the_target(tmp_path: Path) -> None:
    workspaces = installation(tmp_path / "root")
    source = repository(tmp_path / "s", {"a": "1\n"})
    ran_hook = tmp_path / "hook-ran"
    for name in ("pre-receive", "update", "post-receive", "reference-transaction", "post-update"):
        hook = source / ".git/hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {ran_hook}\n")
        hook.chmod(0o755)
    git(source, "config", "core.alternateRefsCommand", f"touch {ran_hook}")
    base = workspaces.fetch(str(source), None)
    mirror = workspaces.mirrors.git(base.mirror)
    one = step(workspaces, base.mirror, base.commit, "one", {"a": "2\n"})
    two = step(workspaces, base.mirror, base.commit, "two", {"a": "3\n"})
    reach = Reach(allow_local=True, allow_private=False, environment=dict(os.environ))
    ref = "refs/heads/agent/task-1"
    push(mirror, reach, str(source), ref=ref, new=one, expected=None)
    push(mirror, reach, str(source), ref=ref, new=one, expected=None)
    with pytest.raises(RefMoved):
        push(mirror, reach, str(source), ref=ref, new=two, expected=base.commit)
    push(mirror, reach, str(source), ref=ref, new=two, expected=one)
    assert git(source, "rev-parse", ref) == two
    assert not ran_hook.exists()


def test_a_commit_reaches_a_machine_that_lacks_it_by_its_bundle(tmp_path: Path) -> None:
    source = repository(tmp_path / "s", FILES)
    here = installation(tmp_path / "here", artifacts=tmp_path / "shared")
    there = installation(tmp_path / "there", artifacts=tmp_path / "shared")
    base = here.fetch(str(source), None)
    workspace = here.open(owner(), base.mirror, base.commit)
    workspace.write("a", "turn 1\n")
    kept = workspace.checkpoint("turn 1")
    assert kept is not None
    assert there.mirrors.prepare(str(source), base.commit) == base.mirror
    with pytest.raises(CommitMissing):
        there.open(owner(), base.mirror, base.commit, checkpoint=kept)
    key = here.bundles.store(base.mirror, kept, base.commit)
    assert here.bundles.store(base.mirror, kept, base.commit) == key
    moved = there.open(owner(), base.mirror, base.commit, checkpoint=kept)
    assert moved.read("a") == "turn 1\n"
    assert moved.checkpoint("same") is None


def test_the_base_follows_the_repository_and_old_bases_stay(tmp_path: Path, source: Path) -> None:
    workspaces = installation(tmp_path / "root")
    first = workspaces.fetch(str(source), "main")
    newer = commit(source, {"a": "a\n"})
    second = workspaces.fetch(str(source), "main")
    assert second.commit == newer
    assert workspaces.open(owner(), first.mirror, first.commit).list(".", 1) == ["README.md", "src/"]
