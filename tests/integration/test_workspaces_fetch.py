from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.repository_url import RepositoryUrl
from orchestrator.core.verdict import StopReason
from orchestrator.workspaces.checkouts import Workspaces
from orchestrator.workspaces.errors import (
    BranchUnknown,
    CommitMissing,
    GitError,
    RepositoryForbidden,
    RepositoryUnreachable,
)
from orchestrator.workspaces.git import Git
from orchestrator.workspaces.integrate import push
from orchestrator.workspaces.mirrors import Base
from orchestrator.workspaces.remotes import Reach
from tests.integration.repositories import commit, git, installation, owner, repository


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return repository(tmp_path / "source", {"a": "a\n"})


@pytest.fixture
def workspaces(tmp_path: Path) -> Workspaces:
    return installation(tmp_path / "root")


def test_a_base_is_found_by_default_branch_branch_tag_or_commit(workspaces: Workspaces, source: Path) -> None:
    first = git(source, "rev-parse", "HEAD")
    git(source, "tag", "-m", "one", "v1")
    git(source, "checkout", "-q", "-b", "feature/x")
    second = commit(source, {"b": "b\n"})
    git(source, "checkout", "-q", "main")
    mirror = workspaces.fetch(str(source), None).mirror
    assert workspaces.fetch(str(source), None) == Base(mirror, first, "main")
    assert workspaces.fetch(str(source), "feature/x") == Base(mirror, second, "feature/x")
    assert workspaces.fetch(str(source), "v1") == Base(mirror, first, "v1")
    assert workspaces.fetch(str(source), first) == Base(mirror, first, None)
    assert installation(source.parent / "second").fetch(str(source), second).commit == second


def test_a_repository_that_is_not_there_or_not_allowed_is_said_so(
    workspaces: Workspaces, source: Path
) -> None:
    with pytest.raises(RepositoryUnreachable) as caught:
        workspaces.fetch(f"{source}-gone", None)
    assert caught.value.code == "repository-unreachable"
    assert caught.value.message == f"{source}-gone: '{source}-gone' does not appear to be a git repository"
    with pytest.raises(BranchUnknown, match="its branches: main"):
        workspaces.fetch(str(source), "nope")
    for name in ("-x", "a..b", "a b", "--upload-pack=id", "x.lock", "*", "/"):
        with pytest.raises(BranchUnknown):
            workspaces.fetch(str(source), name)
    with pytest.raises(RepositoryForbidden):
        workspaces.fetch("ext::sh -c id", None)
    with pytest.raises(CommitMissing):
        workspaces.fetch(str(source), "1" * 40)


def test_a_name_that_leads_to_a_private_address_is_refused_and_others_are_held_to(source: Path) -> None:
    reach = Reach(allow_local=False, allow_private=False, environment={})
    with pytest.raises(RepositoryForbidden):
        reach.route(RepositoryUrl("https://127.0.0.1/a", "https", "127.0.0.1"))
    with pytest.raises(RepositoryForbidden):
        reach.checked(str(source))
    held = reach.route(RepositoryUrl("https://8.8.8.8/a", "https", "8.8.8.8"))
    assert held.settings == ("http.curloptResolve=8.8.8.8:443:8.8.8.8",)
    by_ssh = reach.route(RepositoryUrl("ssh://git@8.8.8.8:2222/a", "ssh", "8.8.8.8", 2222))
    assert "-oHostName=8.8.8.8 '-oHostKeyAlias=[8.8.8.8]:2222'" in by_ssh.environment["GIT_SSH_COMMAND"]
    assert by_ssh.environment["GIT_ALLOW_PROTOCOL"] == "ssh"


