"""Real repositories and a real installation of workspaces below a test's own folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from orchestrator.workspaces.artifacts import Artifacts
from orchestrator.workspaces.bundles import Bundles
from orchestrator.workspaces.checkouts import Workspaces
from orchestrator.workspaces.mirrors import Mirrors
from orchestrator.workspaces.remotes import Reach
from orchestrator.workspaces.sandbox import Bounds, Sandbox
from orchestrator.workspaces.workspace import AttemptOwner

IDENTITY = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@example.org",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.org",
    "GIT_AUTHOR_DATE": "1767225600 +0000",
    "GIT_COMMITTER_DATE": "1767225600 +0000",
}


def git(at: Path, *words: str) -> str:
    """Git as its owner would use it."""
    environment = {"PATH": os.environ["PATH"], **IDENTITY}
    done = subprocess.run(
        ["git", "-C", str(at), *words], env=environment, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "surrogateescape").rstrip("\n")


def repository(at: Path, files: Mapping[str, str]) -> Path:
    at.mkdir(parents=True)
    git(at, "init", "-q", "-b", "main")
    commit(at, files)
    return at


def commit(at: Path, files: Mapping[str, str], message: str = "some work") -> str:
    for name, text in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(text)
    git(at, "add", "-A")
    git(at, "commit", "-q", "--allow-empty", "-m", message)
    return git(at, "rev-parse", "HEAD")


def path_without_bubblewrap(root: Path) -> str:
    """A PATH with all that is on ours, but for one program."""
    programs = root / "programs"
    programs.mkdir(parents=True)
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).glob("*"):
            if program.name != "bwrap" and not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    return str(programs)


def without_bubblewrap(root: Path) -> Sandbox:
    """The fallback, chosen as on a machine where no `bwrap` is on PATH."""
    return Sandbox(root / "sandbox", path=path_without_bubblewrap(root), bounds=Bounds())


def installation(
    root: Path,
    *,
    artifacts: Path | str | None = None,
    sandbox: Sandbox | None = None,
    allow_private: bool = False,
) -> Workspaces:
    reach = Reach(allow_local=True, allow_private=allow_private, environment=dict(os.environ))
    mirrors = Mirrors(root / "mirrors", reach)
    return Workspaces(
        root,
        mirrors,
        sandbox or Sandbox(root / "sandbox", path=os.environ["PATH"]),
        Bundles(mirrors, Artifacts(str(artifacts or root / "artifacts"))),
    )


def owner(step: str = "step-1", attempt: int = 1) -> AttemptOwner:
    return AttemptOwner("task-1", step, attempt, os.getpid(), "this-boot")
