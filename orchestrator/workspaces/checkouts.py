"""The workspaces of one machine.

    <root>/mirrors/<name>.git             what repositories hold
    <root>/workspaces/<step>-<attempt>/   workspace.json   whose it is
                                          tree/            the checkout, /workspace to commands
                                          git/             the agent's repository over it, /git to commands
                                          own/             ours; no command ever sees it

A folder is deleted because its own record says that its owner is gone, never for its name or its age.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from orchestrator.core.assignment import Stop
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.workspaces import integrate
from orchestrator.workspaces.bundles import Bundles
from orchestrator.workspaces.errors import CommitMissing
from orchestrator.workspaces.files import Files
from orchestrator.workspaces.git import Git
from orchestrator.workspaces.homes import Homes
from orchestrator.workspaces.locks import held
from orchestrator.workspaces.mirrors import Base, Mirrors
from orchestrator.workspaces.removal import remove_folder
from orchestrator.workspaces.room import check_disk
from orchestrator.workspaces.sandbox import Sandbox
from orchestrator.workspaces.workspace import AttemptOwner, Workspace
from orchestrator.workspaces.worktree import Place, Worktree

OWNER: Final = "workspace.json"
READY: Final = "whole"
"""Beside it there were checkouts called `ready`, which borrowed the mirror's objects: they are made anew."""
# Left out of commits even where a project doesn't say so: made by running things, never by writing them.
IGNORED: Final = (
    "__pycache__/", "*.pyc", ".pytest_cache/", ".mypy_cache/", ".ruff_cache/", ".hypothesis/", ".venv/",
    "node_modules/", ".DS_Store", ".orchestrator-new-*",
)  # fmt: skip
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,127}")
_CONFIG: Final = """[core]
\trepositoryFormatVersion = 0
\tbare = false
\tlogAllRefUpdates = false
\thooksPath = /dev/null
[gc]
\tauto = 0
[maintenance]
\tauto = false
[user]
\tname = agent
\temail = agent@orchestrator.invalid
"""


