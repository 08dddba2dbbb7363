"""How a workspace fails.

WorkspaceFault (core)          ends the claim; `code` is stable, `error` says whether trying again helps
├── RepositoryUnreachable      repository-unreachable     network, DNS, no access, no such repository
├── BranchUnknown              branch-unknown
├── GitError                   git-failed                 git itself, e.g. a damaged object
├── TreeRefused                tree-refused               git takes no such files; another try would not help
├── CommitMissing              commit-missing             neither here nor in the artifact store
├── RefMoved                   ref-moved                  a compare-and-swap that lost
├── PushRefused                push-refused
└── SandboxUnavailable         sandbox-unavailable        strict mode without bubblewrap
Unavailable (core)
└── ArtifactStoreUnavailable   artifact-store-unavailable
MergeConflict                  two results don't merge; carries the files and a text for the agent
"""

from __future__ import annotations

from orchestrator.core.errors import Unavailable
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.workspace import WorkspaceFault


class RepositoryUnreachable(WorkspaceFault):
    """The repository can't be fetched or pushed to just now, or not with these rights."""

    def __init__(self, message: str, error: ErrorClass = ErrorClass.NETWORK) -> None:
        super().__init__("repository-unreachable", message, error)


class RepositoryForbidden(WorkspaceFault):
    """The address is one that policy doesn't allow, as it is spelled or where its name leads."""

    def __init__(self, message: str) -> None:
        super().__init__("repository-forbidden", message, ErrorClass.REPOSITORY)


class BranchUnknown(WorkspaceFault):
    """The repository answers, but has no such branch or tag."""

    def __init__(self, message: str) -> None:
        super().__init__("branch-unknown", message, ErrorClass.REPOSITORY)


class GitError(WorkspaceFault):
    """A git command of ours failed; `message` is its own, without credentials."""

    def __init__(self, message: str, error: ErrorClass = ErrorClass.RESOURCE) -> None:
        super().__init__("git-failed", message, error)


class TreeRefused(WorkspaceFault):
    """What lies in the workspace can't be committed: git takes it for an attack, or can't read it as the
    repository's attributes say."""

    def __init__(self, message: str) -> None:
        text = f"git refuses what lies in the workspace: {message}"
        super().__init__("tree-refused", text, ErrorClass.VALIDATION)


class CommitMissing(WorkspaceFault):
    """A commit that other work is built on can't be found anywhere."""

    def __init__(self, commit: str, message: str) -> None:
        super().__init__("commit-missing", message, ErrorClass.REPOSITORY)
        self.commit = commit


class RefMoved(WorkspaceFault):
    """A ref isn't where the caller expected it; nothing changed. `actual` is None when it doesn't exist."""

    def __init__(self, ref: str, expected: str | None, actual: str | None) -> None:
        super().__init__(
            "ref-moved",
            f"{ref} is at {actual or 'nothing'}, not at {expected or 'nothing'}",
            ErrorClass.REPOSITORY,
        )
        self.ref = ref
        self.expected = expected
        self.actual = actual


class PushRefused(WorkspaceFault):
    """The remote answered and said no."""

    def __init__(self, message: str) -> None:
        super().__init__("push-refused", message, ErrorClass.REPOSITORY)


class SandboxUnavailable(WorkspaceFault):
    """Commands may only run in bubblewrap here, and bubblewrap doesn't work."""

    def __init__(self, message: str) -> None:
        super().__init__("sandbox-unavailable", message, ErrorClass.RESOURCE)


class ArtifactStoreUnavailable(Unavailable):
    """The artifact store is away, full, or not the one that the other workers use."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__("artifact-store-unavailable", message, hint, retryable=True)


class MergeConflict(Exception):
    """Two results change the same lines. `text` shows git's messages and the hunks with conflict markers."""

    def __init__(self, files: tuple[str, ...], text: str) -> None:
        super().__init__(f"conflict in {', '.join(files)}")
        self.files = files
        self.text = text
