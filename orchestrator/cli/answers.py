"""How a question is shown at a terminal, and what somebody types there as an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from orchestrator.core.spending import STOP

_KINDS: Final = {"tool_approval": "approval", "budget": "budget"}


def lines(question: Mapping[str, Any]) -> Iterator[str]:
    """The text, the options by number, and what silence or an approval mean. A maximum is typed, and a
    number is one already: its options have none."""
    kind = _KINDS.get(question["kind"])
    yield f"? {f'[{kind}] ' if kind else ''}{question['text']}"
    for number, option in enumerate(() if kind == "budget" else question["options"], start=1):
        yield f"    {number}) {option}"
    if question["kind"] == "tool_approval" and question["subject_digest"]:
        yield f"    for exactly this: sha256 {question['subject_digest']}"
    if question["kind"] == "budget":
        offered = "".join(f"{option}, " for option in question["options"] if option != STOP)
        yield f"    the new maximum: {offered}10 (US dollars), 500000 tokens, 200 turns; or {STOP}"
    if question["on_expiry"] == "fail":
        yield f"    without an answer it fails at {_moment(question)}"
    elif question["on_expiry"] == "default":
        yield f"    without an answer at {_moment(question)} it is: {question['default_answer']}"


def prompt(question: Mapping[str, Any]) -> str:
    """What can be typed, in short."""
    many = len(question["options"])
    match question["kind"]:
        case "budget":
            return f"a maximum, or {STOP}"
        case "tool_approval":
            return f"1-{many}, or Deny and why"
        case _:
            return f"1-{many}, or text" if many else "text"


def _moment(question: Mapping[str, Any]) -> str:
    """To the second, in UTC as all that is shown."""
    return f"{question['expires_at'][:19]}Z"


def given(question: Mapping[str, Any], said: str) -> dict[str, Any]:
    """A number is that option's, but where an amount is asked for."""
    is_option = said.isdigit() and 1 <= int(said) <= len(question["options"])
    if is_option and question["kind"] != "budget":
        return {"choice": int(said)}
    return {"text": said}