class Workspaces:
    """Fetches, opens, integrates and clears away; one for each worker process, built from plain values."""

    def __init__(self, root: Path, mirrors: Mirrors, sandbox: Sandbox, bundles: Bundles) -> None:
        self._root = root / "workspaces"
        self.mirrors = mirrors
        self.sandbox = sandbox
        self.bundles = bundles
        self.homes = Homes(root)

    def fetch(
        self,
        repository: str | None,
        branch: str | None,
        *,
        credentials: Mapping[str, str] | None = None,
        stop: Stop | None = None,
    ) -> Base:
        """Where a task starts; see `Mirrors.fetch`."""
        return self.mirrors.fetch(repository, branch, credentials=credentials, stop=stop)

    def check_disk(self) -> None:
        """Raises `WorkspaceFault` where the disk has too little left for a step to begin."""
        check_disk(self._root.parent, self.sandbox.bounds.room)

    def start_commit(self, mirror: str, base: str, results: Sequence[str]) -> str:
        """Where a step starts: what it needs, merged on the task's base. Raises `MergeConflict`."""
        for commit in results:
            self.bundles.ensure(mirror, commit)
        git = self.mirrors.git(mirror)
        start = integrate.start_commit(git, base, results)
        self.mirrors.keep(mirror, start)
        return start

    def open(
        self, owner: AttemptOwner, mirror: str, start: str, *, checkpoint: str | None = None
    ) -> Workspace:
        """A checkout of `checkpoint`, else of `start`.

        One that is here from an earlier claim is brought to exactly that.
        """
        if not _NAME.fullmatch(owner.name):
            raise WorkspaceFault("workspace-name", f"{owner.name!r} can't name a folder")
        git = self.mirrors.git(mirror)
        for commit in filter(None, (start, checkpoint)):
            self.bundles.ensure(mirror, commit)
        folder = self._root / owner.name
        place = Place(folder, self.mirrors.objects(mirror), self.mirrors.fetched(mirror))
        again = self._claim(owner, folder)
        if not again:
            self._make(place, mirror, checkpoint or start)
        workspace = Workspace(owner, place, git, self.sandbox, start, partial(self.bundles.ensure, mirror))
        if again or checkpoint is not None:
            workspace.restore(checkpoint or start)
        return workspace

    def owners(self) -> list[AttemptOwner]:
        """Whose workspaces are on this disk."""
        return [owner for _, owner in self._folders() if owner is not None]

    def sweep_orphans(self, live: Callable[[Sequence[AttemptOwner]], Collection[AttemptOwner]]) -> list[str]:
        """Removes the workspaces whose owner isn't live, and what a killed process left half made.

        `live` is asked once, for all of them: nobody opens a workspace meanwhile.
        """
        removed = []
        with held(self._root / ".lock"):
            folders = self._folders()
            kept = live([owner for _, owner in folders if owner is not None]) if folders else ()
            for folder, owner in folders:
                if owner is None or owner not in kept:
                    remove_folder(folder)
                    removed.append(folder.name)
        return removed

    def remove(self, owner: AttemptOwner) -> None:
        """Its commits stay in the mirror."""
        remove_folder(self._root / owner.name)

    def _folders(self) -> list[tuple[Path, AttemptOwner | None]]:
        if not self._root.is_dir():
            return []
        return [(at, _read_owner(at)) for at in sorted(self._root.iterdir()) if at.is_dir()]

    def _claim(self, owner: AttemptOwner, folder: Path) -> bool:
        """Writes the record, under the lock of the sweep; whether there was a whole checkout already."""
        with held(self._root / ".lock"):
            again = _read_owner(folder) is not None and (folder / "own" / READY).exists()
            if folder.exists() and not again:
                remove_folder(folder)
            folder.mkdir(exist_ok=True)
            new = folder / f"{OWNER}.new"
            new.write_text(json.dumps(asdict(owner)))
            new.rename(folder / OWNER)
        return again

    def _make(self, place: Place, mirror: str, commit: str) -> None:
        git = self.mirrors.git(mirror)
        place.tree.mkdir()
        _make_repository(place.own, place.borrowed, commit)
        _make_repository(place.seen, tuple(filter(None, [place.fetched])), commit)
        if place.fetched is None or not self.mirrors.origin(mirror).has(commit):
            _copy_history(git, place, commit, self.mirrors.tips(mirror))
        Worktree(place, self.sandbox, Files(place.tree)).checkout(commit, clean=False)
        if not git.has(commit):
            raise CommitMissing(commit, f"commit {commit} vanished")
        shutil.copyfile(place.own / "index", place.seen / "index")
        (place.own / READY).touch()


def _copy_history(git: Git, place: Place, commit: str, without: Sequence[str]) -> None:
    """Gives the agent's repository what `commit` reaches and the commits `without` don't.

    Git writes a pack beside its own objects, then renames it: they may be on another disk than workspaces,
    so it is told that its own are the new ones.
    """
    objects = place.seen / "objects"
    borrowed = str(place.objects).replace("\\", "\\\\").replace('"', '\\"')
    where = {"GIT_OBJECT_DIRECTORY": str(objects), "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{borrowed}"'}
    pack = str(objects / "pack/pack")
    wanted = "".join(f"{line}\n" for line in (commit, *(f"^{each}" for each in without)))
    git.run("pack-objects", "-q", "--revs", pack, stdin=wanted.encode(), environment=where)


def _make_repository(at: Path, borrowed: Sequence[Path], commit: str) -> None:
    """What `git init` would make, without starting it. `borrowed`: other repositories' objects."""
    for folder in ("objects/info", "objects/pack", "refs/heads", "info"):
        (at / folder).mkdir(parents=True)
    (at / "config").write_text(_CONFIG)
    (at / "HEAD").write_text("ref: refs/heads/work\n")
    (at / "refs/heads/work").write_text(f"{commit}\n")
    if borrowed:
        (at / "objects/info/alternates").write_text("".join(f"{objects}\n" for objects in borrowed))
    (at / "info/exclude").write_text("".join(f"{pattern}\n" for pattern in IGNORED))


def _read_owner(folder: Path) -> AttemptOwner | None:
    try:
        return AttemptOwner(**json.loads((folder / OWNER).read_text()))
    except (OSError, ValueError, TypeError):
        return None
