"""One attempt's workspace: what the engine, the adapters and the shell do with it."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from time import monotonic_ns
from typing import Final

from orchestrator.core.assignment import Stop
from orchestrator.core.redaction import beginning
from orchestrator.core.task_id import spelled
from orchestrator.core.workspace import (
    BackgroundOutput,
    CommandResult,
    Match,
    WorkspaceFault,
    WorkspaceRefusal,
)
from orchestrator.workspaces.background import Background
from orchestrator.workspaces.commands import Ended
from orchestrator.workspaces.errors import GitError, MergeConflict, TreeRefused
from orchestrator.workspaces.files import Files
from orchestrator.workspaces.git import Git
from orchestrator.workspaces.integrate import compose, merged_tree
from orchestrator.workspaces.programs import Mount, Program, Running
from orchestrator.workspaces.room import Room
from orchestrator.workspaces.sandbox import Ran, Sandbox
from orchestrator.workspaces.worktree import MAX_CHANGES, Place, Worktree

MAX_MATCHES: Final = 200
SERVED: Final = timedelta(hours=24)
"""What a served program may use of each processor at most; it lives no longer than the claim."""
MATCHES_IN_FILE: Final = 50
MATCH_TEXT: Final = 500
MAX_FOUND: Final = 2 * 1024**2
_GLOB_SIGNS: Final = "\\*?[]"


@dataclass(frozen=True, slots=True)
class AttemptOwner:
    """Whose workspace a folder is; `pid` and `boot_id` tell whether that process still runs."""

    task_id: str
    step_id: str
    attempt: int
    pid: int
    boot_id: str

    @property
    def name(self) -> str:
        """What its folder is called."""
        return spelled(f"{self.step_id}-{self.attempt}")


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file of a diff; None for both numbers: it isn't text."""

    path: str
    added: int | None
    deleted: int | None


