"""Faults of a request in people's words: what it should be, and an example; never what was sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_SPAN: Final = "a span of time of at most 30 days: write 30m, 2h or 1d"
_WANTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "max_cost_usd": "an amount of US dollars above 0: write 2 or 0.50",
        "max_tokens": "a number of tokens above 0: write 500000",
        "max_turns": "a number of turns above 0, at most 10000: write 200",
        "max_duration": _SPAN,
        "after": _SPAN,
        "estimate": _SPAN,
        "deadline": "a date or a time: write 2030-01-31 or 2030-01-31T18:00:00Z",
        "credential": "the name of a credential: letters, digits, `_`, `.`, `-`, such as forge",
        "tool_approval": "the name of a class of risk or a tool: write execute, run_command or *",
    }
)
_OWN_WORDS: Final = frozenset({"value_error", "invalid_priority", "missing"})
"""Faults whose text was written by us, or that nothing was given for."""
_PLAINLY: Final = (
    ("Value error, ", ""),
    ("Field required", "it is missing"),
    ("Input should be ", "must be "),
    ("String should ", "must "),
    ("List should ", "must "),
    ("must be a valid string", "must be a text"),
    ("must be a valid list", "must be a list"),
    ("must be a valid boolean", "must be true or false"),
    ("must be a valid dictionary", "must be an object"),
)


_LENGTH: Final = re.compile(r"Value should have at (most|least) (\d+) items? after validation, not (\d+)")
"""Of a text: of lists pydantic speaks otherwise."""


def in_words(fault: Mapping[str, Any]) -> str:
    """Of one fault as pydantic tells it."""
    name = next((part for part in reversed(fault["loc"]) if isinstance(part, str)), "")
    if name in _WANTED and fault["type"] not in _OWN_WORDS:
        return f"must be {_WANTED[name]}"
    said: str = fault["msg"]
    if (length := _LENGTH.fullmatch(said)) is not None:
        return f"must have at {length[1]} {length[2]} characters, and has {length[3]}"
    for theirs, ours in _PLAINLY:
        said = said.replace(theirs, ours)
    return said
