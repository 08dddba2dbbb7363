"""The one place where the name of a credential becomes a secret, for one git that fetches or pushes.

A credential is an https address with a user and a password in it, and is used for repositories at that
address and below it, never elsewhere: whoever writes a task chooses names and addresses, and must not be able
to have a password sent to a server of his own.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from orchestrator.core.recovery import ErrorClass
from orchestrator.core.workspace import WorkspaceFault

_ASKPASS: Final = """\
#!/bin/sh
case "$1" in
Username*) printf '%s\\n' "$ORCHESTRATOR_GIT_USER" ;;
*) printf '%s\\n' "$ORCHESTRATOR_GIT_PASSWORD" ;;
esac
"""


class CredentialUnusable(WorkspaceFault):
    """The worker doesn't have it, or has it for another address."""

    def __init__(self, message: str) -> None:
        super().__init__("credential-unusable", message, ErrorClass.REPOSITORY)


class Credentials:
    """`known`: addresses with user and password, by name. `folder`: for the program that git asks."""

    def __init__(self, known: Mapping[str, str], folder: Path) -> None:
        self._known = known
        self._askpass = folder / "askpass"

    def environment(self, name: str | None, repository: str | None) -> dict[str, str] | None:
        """What a git process needs to log in there; None without a name. Raises `CredentialUnusable`."""
        if name is None or repository is None:
            return None
        if name not in self._known:
            raise CredentialUnusable(f"this worker has no credential {name!r} in ORCHESTRATOR_CREDENTIALS")
        found = urlsplit(self._known[name])
        if not _covers(found, urlsplit(repository)):
            raise CredentialUnusable(f"credential {name!r} is for another address than the repository's")
        return {
            "GIT_ASKPASS": str(self._program()),
            "ORCHESTRATOR_GIT_USER": unquote(found.username or ""),
            "ORCHESTRATOR_GIT_PASSWORD": unquote(found.password or ""),
        }

    def _program(self) -> Path:
        """Written whole, since many processes may want it at once."""
        if not self._askpass.exists():
            new = self._askpass.with_name(f".askpass-{secrets.token_hex(4)}")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "w") as file:
                file.write(_ASKPASS)
            new.replace(self._askpass)
        return self._askpass


def passwords(known: Mapping[str, str]) -> list[str]:
    """What must be shown nowhere."""
    found = (urlsplit(address).password for address in known.values())
    return [unquote(password) for password in found if password]


def _covers(credential: SplitResult, repository: SplitResult) -> bool:
    same = (credential.hostname, credential.port or 443) == (repository.hostname, repository.port or 443)
    above, below = _parts(credential.path), _parts(repository.path)
    # git's http library resolves dots before it asks: a path with them isn't where it seems to be.
    straight = not {".", ".."} & {*above, *below}
    return same and repository.scheme == "https" and straight and below[: len(above)] == above


def _parts(path: str) -> list[str]:
    return [part for part in unquote(path).split("/") if part]
