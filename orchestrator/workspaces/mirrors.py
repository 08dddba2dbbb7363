"""One bare mirror for each repository, shared by all workspaces of this machine.

    refs/heads/agent/<task id>     the branches that tasks build; core.task_id spells the id
    refs/keep/<sha>                bases, starts, results and checkpoints that something may still need
    origin/                        a repository of its own, whose objects the mirror borrows:
        refs/fetched/…, remotes/…  what the repository had when we last looked

An agent's commands see what lies in `origin`, and of the rest what their own step builds on: of other tasks'
branches nothing. Nothing is ever collected as garbage here: a checkout reads these objects for as long as it
lives. Mirrors of before had all in one; theirs is parted from what is fetched next.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from orchestrator.core import task_id as task_ids
from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.repository_url import RepositoryUrl
from orchestrator.workspaces.errors import BranchUnknown, CommitMissing, GitError, RepositoryUnreachable
from orchestrator.workspaces.git import SHA, Git, Output
from orchestrator.workspaces.locks import held
from orchestrator.workspaces.remotes import Reach, Route

SCRATCH: Final = "scratch"
ORIGIN: Final = "origin"
AGENT_BRANCHES: Final = f"refs/heads/{task_ids.BRANCHES}"
EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
FETCH_TIMEOUT: Final = timedelta(minutes=30)
ASK_TIMEOUT: Final = timedelta(minutes=1)
_BRANCH: Final = re.compile(
    r"(?!-)(?!.*(?:\.\.|@\{|//|\.lock(?:/|$)))[^\x00-\x20\x7f~^:?*\[\\]{1,244}(?<![/.])"
)
_PAST: Final = ("refs/fetched/", "refs/remotes/")
_FOR_EVER: Final = (
    "not appear to be a git repository", "Repository not found", "Authentication failed", "Permission denied",
    "could not read Username", "The requested URL returned error: 40", "does not exist",
    "not a git repository",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Base:
    """Where a task starts: the mirror's name, a commit in it, and the branch that was at that commit."""

    mirror: str
    commit: str
    branch: str | None


@dataclass(frozen=True, slots=True)
class Built:
    """A task's branch as it is in one mirror."""

    mirror: str
    task_id: str
    commit: str


