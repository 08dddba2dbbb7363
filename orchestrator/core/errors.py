"""The error tree.

    OrchestratorError
    ├── Refused            the request can't be accepted as it is       (400, 413, 422)
    ├── Denied             who asks may not                             (401, 403)
    ├── Unknown            no such thing for this tenant                (404)
    ├── Conflict           not in this state                            (409)
    └── Unavailable        something that we need is away: try again    (503)

Each error carries a `code` (kebab-case, stable, the same in every door), what happened (`message`), why and
what to do next (`hint`). Doors catch `OrchestratorError` in one place and translate by class.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in a request: a JSON pointer into the body, a stable code, a sentence."""

    pointer: str
    code: str
    detail: str


@dataclass(eq=False)
class OrchestratorError(Exception):
    """An error that a user sees. `message` holds no secret and no traceback."""

    code: str
    message: str
    hint: str = ""
    problems: tuple[Problem, ...] = field(default=())
    retryable: bool = False

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class Refused(OrchestratorError):
    """The request is wrong; sending it again unchanged fails again."""


class Denied(OrchestratorError):
    """No key, a wrong key, or a key without the scope."""


class Unknown(OrchestratorError):
    """Nothing with that id is visible to this tenant."""


class Conflict(OrchestratorError):
    """The thing exists but is not in a state that allows this."""


class Unavailable(OrchestratorError):
    """Database, broker or store can't be reached; nothing was half-written."""
