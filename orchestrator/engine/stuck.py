"""Whether an agent goes in circles, and what comes next: told, rolled back, a person asked, given up.

Pure over the latest turns, so that a step that was resumed sees what the unbroken one would have seen. What
was done about it is in the journal (`Corrected`); each time the look begins anew after it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.core.verdict import Ask
from orchestrator.engine.dialogue import tool_calls
from orchestrator.engine.ports import Corrected, ToolResult, Turn

TOLD, ROLLED_BACK, ASKED, GIVEN_UP = 1, 2, 3, 4
"""The rungs of the ladder."""
GO_ON, STOP = "Go on", "Stop"
LOOKED_AT: Final = 12
FORGIVEN_AFTER: Final = 12
"""Turns without a circle after which the ladder begins below."""
SAME_CALL: Final = 4
SAME_ERROR: Final = 4
TO_AND_FRO: Final = 6
TALK: Final = 5
_NUMBER: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Seen:
    """One turn, as much of it as tells circles: hashes of its calls, and of what came back."""

    number: int
    calls: str
    outcome: str
    errors: tuple[str, ...]
    acted: bool


def seen(turn: Turn, results: Mapping[str, ToolResult], talk: Iterable[str]) -> Seen:
    """`talk`: names of tools that only speak."""
    calls, spoken = tool_calls(turn.content), set(talk)
    answers = [results[call["id"]] for call in calls if call["id"] in results]
    return Seen(
        turn.number,
        _hash([[call["name"], call["input"]] for call in calls]),
        _hash([answer.text for answer in answers]),
        tuple(
            _hash([call["name"], _NUMBER.sub("0", results[call["id"]].text)])
            for call in calls
            if call["id"] in results and results[call["id"]].is_error
        ),
        any(call["name"] not in spoken for call in calls),
    )


@dataclass(frozen=True, slots=True)
class Circle:
    """What goes round, in words for the model and for people, and the turn in which it began. If it went on
    after a correction, that is where it was first seen."""

    what: str
    began: int


def circle(turns: Sequence[Seen]) -> Circle | None:
    """The circle that the last of these turns closed."""
    return _same_call(turns) or _to_and_fro(turns) or _same_error(turns) or _talk(turns)


def _same_call(turns: Sequence[Seen]) -> Circle | None:
    last = turns[-SAME_CALL:]
    if len(last) < SAME_CALL or not last[0].acted or len({(turn.calls, turn.outcome) for turn in last}) > 1:
        return None
    return Circle(f"the same call {SAME_CALL} times in a row, with the same result", last[0].number)


def _to_and_fro(turns: Sequence[Seen]) -> Circle | None:
    last = turns[-TO_AND_FRO:]
    if len(last) < TO_AND_FRO:
        return None
    even, odd = ({(turn.calls, turn.outcome) for turn in last[start::2]} for start in (0, 1))
    if len(even) > 1 or len(odd) > 1 or even == odd:
        return None
    return Circle("the same two calls in turn, with the same results", last[0].number)


def _same_error(turns: Sequence[Seen]) -> Circle | None:
    """Whatever else happened between: what was done about the error did not help."""
    counts = Counter(error for turn in turns for error in set(turn.errors))
    often = [error for error in turns[-1].errors if counts[error] >= SAME_ERROR] if turns else []
    if not often:
        return None
    began = next(turn.number for turn in turns if often[0] in turn.errors)
    return Circle(f"the same error {counts[often[0]]} times", began)


def _talk(turns: Sequence[Seen]) -> Circle | None:
    last = turns[-TALK:]
    if len(last) < TALK or any(turn.acted for turn in last):
        return None
    return Circle(f"{TALK} turns of words without an action", last[0].number)


class Watch:
    """Fed with every turn and every correction, in order."""

    def __init__(self) -> None:
        self._turns: deque[Seen] = deque(maxlen=LOOKED_AT)
        self._last = Corrected(0, 0, "")

    def feed(self, turn: Seen) -> None:
        self._turns.append(turn)

    def corrected(self, correction: Corrected) -> None:
        self._turns.clear()
        self._last = correction

    def look(self) -> tuple[Circle, int] | None:
        """The circle that the agent is in, and the rung that is next."""
        found = circle(tuple(self._turns))
        if found is None:
            return None
        last = self._last
        if not last.rung or found.began - last.before_turn >= FORGIVEN_AFTER:
            return found, 1
        return Circle(found.what, last.began or found.began), last.rung + 1


def ask(call_id: str, found: Circle) -> Ask:
    return Ask(call_id, f"The agent goes in circles ({found.what}). What should it do?", (GO_ON, STOP))


def is_stop(answer: str) -> bool:
    return answer.strip().casefold() == STOP.casefold()


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