class Mirrors:
    """All mirrors below one folder. Many processes may use it at once, and any may be killed at any time."""

    def __init__(self, root: Path, reach: Reach) -> None:
        self._root = root
        self.reach = reach

    def git(self, mirror: str) -> Git:
        return Git(self._root / f"{mirror}.git", self.reach.environment)

    def origin(self, mirror: str) -> Git:
        """What was fetched, and nothing else."""
        return Git(self._root / f"{mirror}.git" / ORIGIN, self.reach.environment)

    def objects(self, mirror: str) -> Path:
        return self._root / f"{mirror}.git" / "objects"

    def fetched(self, mirror: str) -> Path | None:
        """The objects that were fetched; None: a mirror of before, into which nothing was fetched since."""
        found = self.origin(mirror).directory / "objects"
        return found if found.is_dir() else None

    def tips(self, mirror: str) -> list[str]:
        """Ids that reach all that was fetched and is still in use there."""
        if self.fetched(mirror) is None:
            return []
        return self.origin(mirror).text("for-each-ref", "--format=%(objectname)").split()

    def fetch(
        self,
        repository: str | None,
        branch: str | None,
        *,
        credentials: Mapping[str, str] | None = None,
        stop: Stop | None = None,
    ) -> Base:
        """Asks the repository where `branch` (a branch, a tag, a full commit id; None: its default) is now.

        Fetches what is missing. A repository without commits, and `None`, start from a commit without files.
        Raises `RepositoryForbidden`, `RepositoryUnreachable`, `BranchUnknown`.
        """
        if repository is None:
            return self._empty(SCRATCH, None)
        url = self.reach.checked(repository)
        route, mirror = self.reach.route(url, credentials), _name(url)
        if branch is not None and SHA.fullmatch(branch):
            self._with(route, mirror, branch, stop)
            self._keep_base(mirror, branch)
            return Base(mirror, branch, None)
        source, commit = self._ask(route, mirror, branch, stop)
        if commit is None:
            return self._empty(mirror, source)
        try:
            self._with(route, mirror, commit, stop, source)
        except CommitMissing:  # it was rewritten between the question and the fetch
            source, commit = self._ask(route, mirror, branch, stop)
            if commit is None:
                raise
            self._with(route, mirror, commit, stop, source)
        base = self.git(mirror).text("rev-parse", f"{commit}^{{commit}}")
        self._keep_base(mirror, base)
        return Base(mirror, base, _short(source))

    def prepare(
        self,
        repository: str | None,
        commit: str,
        *,
        credentials: Mapping[str, str] | None = None,
        stop: Stop | None = None,
    ) -> str:
        """The mirror that holds `commit`, an earlier base of this repository; talks to it only if it must."""
        if repository is None:
            return self._empty(SCRATCH, None).mirror
        url = self.reach.checked(repository)
        mirror = _name(url)
        if (self._root / f"{mirror}.git").is_dir() and self.git(mirror).has(commit):
            self._keep_base(mirror, commit)
            return mirror
        if self._empty(mirror, None).commit == commit:
            return mirror
        self._with(self.reach.route(url, credentials), mirror, commit, stop)
        self._keep_base(mirror, commit)
        return mirror

    def remote_ref(
        self,
        repository: str,
        mirror: str,
        ref: str,
        *,
        credentials: Mapping[str, str] | None = None,
        stop: Stop | None = None,
    ) -> str | None:
        """Where the repository itself has `ref` now; None: nowhere. Raises as `fetch` does."""
        route = self.reach.route(self.reach.checked(repository), credentials)
        return self._listed(route, mirror, (ref,), stop)[1].get(ref)

    def keep(self, mirror: str, commit: str) -> None:
        """A ref of its own, so that the commit can be bundled and is never lost."""
        self.git(mirror).run("update-ref", f"refs/keep/{commit}", commit)

    def _keep_base(self, mirror: str, commit: str) -> None:
        """Bundles are taken over only on top of what a reference of the mirror itself reaches."""
        if not (self.git(mirror).directory / "refs/keep" / commit).exists():
            self.keep(mirror, commit)

    def built(self) -> list[Built]:
        """Every branch of a task, in every mirror of this machine."""
        form = "--format=%(refname:lstrip=3) %(objectname)"
        return [
            Built(at.name.removesuffix(".git"), task_ids.read(name), commit)
            for at in sorted(self._root.glob("*.git"))
            for line in self.git(at.name.removesuffix(".git"))
            .text("for-each-ref", form, AGENT_BRANCHES)
            .splitlines()
            for name, _, commit in (line.partition(" "),)
        ]

    def rebuild(self, branch: Built, tip: str | None) -> None:
        """Moves the branch to `tip`, or away with it, if it is still where it was. Raises `GitError`."""
        ref = AGENT_BRANCHES + task_ids.spelled(branch.task_id)
        target = ("-d", ref) if tip is None else (ref, tip)
        self.git(branch.mirror).run("update-ref", "--no-deref", *target, branch.commit)

    def _ask(
        self, route: Route, mirror: str, branch: str | None, stop: Stop | None
    ) -> tuple[str | None, str | None]:
        """The full name of the ref and the id there; (…, None) if the repository has no commits at all."""
        if branch is not None and not _BRANCH.fullmatch(branch):
            raise BranchUnknown(f"{branch!r} can't be the name of a branch")
        wanted = ["HEAD"] if branch is None else [f"refs/heads/{branch}", f"refs/tags/{branch}"]
        head, refs = self._listed(route, mirror, ("HEAD", *wanted), stop)
        found = next((name for name in wanted if name in refs), None)
        if found is not None:
            return (head or found if found == "HEAD" else found), refs[found]
        _, refs = self._listed(route, mirror, (), stop)
        if not refs:
            return (f"refs/heads/{branch}" if branch else head), None
        names = sorted(name.removeprefix("refs/heads/") for name in refs if name.startswith("refs/heads/"))
        what = f"no branch or tag {branch!r}" if branch else "no default branch"
        raise BranchUnknown(f"{route.shown} has {what}; its branches: {', '.join(names[:20]) or 'none'}")

    def _listed(
        self, route: Route, mirror: str, patterns: tuple[str, ...], stop: Stop | None
    ) -> tuple[str | None, dict[str, str]]:
        """The ref that HEAD stands for, and refs by full name."""
        output = self._talk(route, mirror, ("ls-remote", "--symref"), patterns, ASK_TIMEOUT, stop)
        head, refs = None, {}
        for line in output.text.splitlines():
            value, _, name = line.partition("\t")
            if not value.startswith("ref: "):
                refs[name] = value
            elif name == "HEAD":
                head = value.removeprefix("ref: ")
        return head, refs

    def _with(
        self, route: Route, mirror: str, commit: str, stop: Stop | None, source: str | None = None
    ) -> None:
        """Fetches unless the commit was. Packs arrive whole (`unpackLimit`), so one here is complete."""
        git, origin = self.git(mirror), self.origin(mirror)
        if self._is_parted(git.directory) and origin.has(commit):
            return
        with held(self._root / f"{mirror}.lock", stop):
            if git.directory.is_dir():
                self._part(mirror)
                if not origin.has(commit):
                    self._clear_locks(git.directory)
                    self._clear_locks(origin.directory)
                    self._fetch(route, mirror, commit, source, stop)
            else:
                new = f"{mirror}.new"
                self._make(new)
                self._fetch(route, new, commit, source, stop)
                (self._root / f"{new}.git").rename(git.directory)
        if not origin.has(commit):
            raise CommitMissing(commit, f"{route.shown} doesn't hold commit {commit} any more")

    def _fetch(self, route: Route, mirror: str, commit: str, source: str | None, stop: Stop | None) -> None:
        words = ("fetch", "--quiet", "--no-write-fetch-head", "--no-auto-gc", "--force", "--prune")
        wanted: tuple[str, ...] = ("+refs/heads/*:refs/remotes/origin/*",)
        if source is not None:
            # Under its real name a branch `a` that became `a/b` would collide with its own past.
            wanted = (f"+{source}:refs/fetched/{hashlib.sha256(source.encode()).hexdigest()[:16]}",)
        try:
            self._talk(route, mirror, words, wanted, FETCH_TIMEOUT, stop)
            if source is None and not self.origin(mirror).has(commit):
                self._talk(route, mirror, words, (f"{commit}:refs/keep/{commit}",), FETCH_TIMEOUT, stop)
        except RepositoryUnreachable as error:
            if "not our ref" in error.message or "unadvertised object" in error.message:
                raise CommitMissing(commit, f"{route.shown} doesn't hold commit {commit} any more") from error
            raise

    def _talk(
        self,
        route: Route,
        mirror: str,
        words: tuple[str, ...],
        refs: tuple[str, ...],
        timeout: timedelta,
        stop: Stop | None,
    ) -> Output:
        try:
            return self.origin(mirror).run(
                *words,
                *filter(None, route.program[:1]),
                "--",
                route.url,
                *refs,
                settings=("fetch.unpackLimit=1", *route.settings),
                environment=route.environment,
                network=True,
                timeout=timeout,
                stop=stop,
            )
        except GitError as error:
            lasting = any(phrase in error.message for phrase in _FOR_EVER)
            kind = ErrorClass.REPOSITORY if lasting else ErrorClass.NETWORK
            raise RepositoryUnreachable(f"{route.shown}: {_in_short(error.message)}", kind) from error

    def _empty(self, mirror: str, source: str | None) -> Base:
        """A commit without files, always the same."""
        at = self._root / f"{mirror}.git"
        if not at.is_dir():
            with held(self._root / f"{mirror}.lock"):
                if not at.is_dir():
                    self._make(f"{mirror}.new")
                    (self._root / f"{mirror}.new.git").rename(at)
        git = self.git(mirror)
        git.run("hash-object", "-t", "tree", "-w", "--stdin", stdin=b"")
        commit = git.write_commit(EMPTY_TREE, (), "Start from nothing\n", 1_767_225_600)
        self.keep(mirror, commit)
        return Base(mirror, commit, _short(source))

    def _make(self, mirror: str) -> None:
        """Under the mirror's lock: what a killed predecessor left is taken away first."""
        at = self._root / f"{mirror}.git"
        if at.exists():
            shutil.rmtree(at)
        self._initialise(at)
        self._part(mirror)

    def _initialise(self, at: Path) -> None:
        at.mkdir(parents=True, exist_ok=True)
        Git(at, self.reach.environment).run(
            "init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(at)
        )
        (at / "info").mkdir(exist_ok=True)

    def _is_parted(self, at: Path) -> bool:
        return (at / ORIGIN).is_dir() and (at / "objects/info/alternates").exists()

    def _part(self, mirror: str) -> None:
        """Under the mirror's lock: gives it the repository that is fetched into, if it has none yet."""
        at = self._root / f"{mirror}.git"
        if self._is_parted(at):
            return
        if not (at / ORIGIN).is_dir():
            new = at / f"{ORIGIN}.new"
            if new.exists():
                shutil.rmtree(new)
            self._initialise(new)
            self._bring_over(at, new)
            new.rename(at / ORIGIN)
        written = at / "objects/info/alternates.new"
        written.parent.mkdir(exist_ok=True)
        written.write_text(f"../{ORIGIN}/objects\n")
        written.rename(at / "objects/info/alternates")

    def _bring_over(self, mirror: Path, origin: Path) -> None:
        """What a mirror of before had fetched, so that all of it need not come once more. If that fails, it
        does."""
        past = Git(mirror, self.reach.environment)
        if not past.text("for-each-ref", "--count=1", *_PAST):
            return
        with contextlib.suppress(GitError):
            Git(origin, self.reach.environment).run(
                *(
                    "fetch",
                    "--quiet",
                    "--no-write-fetch-head",
                    "--no-auto-gc",
                    "--no-tags",
                    "--",
                    str(mirror),
                ),
                *(f"+{refs}*:{refs}*" for refs in _PAST),
                settings=("fetch.unpackLimit=1",),
                environment={"GIT_ALLOW_PROTOCOL": "file"},
                timeout=FETCH_TIMEOUT,
            )

    def _clear_locks(self, at: Path) -> None:
        """Locks on these refs are taken under our own lock alone, so here they are a killed process's."""
        with contextlib.suppress(FileNotFoundError):
            (at / "packed-refs.lock").unlink()
        for folder in ("refs/fetched", "refs/remotes", "refs/tags"):
            for left in (at / folder).rglob("*.lock"):
                left.unlink(missing_ok=True)


def _name(url: RepositoryUrl) -> str:
    return hashlib.sha256(url.canonical.encode()).hexdigest()[:40]


def _short(ref: str | None) -> str | None:
    if ref is None or ref == "HEAD":
        return None
    return ref.removeprefix("refs/heads/").removeprefix("refs/tags/")


_COMMONPLACE: Final = re.compile(
    r"\s*^fatal: Could not read from remote repository\.\s+"
    r"Please make sure you have the correct access rights\s+and the repository exists\.\s*",
    re.MULTILINE,
)
"""What git adds to each failure to reach a remote, after the cause."""


def _in_short(complaint: str) -> str:
    """The cause alone, where git named one."""
    return (_COMMONPLACE.sub("", complaint) or complaint).removeprefix("fatal: ")