class Workspace:
    """Files and commands of one attempt, and the commits made of them.

    Raises `WorkspaceRefusal` for what the agent asked wrongly and `WorkspaceFault` for what broke.
    """

    def __init__(
        self,
        owner: AttemptOwner,
        place: Place,
        git: Git,
        sandbox: Sandbox,
        start: str,
        bring: Callable[[str], None],
    ) -> None:
        self.owner = owner
        self.start = start
        """The commit that the step builds on."""
        self._place = place
        self._git = git
        self._sandbox = sandbox
        self._bring = bring
        self._files = Files(place.tree)
        self._worktree = Worktree(place, sandbox, self._files)
        self._background = Background()
        self._served: list[Running] = []
        self._room = Room([at.source for at in place.agent_mounts() if at.writable], sandbox.bounds.room)
        self._last = git.commit(start)

    @property
    def tree(self) -> Path:
        """The checkout, on this machine's disk."""
        return self._place.tree

    @property
    def visible_path(self) -> str:
        """The same as commands see it: /workspace, or the real path where there is no sandbox."""
        return self._sandbox.inside(self._place.agent_mounts()[0])

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the last checkpoint or result could not take (too large, a submodule), with reasons."""
        return self._worktree.left_out

    def read(self, path: str, start: int | None = None, end: int | None = None) -> str:
        return self._files.read(path, start, end)

    def has(self, path: str) -> bool:
        return self._files.has(path)

    def write(self, path: str, text: str) -> None:
        self._files.write(path, text)

    def delete(self, path: str) -> None:
        self._files.delete(path)

    def move(self, path: str, to: str) -> None:
        self._files.move(path, to)

    def list(self, path: str, depth: int) -> Sequence[str]:
        return self._files.names(path, depth)

    def search(self, pattern: str, path: str, glob: str | None) -> Sequence[Match]:
        """At most 200 lines, 50 of a file; ignored and binary files are passed over.

        It runs in the sandbox: a model's expression can take for ever.
        """
        inside = "/".join(self._files.parts(path))
        if self._sandbox.finds("rg"):
            data = self._ripgrep(pattern, inside, glob)
        else:
            data = self._git_grep(pattern, inside, glob)
        found = [match for line in data.split(b"\n") if (match := _match(line)) is not None]
        if glob is not None and inside and self._files.look(os.fsencode(inside))[0] == "file":
            found = [match for match in found if fnmatch.fnmatch(match.path, glob)]
        return found[:MAX_MATCHES]

    def _git_grep(self, pattern: str, inside: str, glob: str | None) -> bytes:
        pathspecs = [f":(top,literal){inside}"] if inside else []
        if glob is not None:
            above = _escaped(inside)
            patterns = [f"{above}/{glob}" if above else glob]
            if "/" not in glob:
                patterns.append(f"{above}/**/{glob}" if above else f"**/{glob}")
            pathspecs = [f":(top,glob){pattern}" for pattern in patterns]
        for dialect in ("-P", "-E"):
            words = [dialect, "-n", "-I", "-z", "--no-color", f"--max-count={MATCHES_IN_FILE}", "-e", pattern]
            data, said = self._worktree.grep([*words, "--", *pathspecs], MAX_FOUND)
            if "cannot use Perl-compatible" not in said:
                break
        if "fatal:" in said:
            raise WorkspaceRefusal(f"the search failed: {said.partition('fatal:')[2].strip()}")
        return data

    def _ripgrep(self, pattern: str, inside: str, glob: str | None) -> bytes:
        """Faster in large trees, and its own expressions take linear time; else the same."""
        if inside and self._files.look(os.fsencode(inside))[0] not in ("file", "folder"):
            return b""
        words = [f"--max-count={MATCHES_IN_FILE}"]
        if glob is not None:
            above = f"{_escaped(inside)}/" if inside else ""
            escaped = f"\\{glob}" if glob.startswith("!") else glob
            words.append(f"--glob=/{above}{glob}" if "/" in glob else f"--glob={escaped}")
        data, said = self._worktree.ripgrep([*words, "-e", pattern, "--", inside or "."], MAX_FOUND)
        if said and not data:
            raise WorkspaceRefusal(f"the search failed: {said}")
        return data

    def run(
        self, command: str, *, timeout: timedelta, on_output: Callable[[str], None], stop: Stop
    ) -> CommandResult:
        """One shell command in the root; whatever it started has ended when this returns."""
        ran = self._ran(command, timeout, on_output, stop)
        output = ran.output
        if ran.ended not in (Ended.EXIT, Ended.STOP):
            output += f"\n[killed: {ran.ended}]"
        return CommandResult(ran.code, output, ran.truncated, timed_out=ran.ended is Ended.TIMEOUT)

    def start_background(
        self, handle: str, command: str, *, timeout: timedelta, on_output: Callable[[str], None], stop: Stop
    ) -> None:
        """A shell command that goes on by itself: until its end, its timeout, a hard `stop` or `close`.

        Only the beginning of its output is passed to `on_output`, as with `run`.
        """
        most = self._sandbox.bounds
        live = most.shown_bytes

        def shown(text: str) -> None:
            nonlocal live
            if live > 0:
                live -= len(text)
                on_output(text)

        def run(heard: Callable[[str], None], own: Stop) -> Ran:
            return self._ran(command, timeout, heard, own, most.output_bytes)

        self._background.start(handle, run, shown, stop)

    def read_background(self, handle: str, wait: timedelta, stop: Stop) -> BackgroundOutput:
        """Waits up to `wait` for its end, then says what it printed since it was last looked at."""
        return self._background.read(handle, wait, stop)

    def stop_background(self, handle: str) -> BackgroundOutput:
        return self._background.stop(handle)

    def serve(self, words: Sequence[str], environment: Mapping[str, str]) -> Running:
        """A program over these files that is talked to through pipes; `close` ends it at the latest."""
        running = self.launch(
            Program(
                words=words,
                environment=environment,
                mounts=(),
                folder=self.visible_path,
                mark=f"{os.getpid()}-served-{monotonic_ns()}",
                memory_bytes=self._sandbox.bounds.memory_bytes,
                wall_time=SERVED,
            )
        )
        self._served.append(running)
        return running

    def close(self) -> None:
        """Ends what still runs over these files. The files stay; may be called again."""
        self._background.close()
        for running in self._served:
            running.end(closing=0, terminating=0)
        self._served.clear()

    def _ran(
        self,
        command: str,
        timeout: timedelta,
        on_output: Callable[[str], None],
        stop: Stop,
        shown_bytes: int | None = None,
    ) -> Ran:
        found: list[WorkspaceFault] = []

        def takes_too_much() -> bool:
            found.extend(filter(None, [self.takes_too_much()]))
            return bool(found)

        if takes_too_much():
            raise found[0]
        shell = next((at for at in ("/bin/bash", "/usr/bin/bash") if Path(at).exists()), "/bin/sh")
        ran = self._sandbox.run(
            [shell, "-c", command],
            mounts=self._place.agent_mounts(),
            folder=self.visible_path,
            timeout=timeout,
            on_output=on_output,
            stop=stop,
            shown_bytes=shown_bytes,
            takes_too_much=takes_too_much,
        )
        if ran.ended is Ended.ROOM:
            raise found[0]
        return ran

    def count_in(self, folder: Path) -> None:
        """What is written there counts as these files do: an agent's HOME."""
        self._room.cover(folder)

    def takes_too_much(self) -> WorkspaceFault | None:
        """Why what runs over these files must end now: they take too much of the disk, or it is full. To be
        asked several times a second while a program runs."""
        return self._room.fault()

    def launch(self, program: Program) -> Running:
        """A program over these files, with what it mounts besides; the caller ends it."""
        mounts = (*self._place.agent_mounts(), *program.mounts)
        return self._sandbox.start(replace(program, mounts=mounts))

    def inside(self, mount: Mount) -> str:
        """The path under which a program finds it."""
        return self._sandbox.inside(mount)

    @property
    def is_confined(self) -> bool:
        """Whether programs see these files alone, and no network."""
        return self._sandbox.kind == "bubblewrap"

    def checkpoint(self, label: str) -> str | None:
        """A commit of the tree on top of the last one; None if the tree is as it was there."""
        tree = self._taken()
        if tree == self._last.tree:
            return None
        sha = self._git.write_commit(tree, (self._last.sha,), compose(label, {}), self._last.committed_at)
        self._keep(sha)
        self._last = self._git.commit(sha)
        return sha

    def restore(self, commit: str) -> None:
        """The tree is exactly that of `commit`. If it was already, ignored files are left as they are."""
        wanted = self._git.commit(commit)
        try:
            is_there = self._taken() == wanted.tree
        except TreeRefused:
            is_there = False
        if not is_there:
            self._worktree.checkout(commit, clean=True)
        self._last = wanted

    @property
    def is_changed(self) -> bool:
        """Whether the tree is another than the step began with."""
        return self._taken() != self._git.commit(self.start).tree

    def adopt(self, commit: str) -> str | None:
        """Merges what was built on a checkpoint of this attempt, maybe by another machine, into the tree.

        The next checkpoint holds it. The text of a conflict: the tree is as it was. Raises `CommitMissing`.
        """
        self._bring(commit)
        tree = self._taken()
        ours = self._last
        if tree != ours.tree:
            as_it_is = self._git.write_commit(tree, (ours.sha,), "The tree as it is\n", ours.committed_at)
            ours = self._git.commit(as_it_is)
        try:
            merged = merged_tree(self._git, ours.sha, commit)
        except MergeConflict as conflict:
            return conflict.text
        if merged != tree:
            both = self._git.write_commit(merged, (ours.sha, commit), "Adopt\n", ours.committed_at)
            self._keep(both)
            self._worktree.checkout(both, clean=False)
        return None

    def result(self, message: str, trailers: Mapping[str, str], base: str) -> str | None:
        """One commit on `base` with all that changed since; None if nothing did. Twice gives the same sha."""
        tree, start = self._taken(), self._git.commit(base)
        if tree == start.tree:
            return None
        sha = self._git.write_commit(tree, (base,), compose(message, trailers), start.committed_at)
        self._keep(sha)
        return sha

    def patch(self, base: str, commit: str, most_bytes: int = 1024**2) -> str:
        """A unified diff of two commits, cut at `most_bytes`; binary files are only named."""
        return patch(self._git, base, commit, most_bytes)

    def changes(self, base: str, commit: str) -> tuple[FileChange, ...]:
        return changes(self._git, base, commit)

    def _taken(self) -> str:
        """Brings the tree's objects to the mirror, checked; its id. Raises TreeRefused."""
        self._room.check_size()
        try:
            with self._worktree.snapshot(self._last.sha, self._last.tree) as (tree, pack):
                if pack is not None:
                    self._git.take_pack(pack, MAX_CHANGES)
                return tree
        except GitError as error:
            if (found := _REFUSED.search(error.message)) is None:
                raise
            raise TreeRefused((found[1] or found[2]).strip()) from error

    def _keep(self, sha: str) -> None:
        self._git.run("update-ref", f"refs/keep/{sha}", sha)


