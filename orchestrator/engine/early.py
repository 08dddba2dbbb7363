"""What is done about a call before its reply has ended: checked, shown, and begun if it only reads.

A call counts when the whole reply is in the journal. Until then nothing is changed and nothing is written
down: what was read early is thrown away with a reply that never ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from orchestrator.engine import approval
from orchestrator.engine.means import Means
from orchestrator.engine.ports import CallCompleted
from orchestrator.engine.tools.tool import Outcome, Risk, Tool


class Early:
    """One claim's. Reads, one at a time, only while no call of the same reply may change what is read."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._reading: ThreadPoolExecutor | None = None
        self._read: dict[str, tuple[Mapping[str, Any], Future[Outcome]]] = {}
        self._unchanged = True

    def begin_reply(self) -> None:
        self._forget()
        self._unchanged = True

    def hear(self, call: CallCompleted) -> None:
        """Called while the reply arrives."""
        tool = self._means.tools.get(call.name)
        problem = f"no tool {call.name!r}" if tool is None else tool.problem(call.arguments)
        self._means.link.note(
            "tool",
            {"name": call.name, "call_id": call.call_id, "state": "announced", "problem": problem},
        )
        if tool is None or not (tool.risk is Risk.READ or tool.touches_nothing):
            self._unchanged = False
        elif tool.risk is Risk.READ and problem is None and self._unchanged and not self._asks(tool):
            if self._reading is None:
                self._reading = ThreadPoolExecutor(1, "early-read")
            context = self._means.context(call.call_id)
            running = self._reading.submit(tool.run, self._means.workspace, call.arguments, context)
            self._read[call.call_id] = (call.arguments, running)

    def _asks(self, tool: Tool[Any]) -> bool:
        return approval.is_needed(tool, self._means.assignment.approvals)

    def take(self, call_id: str, arguments: Mapping[str, Any]) -> Outcome | None:
        """What was read for exactly this call; raises what reading raised. None: nothing was."""
        asked, running = self._read.pop(call_id, ({}, None))
        return running.result() if running is not None and asked == arguments else None

    def _forget(self) -> None:
        for _, running in self._read.values():
            running.cancel()
        self._read = {}

    def close(self) -> None:
        """Returns when nothing reads any more."""
        self._forget()
        if self._reading is not None:
            self._reading.shutdown(wait=True, cancel_futures=True)
