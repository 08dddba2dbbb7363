"""Which requests a part of a script is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from orchestrator.modelserver.asked import Asked, Dialect, Speaker


class Strict(BaseModel):
    """A part of a script's file: a field that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""One text or a list of them."""


class When(Strict):
    """All that is said must hold. Patterns are those of file names: `*`, `?`, `[…]`."""

    since: str | None = None
    """The conversation begins, for all else and for the count of its turns, where the user first said this:
    some clients (Aider) put examples of conversations before it.
    """
    contains: Texts = ()
    """Each is in what the user said before the model first spoke."""
    lacks: Texts = ()
    """None is in there."""
    latest: Texts = ()
    """Each is in what came after the model last spoke."""
    anywhere: Texts = ()
    """Each is in the conversation or its instructions."""
    model: str | None = None
    dialect: Dialect | None = None
    headers: Mapping[str, str] = {}
    """Name to pattern."""
    offers: str | None = None
    """A tool of this name is offered."""
    tools: bool | None = None
    """Whether any tool is offered."""

    def seen(self, asked: Asked) -> Asked | None:
        """The request from where the conversation begins; None when it doesn't."""
        if self.since is None:
            return asked
        for index, item in enumerate(asked.items):
            if item.speaker is Speaker.USER and self.since in item.text:
                return replace(asked, items=asked.items[index:])
        return None

    def matches(self, asked: Asked, headers: Mapping[str, str]) -> bool:
        seen = self.seen(asked)
        return seen is not None and self._holds(seen, headers)

    def _holds(self, asked: Asked, headers: Mapping[str, str]) -> bool:
        return (
            self._fits(asked)
            and all(
                fnmatchcase(headers.get(name.lower(), ""), pattern) for name, pattern in self.headers.items()
            )
            and _all_in(self.contains, asked.opening)
            and not any(text in asked.opening for text in self.lacks)
            and _all_in(self.latest, asked.latest)
            and (not self.anywhere or _all_in(self.anywhere, asked.everything))
        )

    def _fits(self, asked: Asked) -> bool:
        return (
            (self.model is None or fnmatchcase(asked.model, self.model))
            and self.dialect in {None, asked.dialect}
            and (self.offers is None or asked.offered(self.offers) is not None)
            and self.tools in {None, bool(asked.tools)}
        )


def _all_in(texts: tuple[str, ...], whole: str) -> bool:
    return all(text in whole for text in texts)