_REFUSED: Final = re.compile(
    r"error: object [0-9a-f]+: ([^\n]+)(?=[\s\S]*fsck error)"
    r"|(?:hint|error|fatal): ([^\n]*(?:working-tree-encoding|byte order mark|Permission denied)[^\n]*)"
)


def patch(git: Git, base: str, commit: str, most_bytes: int = 1024**2) -> str:
    words = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--find-renames", base, commit, "--")
    text, size = git.first(*words, most=most_bytes)
    shown = text.decode("utf-8", "replace")
    if size <= most_bytes:
        return shown
    return f"{beginning(shown, len(shown) - 1)}\n[cut: {size} bytes in all]\n"


def changes(git: Git, base: str, commit: str) -> tuple[FileChange, ...]:
    """What differs between two commits, by file; a renamed file is one deleted and one added."""
    words = ("diff", "--no-ext-diff", "--no-textconv", "--numstat", "--no-renames", "-z", base, commit, "--")
    entries = [entry.split(b"\t", 2) for entry in git.run(*words).data.split(b"\0") if entry]
    return tuple(
        FileChange(name.decode("utf-8", "replace"), _number(added), _number(deleted))
        for added, deleted, name in entries
    )


def _escaped(path: str) -> str:
    return "".join(f"\\{sign}" if sign in _GLOB_SIGNS else sign for sign in path)


def _number(text: bytes) -> int | None:
    return None if text == b"-" else int(text)


def _match(line: bytes) -> Match | None:
    path, _, rest = line.partition(b"\0")
    number, separator, text = rest.partition(b"\0")
    if not separator or not number.isdigit():
        return None
    shown = text.decode("utf-8", "replace").rstrip("\r")
    return Match(
        path.decode("utf-8", "replace").removeprefix("./"), int(number), beginning(shown, MATCH_TEXT)
    )