def test_a_repository_without_commits_can_be_begun(workspaces: Workspaces, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q", "--bare", "-b", "trunk")
    base = workspaces.fetch(str(empty), None)
    assert workspaces.mirrors.prepare(str(empty), base.commit) == base.mirror
    workspace = workspaces.open(owner(), base.mirror, base.commit)
    workspace.write("first", "1\n")
    sha = workspace.result("Begin", {"Step": "s"}, base.commit)
    assert sha is not None
    reach = Reach(allow_local=True, allow_private=False, environment=dict(os.environ))
    mirror = workspaces.mirrors.git(base.mirror)
    push(mirror, reach, str(empty), ref="refs/heads/agent/t", new=sha, expected=None)
    assert git(empty, "show", "agent/t:first") == "1"


def test_a_linked_worktree_can_be_fetched_from(workspaces: Workspaces, source: Path, tmp_path: Path) -> None:
    git(source, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    newer = commit(tmp_path / "linked", {"b": "b\n"})
    assert workspaces.fetch(str(tmp_path / "linked"), None) == Base(
        workspaces.fetch(str(tmp_path / "linked"), "side").mirror, newer, "side"
    )


def test_many_at_once_make_one_mirror(workspaces: Workspaces, source: Path) -> None:
    found: list[Base] = []
    threads = [
        threading.Thread(target=lambda: found.append(workspaces.fetch(str(source), None))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


def test_what_a_killed_fetch_left_is_in_nobodys_way(
    workspaces: Workspaces, source: Path, tmp_path: Path
) -> None:
    name = installation(tmp_path / "other").fetch(str(source), None).mirror
    half = tmp_path / "root" / "mirrors" / f"{name}.new.git" / "objects" / "pack"
    half.mkdir(parents=True)
    (half / "tmp_pack_x").write_bytes(b"PACK")
    base = workspaces.fetch(str(source), None)
    mirror = workspaces.mirrors.git(base.mirror).directory
    refs = list((mirror / "origin" / "refs" / "fetched").iterdir())
    assert refs
    for at in refs:
        at.with_name(f"{at.name}.lock").write_text("")
    (mirror / "origin" / "packed-refs.lock").write_text("")
    newer = commit(source, {"b": "b\n"})
    assert workspaces.fetch(str(source), None).commit == newer


def test_a_rewritten_branch_is_followed_and_what_was_built_on_stays(
    workspaces: Workspaces, source: Path
) -> None:
    old = workspaces.fetch(str(source), "main")
    git(source, "branch", "-m", "main", "main/sub")
    git(source, "commit", "-q", "--amend", "-m", "other")
    git(source, "reflog", "expire", "--expire=now", "--all")
    git(source, "gc", "-q", "--prune=now")
    assert workspaces.fetch(str(source), "main/sub").commit == git(source, "rev-parse", "HEAD")
    assert workspaces.mirrors.prepare(str(source), old.commit) == old.mirror
    assert workspaces.open(owner(), old.mirror, old.commit).read("a") == "a\n"


def test_a_stop_ends_a_git_that_waits(tmp_path: Path) -> None:
    (tmp_path / "x.git").mkdir()
    silent = Git(tmp_path / "x.git", dict(os.environ))
    stop = Stop()
    timer = threading.Timer(0.2, stop.set, (StopReason.CANCEL,))
    timer.start()
    with pytest.raises(GitError, match="stopped"):
        silent.run("-c", "alias.wait=!sleep 60", "wait", stop=stop)
    timer.join()


def test_a_repository_that_belongs_to_somebody_else_can_be_read(workspaces: Workspaces, source: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("NOT TESTED HERE: only root can give files away")
    for at in (source, *source.rglob("*")):
        os.chown(at, 65534, 65534, follow_symlinks=False)
    assert workspaces.fetch(str(source), None).branch == "main"


def test_no_secret_of_the_process_reaches_a_git(tmp_path: Path) -> None:
    (tmp_path / "x.git").mkdir()
    environment = {
        **os.environ,
        "ANTHROPIC_API_KEY": "a-secret",
        "GIT_DIR": "/elsewhere",
        "GIT_SSH_COMMAND": "id",
    }
    seen = Git(tmp_path / "x.git", environment).run("-c", "alias.env=!env", "env", network=True).text
    assert "a-secret" not in seen
    assert "GIT_SSH_COMMAND" not in seen
    assert "GIT_CONFIG_GLOBAL=/dev/null" in seen
