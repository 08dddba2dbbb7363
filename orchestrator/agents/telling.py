"""What of an agent's doings is told to the outside: all that a person can follow, and no flood.

Events that come too fast are counted instead; a log that grows beyond any use is cut off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from orchestrator.core.assignment import Link
from orchestrator.engine.untrusted import cut, storable

SHOWN: Final = 2000
MOST_NAME: Final = 200
BURST: Final = 400
"""Events that may come at once."""
PER_SECOND: Final = 10.0
"""And so many after that."""
MOST_LOG: Final = 8 * 1024**2
"""Characters of one claim's log that come from the agent and its program."""
MOST_OPEN: Final = 1000
"""Tool calls at a time whose ends are waited for."""
PLAN_SECONDS: Final = 1.0


class Pace:
    """Lets `BURST` through at once, and `PER_SECOND` after that."""

    def __init__(self) -> None:
        self._room = float(BURST)
        self._at = time.monotonic()

    def admits(self) -> bool:
        now = time.monotonic()
        self._room = min(BURST, self._room + (now - self._at) * PER_SECOND)
        self._at = now
        if self._room < 1.0:
            return False
        self._room -= 1.0
        return True


class Telling:
    """One claim's. Everything that it is given may be anything at all."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._pace = Pace()
        self._left_out = 0
        self._logged = 0
        self._open: dict[str, tuple[str, bool]] = {}
        self._plan: list[dict[str, Any]] | None = None
        self._planned_at = -PLAN_SECONDS

    @property
    def has_open_tools(self) -> bool:
        return bool(self._open)

    def begin_prompt(self) -> None:
        self._open.clear()

    # --- logs -----------------------------------------------------------------------------------------------

    def log(self, stream: str, text: str) -> None:
        """Up to a bound, and then that there was more."""
        if self._logged > MOST_LOG:
            return
        kept = text[: max(0, MOST_LOG - self._logged)]
        self._logged += len(text)
        self._link.log(stream, storable(kept))
        if self._logged > MOST_LOG:
            self._link.log("system", f"The agent's output after {MOST_LOG:,} characters is not kept.\n")

    # --- tools and plans ------------------------------------------------------------------------------------

    def tool_started(self, call_id: str, name: str, arguments: Mapping[str, Any]) -> None:
        is_told = self._pace.admits()
        if len(self._open) < MOST_OPEN:
            self._open[call_id[:MOST_NAME]] = (name[:MOST_NAME], is_told)
        if is_told:
            self._note(call_id, name, {"state": "started", "arguments": _storable(arguments)})
        else:
            self._left_out += 1

    def tool_finished(self, call_id: str, *, is_error: bool, output: str) -> None:
        name, is_told = self._open.pop(call_id[:MOST_NAME], ("", False))
        if is_told or (not name and self._pace.admits()):
            self._note(call_id, name, {"state": "finished", "is_error": is_error})
        if output:
            self.log("stdout", cut(output, SHOWN) + "\n")

    def _note(self, call_id: str, name: str, more: Mapping[str, Any]) -> None:
        shown = {"name": storable(name[:MOST_NAME]), "call_id": storable(call_id[:MOST_NAME])}
        self._link.note("tool", {**shown, **more})

    def planned(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Of plans in quick succession the last is told."""
        self._plan = [_storable(entry) for entry in entries[:100]]

    def catch_up(self) -> None:
        """Tells what was held back; to be called often."""
        now = time.monotonic()
        if self._plan is not None and now - self._planned_at >= PLAN_SECONDS:
            self._link.note("plan", {"entries": self._plan})
            self._plan, self._planned_at = None, now

    def close(self) -> None:
        """A prompt has ended: what is left is told."""
        self._planned_at = -PLAN_SECONDS
        self.catch_up()
        if self._left_out:
            why = "they came too fast"
            self._link.log("system", f"{self._left_out:,} of the agent's tool calls are not shown: {why}.\n")
            self._left_out = 0


def _storable(value: Mapping[str, Any]) -> dict[str, Any]:
    return {storable(str(key)): _plain(inner, 4) for key, inner in list(value.items())[:100]}


def _plain(value: object, depth: int) -> Any:
    """JSON that Postgres takes, whatever an agent sent; what lies too deep is left out."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return {storable(str(key)): _plain(inner, depth - 1) for key, inner in list(value.items())[:100]}
    if isinstance(value, list | tuple):
        return [_plain(inner, depth - 1) for inner in value[:100]]
    return storable(str(value))
