"""Results become one linear branch: three-way merges of commits in the bare mirror, no files touched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.redaction import beginning
from orchestrator.workspaces.errors import (
    GitError,
    MergeConflict,
    PushRefused,
    RefMoved,
    RepositoryUnreachable,
)
from orchestrator.workspaces.git import Git
from orchestrator.workspaces.remotes import Reach

STEP: Final = "Step"
"""The trailer that says which step a commit of the branch is; a branch has one commit for each."""
SHOWN_CONFLICT: Final = 20_000
PUSH_TIMEOUT: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Integrated:
    """The step's commit on the branch. `created` is False when it was there already, or changes nothing."""

    commit: str
    created: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """The result doesn't fit the branch's tip; `text` is for the agent that gets one more run."""

    files: tuple[str, ...]
    text: str


def compose(message: str, trailers: Mapping[str, str]) -> str:
    """A commit message whose last paragraph is these trailers, whatever the message itself looks like."""
    lines = [f"{key}: {' '.join(value.split())}" for key, value in trailers.items()]
    return "\n\n".join(filter(None, (message.strip(), "\n".join(lines)))) + "\n"


def start_commit(git: Git, base: str, results: Sequence[str]) -> str:
    """The merge of the results on top of `base`, in the given order; the same commit for the same arguments.

    What another of the results already contains (as an ancestor, or as the commit of the same step on the
    branch) is left out. Raises `MergeConflict`.
    """
    merged = base
    for result in _without_contained(git, base, results):
        if _is_ancestor(git, result, merged):
            continue
        if _is_ancestor(git, merged, result):
            merged = result
            continue
        tree = merged_tree(git, merged, result)
        at = max(git.commit(merged).committed_at, git.commit(result).committed_at)
        merged = git.write_commit(tree, (merged, result), "Start from what the step needs\n", at)
    return merged


def integrate(
    git: Git, *, base: str, tip: str, commit: str, message: str, trailers: Mapping[str, str]
) -> Integrated | Conflict:
    """Puts a step's result on the branch `base`..`tip`; the caller holds the task's lock and moves the ref.

    `trailers` has the key `Step`. A commit of that step which is on the branch already is returned as it is.
    """
    if found := find_step(git, base, tip, trailers[STEP]):
        return Integrated(found, created=False)
    result, branch = git.commit(commit), git.commit(tip)
    if result.parents[:1] == (tip,):
        tree = result.tree
    else:
        # merge-tree looks for the merge base itself (`--merge-base` came with git 2.40). The tip's tree as a
        # child of the commit that the step started from makes that commit the base, whatever else the two
        # histories share.
        ours = git.write_commit(branch.tree, result.parents[:1], "The branch as it is\n", branch.committed_at)
        try:
            tree = merged_tree(git, ours, commit)
        except MergeConflict as conflict:
            return Conflict(conflict.files, conflict.text)
    if tree == branch.tree:
        return Integrated(tip, created=False)
    at = max(branch.committed_at, result.committed_at)
    return Integrated(git.write_commit(tree, (tip,), compose(message, trailers), at), created=True)


def find_step(git: Git, base: str, tip: str, step: str) -> str | None:
    """The commit between `base` and `tip` whose `Step` trailer is `step`."""
    return next((sha for sha, value in _steps(git, base, tip) if value == step), None)


def move(git: Git, ref: str, new: str, expected: str | None) -> None:
    """Compare-and-swap; None: it must not exist. Being there already is fine. Raises `RefMoved`."""
    try:
        git.run("update-ref", "--no-deref", ref, new, expected or "0" * len(new))
    except GitError as error:
        actual = git.ref(ref)
        if actual == new:
            return
        if actual != expected:
            raise RefMoved(ref, expected, actual) from error
        raise


def push(
    git: Git,
    reach: Reach,
    remote: str,
    *,
    ref: str,
    new: str,
    expected: str | None,
    credentials: Mapping[str, str] | None = None,
    stop: Stop | None = None,
) -> None:
    """Moves `ref` of the remote from `expected` (None: it doesn't exist there) to `new`; twice is once.

    `credentials`: GIT_ASKPASS and what it needs, seen by this process alone. Raises `RefMoved`,
    `PushRefused`, `RepositoryUnreachable`, `RepositoryForbidden`.
    """
    route = reach.route(reach.checked(remote), credentials)
    try:
        output = git.run(
            "push",
            "--porcelain",
            "--no-verify",
            f"--force-with-lease={ref}:{expected or ''}",
            *filter(None, route.program[1:]),
            "--",
            route.url,
            f"{new}:{ref}",
            settings=route.settings,
            environment=route.environment,
            network=True,
            accept=(0, 1),
            timeout=PUSH_TIMEOUT,
            stop=stop,
        )
    except GitError as error:
        raise RepositoryUnreachable(f"{route.shown}: {error.message}", error.error) from error
    if output.code == 0:
        return
    answer = next((line for line in output.text.splitlines() if line.startswith("!")), output.errors)
    if "stale info" in answer:
        raise RefMoved(ref, expected, "another commit")
    if not answer.startswith("!"):
        raise RepositoryUnreachable(f"{route.shown}: {answer}", ErrorClass.NETWORK)
    raise PushRefused(f"{route.shown}: {answer.lstrip('! ').strip()} {output.errors}"[:2000])


def _steps(git: Git, base: str, tip: str) -> list[tuple[str, str]]:
    pattern = f"--format=%H%x1f%(trailers:key={STEP},valueonly=true,separator=%x1f)"
    lines = git.text("log", pattern, "--end-of-options", tip, f"^{base}").splitlines()
    pairs = [line.split("\x1f") for line in lines]
    return [(sha, value) for sha, *values in pairs for value in values if value]


def _without_contained(git: Git, base: str, results: Sequence[str]) -> list[str]:
    unique = list(dict.fromkeys(results))
    if not unique[1:]:
        return unique
    found = {result: _steps(git, base, result) for result in unique}

    def contained(result: str, other: str) -> bool:
        own = {value for sha, value in found[result] if sha == result}
        return any(value in own for sha, value in found[other] if sha != other)

    return [
        result
        for result in unique
        if not any(contained(result, other) for other in unique if other != result)
    ]


def merged_tree(git: Git, ours: str, theirs: str) -> str:
    """The tree of both, by their common ancestor. Raises `MergeConflict`."""
    output = git.run(
        "merge-tree", "--write-tree", "-z", "--messages", "--name-only", ours, theirs, accept=(0, 1)
    )
    tree, *rest = output.text.split("\0")
    if output.code == 0:
        return tree
    end = rest.index("") if "" in rest else len(rest)
    files = tuple(dict.fromkeys(_shown(name) for name in rest[:end]))
    said = "\n".join(line.strip() for line in rest[end + 1 :] if re.match(r"CONFLICT|Auto-merging", line))
    marked, _ = git.first(
        *("diff", "--no-ext-diff", "--no-textconv", "--no-color", ours, tree, "--", *rest[:end]),
        most=4 * SHOWN_CONFLICT,
        environment={"GIT_LITERAL_PATHSPECS": "1"},
    )
    text = marked.decode("utf-8", "replace")
    if len(text) > SHOWN_CONFLICT:
        text = beginning(text, SHOWN_CONFLICT) + "\n[cut]\n"
    raise MergeConflict(files, f"{said}\n\n{text}")


def _is_ancestor(git: Git, earlier: str, later: str) -> bool:
    return git.run("merge-base", "--is-ancestor", earlier, later, accept=(0, 1)).code == 0


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
