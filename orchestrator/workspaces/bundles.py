"""Commits on their way to other machines: thin git bundles in the artifact store."""

from __future__ import annotations

import tempfile
from pathlib import Path

from orchestrator.core.errors import Unknown
from orchestrator.workspaces.artifacts import Artifacts
from orchestrator.workspaces.errors import CommitMissing, GitError
from orchestrator.workspaces.mirrors import Mirrors


class Bundles:
    """Puts in and takes out; a commit is named by its id alone, so storing it twice changes nothing."""

    def __init__(self, mirrors: Mirrors, artifacts: Artifacts) -> None:
        self._mirrors = mirrors
        self._artifacts = artifacts

    def store(self, mirror: str, commit: str, base: str) -> str:
        """Everything of `commit` that `base` doesn't reach; the key. Whoever fetches it must have `base`."""
        key = _key(mirror, commit)
        if commit == base or self._artifacts.has(key):
            return key
        self._mirrors.keep(mirror, commit)
        with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
            at = Path(folder) / "bundle"
            words = ("bundle", "create", "--quiet", str(at), f"refs/keep/{commit}", f"^{base}")
            self._mirrors.git(mirror).run(*words)
            with at.open("rb") as file:
                self._artifacts.put(file, key)
        return key

    def ensure(self, mirror: str, commit: str) -> None:
        """The commit is in the mirror afterwards. Raises `CommitMissing`, `ArtifactStoreUnavailable`."""
        git = self._mirrors.git(mirror)
        if git.has(commit):
            return
        with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
            at = Path(folder) / "bundle"
            try:
                with at.open("wb") as file:
                    self._artifacts.copy(_key(mirror, commit), file)
                git.run(
                    "fetch",
                    "--quiet",
                    "--no-write-fetch-head",
                    "--no-tags",
                    "--",
                    str(at),
                    f"refs/keep/{commit}:refs/keep/{commit}",
                    settings=("fetch.unpackLimit=1",),
                    environment={"GIT_ALLOW_PROTOCOL": "file"},
                )
            except Unknown as error:
                raise CommitMissing(
                    commit, f"commit {commit} is neither here nor in the artifact store"
                ) from error
            except GitError as error:
                raise CommitMissing(
                    commit, f"commit {commit} can't be taken over: {error.message}"
                ) from error


def _key(mirror: str, commit: str) -> str:
    return f"bundles/{mirror}/{commit}.bundle"
