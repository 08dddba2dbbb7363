"""What a provider is shown to be let in, and how it is renewed: once, however many wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


class Credential(Protocol):
    """Shared by all who send with it, from any thread. Both methods may block while it is being renewed."""

    def current(self) -> str: ...

    def renewed(self, refused: str, /) -> str | None:
        """Another one, now that `refused` was refused; None when there is no other."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A key, or a run's token: refused once, it is refused for good."""

    secret: str = field(repr=False)

    def current(self) -> str:
        return self.secret

    def renewed(self, _: str, /) -> str | None:
        return None


class Renewable:
    """A token that expires. `fetch` gets a new one and raises `ModelError` when it can't; it is never under
    way twice at a time, and who comes meanwhile waits for what it brings.
    """

    def __init__(self, fetch: Callable[[], str]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._token: str | None = None

    def current(self) -> str:
        with self._lock:
            if self._token is None:
                self._token = self._fetch()
            return self._token

    def renewed(self, refused: str, /) -> str | None:
        with self._lock:
            if self._token == refused:
                self._token = self._fetch()
            return None if self._token == refused else self._token
