"""Git over files that an agent can write: always in the sandbox, with a repository that the agent never sees.

What the agent calls `git` is a second repository of its own (`Checkouts`), which nothing here ever reads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from orchestrator.core.recovery import ErrorClass
from orchestrator.workspaces.errors import GitError
from orchestrator.workspaces.files import Files
from orchestrator.workspaces.git import ISOLATION, SETTINGS, SHA
from orchestrator.workspaces.programs import Mount
from orchestrator.workspaces.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT: Final = timedelta(minutes=10)
MAX_FILE: Final = 100 * 1024**2
"""A larger file stays out of commits: most forges refuse it, and every clone would carry it for ever."""
MAX_CHANGES: Final = 1024**3
MAX_NAMES: Final = 64 * 1024**2
MAX_NESTED: Final = 50
POINTER: Final = "gitdir: ../git\n"
"""The tree's own `.git`: beside it in the sandbox (/workspace, /git) as on disk."""

_SNAPSHOT: Final = """set -e
git update-index -z --force-remove --stdin < "$1"
git update-index -z --add --replace --stdin < "$2"
tree=$(git write-tree)
echo "$tree"
[ "$tree" = "$3" ] && exit
printf '%s\\n^%s\\n' "$tree" "$4" | git pack-objects -q --revs --thin --stdout --delta-base-offset
"""
_CHECKOUT: Final = """set -e
git read-tree --reset -u "$1"
if [ "$2" = clean ]; then
  git clean -ffdxq 2>/dev/null || { chmod -R u+rwX . ; git clean -ffdxq; }
  find . -mindepth 2 -name .git -prune -exec rm -rf {} +
fi
rm -rf .git
printf '%s' "$3" > .git
"""

# As `git grep --no-index --exclude-standard -nIz`: hidden files too, links not followed, no file of settings.
RIPGREP: Final = (
    "--no-config", "--line-number", "--with-filename", "--no-heading", "--color=never", "--null",
    "--field-match-separator=\\x00", "--sort=path", "--hidden", "--glob=!.git", "--no-require-git",
    "--no-ignore-dot", "--no-ignore-global", "--no-ignore-parent", "--encoding=none", "--engine=auto",
)  # fmt: skip
RG_FAILED: Final = "[ripgrep failed]"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one attempt's parts lie; all of it is ours to make and to remove."""

    folder: Path
    objects: Path
    """The mirror's objects, which our repository borrows."""
    fetched: Path | None
    """What the task's own repository has, which the agent's borrows, too. What else it needs it holds itself:
    the mirror holds other tasks' work, and its commands don't see that."""

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def own(self) -> Path:
        return self.folder / "own"

    @property
    def seen(self) -> Path:
        """The agent's repository."""
        return self.folder / "git"

    @property
    def borrowed(self) -> tuple[Path, ...]:
        """Objects that our repository reads."""
        return (self.objects, *filter(None, [self.fetched]))

    def agent_mounts(self) -> tuple[Mount, ...]:
        config = self.seen / "config"
        borrowed = () if self.fetched is None else (Mount(self.fetched, str(self.fetched)),)
        return (
            Mount(self.tree, "/workspace", writable=True),
            Mount(self.seen, "/git", writable=True),
            Mount(config, "/git/config"),
            *borrowed,
        )


class Worktree:
    """The tree of one attempt, seen through our repository."""

    def __init__(self, place: Place, sandbox: Sandbox, files: Files) -> None:
        self._place = place
        self._sandbox = sandbox
        self._files = files
        self._own = Mount(place.own, "/own", writable=True)
        self._written: str | None = None
        """The tree that our index stands for; its objects were handed over."""
        self.left_out: tuple[str, ...] = ()
        """What the last snapshot did not take, each with its reason."""

    def checkout(self, commit: str, *, clean: bool) -> None:
        """Writes the tree of `commit`; `clean` also removes everything that isn't in it."""
        self._written = None
        words = ("checkout", commit, "clean" if clean else "", POINTER)
        with tempfile.TemporaryFile() as nothing:
            self._git(("/bin/sh", "-c", _CHECKOUT, *words), nothing, writable=True)

    @contextmanager
    def snapshot(self, last: str, last_tree: str) -> Iterator[tuple[str, IO[bytes] | None]]:
        """The tree as it is now: its id, and a thin pack against commit `last` unless it is `last_tree`."""
        gone, there = self._changes()
        if not gone and not there and self._written is not None:
            yield self._written, None
            return
        removed, added = self._place.own / "removed", self._place.own / "added"
        removed.write_bytes(b"".join(name + b"\0" for name in gone))
        added.write_bytes(b"".join(name + b"\0" for name in there))
        own = self._sandbox.inside(self._own)
        words = ("snapshot", f"{own}/removed", f"{own}/added", last_tree, last)
        with tempfile.TemporaryFile(dir=self._place.folder) as output:
            self._git(("/bin/sh", "-c", _SNAPSHOT, *words), output)
            output.seek(0)
            tree = output.readline().decode("ascii", "replace").strip()
            if not SHA.fullmatch(tree):
                raise GitError("the tree of the workspace could not be written")
            self._written = tree
            yield tree, (None if tree == last_tree else output)

    def grep(self, words: Sequence[str], most_bytes: int) -> tuple[bytes, str]:
        """`git grep` without an index: what it found, at most that much, and what it complained of."""
        script = 'git grep --no-index --exclude-standard "$@" | head -c ' + str(most_bytes)
        with tempfile.TemporaryFile() as output:
            said = self._git(("/bin/sh", "-c", script, "grep", *words), output, timeout=timedelta(seconds=30))
            output.seek(0)
            return output.read(most_bytes), said

    def ripgrep(self, words: Sequence[str], most_bytes: int) -> tuple[bytes, str]:
        """The same lines as `grep` gives, found by ripgrep; text only when it failed."""
        ignored = f"--ignore-file={self._sandbox.inside(self._own)}/info/exclude"
        script = f'{{ rg "$@" || [ $? -ne 2 ] || echo "$0" >&2; }} | head -c {most_bytes}'
        with tempfile.TemporaryFile() as output:
            said = self._git(
                ("/bin/sh", "-c", script, RG_FAILED, *RIPGREP, ignored, *words),
                output,
                timeout=timedelta(seconds=30),
            )
            output.seek(0)
            found = output.read(most_bytes)
        return found, said.replace(RG_FAILED, "").strip() if RG_FAILED in said else ""

    def _changes(self) -> tuple[list[bytes], list[bytes]]:
        """Names to take out of the index, and names to put in, by what really lies there."""
        gone: list[bytes] = []
        there: list[bytes] = []
        left_out: list[str] = []
        links: frozenset[bytes] | None = None
        total = 0
        for tracked, name in self._listed():
            kind, size = self._files.look(name)
            if kind in ("file", "link"):
                total += size
                if size > MAX_FILE or total > MAX_CHANGES:
                    left_out.append(f"{_shown(name)} ({size} bytes: too large)")
                    total -= size
                else:
                    there.append(name)
            elif kind == "folder" and name in (links := self._gitlinks() if links is None else links):
                left_out.append(f"{_shown(name)} (a submodule)")
            elif tracked:
                gone.append(name)
        self.left_out = tuple(left_out)
        return gone, there

    def _listed(self) -> Iterable[tuple[bool, bytes]]:
        nested: list[bytes] = []
        for entry in self._names("-t", "-m", "-o"):
            tag, name = entry[:1], entry[2:]
            if name.endswith(b"/"):
                nested.append(name)
            else:
                yield tag != b"?", name
        # A repository inside the tree (`git init` by a generator, a vendored clone) counts as its files.
        done = 0
        while nested and done < MAX_NESTED:
            folder = nested.pop()
            done += 1
            for name in self._names("-o", folder=folder):
                if name.endswith(b"/"):
                    nested.append(folder + name)
                else:
                    yield False, folder + name

    def _names(self, *options: str, folder: bytes = b"") -> list[bytes]:
        environment = {}
        below = ""
        if folder:
            below = "/" + folder.decode("utf-8", "surrogateescape").rstrip("/")
            environment = {"GIT_INDEX_FILE": f"{self._sandbox.inside(self._own)}/none"}
        with tempfile.TemporaryFile() as output:
            words = ("git", "ls-files", "-z", *options, "--exclude-standard")
            self._git(words, output, below=below, environment=environment)
            if output.tell() > MAX_NAMES:
                raise GitError("the workspace has too many changed files", ErrorClass.LIMIT)
            output.seek(0)
            return list(filter(None, output.read().split(b"\0")))

    def _gitlinks(self) -> frozenset[bytes]:
        """Names of the submodules. Asked once for all: any number of files can have become folders."""
        script = "git ls-files -z -s | { grep -az ^160000 || :; }"
        with tempfile.TemporaryFile() as output:
            self._git(("/bin/sh", "-c", script), output)
            output.seek(0)
            return frozenset(entry.partition(b"\t")[2] for entry in output.read(MAX_NAMES).split(b"\0"))

    def _git(
        self,
        words: Sequence[str],
        output: IO[bytes],
        *,
        writable: bool = False,
        below: str = "",
        environment: Mapping[str, str] | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> str:
        tree = Mount(self._place.tree, "/workspace", writable=writable)
        own, top = self._sandbox.inside(self._own), self._sandbox.inside(tree) + below
        settings = {
            f"GIT_CONFIG_{part}_{index}": value
            for index, setting in enumerate(SETTINGS)
            for part, value in zip(("KEY", "VALUE"), setting.split("=", 1), strict=True)
        }
        return self._sandbox.pipe(
            words,
            mounts=(tree, self._own, *(Mount(at, str(at)) for at in self._place.borrowed)),
            folder=top,
            environment={
                **ISOLATION,
                "GIT_DIR": own,
                "GIT_WORK_TREE": top,
                "GIT_INDEX_FILE": f"{own}/index",
                "GIT_CONFIG_COUNT": str(len(SETTINGS)),
                **settings,
                **(environment or {}),
            },
            stdout=output,
            timeout=timeout,
        )


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "replace")
