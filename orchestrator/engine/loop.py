"""Our headless agent: ask the model, append its turn to the journal, carry out its calls, until it is done.

What makes it safe to kill at any point: a turn is appended whole before anything of it is done, and is never
asked for again; a call is begun in the journal before it runs and finished after, with the checkpoint of the
files that it left. Picking up, the loop restores the last checkpoint (the workspace was opened at the step's
base), tells the model of a call that was begun and not finished that its outcome is unknown, without running
it again, and runs the calls that were not begun.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from orchestrator.core.assignment import Assignment, Link
from orchestrator.core.recovery import ErrorClass, of_os_error
from orchestrator.core.verdict import TURN_ABOUT, Ask, Broke, Done, NeedsInput, StopReason, Verdict, Yielded
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.engine import prompt
from orchestrator.engine.dialogue import Dialogue, tool_calls
from orchestrator.engine.limits import exceeded
from orchestrator.engine.ports import (
    Block,
    Call,
    CallAnnounced,
    Heard,
    Journal,
    LeaseLost,
    Model,
    ModelError,
    ModelRequest,
    Reply,
    Spending,
    Stopped,
    StreamEvent,
    TextDelta,
    ToolResult,
    Turn,
    Workspace,
)
from orchestrator.engine.prices import PRICES, Price, cost
from orchestrator.engine.tools import TOOLS
from orchestrator.engine.tools.tool import Outcome, Tool, ToolContext
from orchestrator.engine.untrusted import cut, storable

COMMAND_TIMEOUT: Final = timedelta(minutes=10)
INTERRUPTED: Final = ToolResult(
    "interrupted, outcome unknown: the agent was stopped while this call ran, and it was not run again. "
    "Look at the state of things before you go on.",
    is_error=True,
)
UNSEEN_FAILURE: Final = ToolResult(
    "attempt_completion was not accepted: an earlier call of the same reply failed. Read its result first.",
    is_error=True,
)
ACCEPTED: Final = ToolResult("accepted")


def work(
    assignment: Assignment,
    link: Link,
    *,
    model: Model,
    journal: Journal,
    workspace: Workspace,
    prices: Mapping[str, Price] = PRICES,
    command_timeout: timedelta = COMMAND_TIMEOUT,
) -> Verdict:
    """Carries out the step from wherever its journal left it. Every ordinary failure is a verdict."""
    try:
        return _Work(
            assignment,
            link,
            model=model,
            journal=journal,
            workspace=workspace,
            prices=prices,
            command_timeout=command_timeout,
        ).carry_on()
    except Stopped:
        return Yielded(link.stop.reason or StopReason.DRAIN)
    except LeaseLost:
        return Yielded(StopReason.LEASE_LOST)
    except ModelError as error:
        return Broke(error.code, error.message, error.error, error.retryable, error.retry_after)
    except WorkspaceFault as fault:
        return Broke(fault.code, fault.message, fault.error)
    except OSError as error:
        return Broke("workspace-io", f"the workspace failed: {error.strerror or error}", of_os_error(error))


class _Work:
    """One claim's share of the conversation."""

    def __init__(
        self,
        assignment: Assignment,
        link: Link,
        *,
        model: Model,
        journal: Journal,
        workspace: Workspace,
        prices: Mapping[str, Price],
        command_timeout: timedelta,
    ) -> None:
        self._limits = assignment.limits
        self._budget = assignment.budget
        self._link = link
        self._model = model
        self._journal = journal
        self._workspace = workspace
        self._prices = prices
        self._command_timeout = command_timeout
        self._dialogue = Dialogue(prompt.first_message(assignment), _usable)
        self._schemas = tuple(tool.schema() for tool in TOOLS.values())
        self._calls: dict[str, Call] = {}
        self._answers: Mapping[str, str] = {}
        self._mark = time.monotonic()
        self._moved = False

    def carry_on(self) -> Verdict:
        turn = self._pick_up()
        while True:
            if turn is not None and (verdict := self._carry_out(turn)) is not None:
                return verdict
            self._boundary()
            if broke := self._exceeded():
                return broke
            turn = self._take_turn()

    def _exceeded(self) -> Broke | None:
        """Asked anew before each turn: steps that run beside this one spend of the same budget, so that it is
        overshot by the requests under way at most."""
        elsewhere = self._journal.spent_elsewhere() if self._budget.binds else Spending()
        return exceeded(self._limits, self._budget, self._dialogue, elsewhere, self._since_mark())

    def _pick_up(self) -> Turn | None:
        """Rebuilds the dialogue from the journal and the files from its checkpoint; the last turn, if any."""
        conversation = self._journal.load()
        if conversation.checkpoint is not None:
            self._workspace.restore(conversation.checkpoint)
        self._calls = {call.call_id: call for call in conversation.calls}
        self._answers = conversation.answers
        last = None
        for entry in conversation.entries:
            if isinstance(entry, Heard):
                self._dialogue.hear(entry.text)
                continue
            if last is not None:
                self._replay_results(last)
            self._dialogue.add_turn(entry)
            last = entry
        return last

    def _replay_results(self, turn: Turn) -> None:
        for block in tool_calls(turn.content):
            call = self._calls.get(block["id"])
            self._dialogue.add_result(block["id"], (call and call.result) or INTERRUPTED)

    def _boundary(self) -> None:
        """The end of a turn, or the beginning of a claim. A claim that gave its slot back before it had moved
        would do so for ever, where what it has to open takes longer than a slice."""
        stop = self._link.stop
        if stop.is_set() and (self._moved or stop.reason not in TURN_ABOUT):
            raise Stopped

    def _unless_hard(self) -> None:
        if self._link.stop.is_hard():
            raise Stopped

    def _since_mark(self) -> timedelta:
        return timedelta(seconds=time.monotonic() - self._mark)

    def _take_turn(self) -> Turn:
        """One request, one reply, appended. A reply that a hard stop cut short leaves no trace."""
        number = self._dialogue.turns + 1
        for heard in self._journal.hear(number):
            self._dialogue.hear(heard.text)
        request = ModelRequest(prompt.SYSTEM, self._schemas, self._dialogue.messages())
        reply = self._model.reply(request, self._listen, self._link.stop)
        turn = self._as_turn(number, reply)
        self._journal.append_turn(turn)
        self._moved = True
        self._mark = time.monotonic()
        self._dialogue.add_turn(turn)
        self._tell(turn)
        return turn

    def _as_turn(self, number: int, reply: Reply) -> Turn:
        ids = [block["id"] for block in tool_calls(reply.content)]
        if len(set(ids)) < len(ids) or not self._calls.keys().isdisjoint(ids):
            raise ModelError(
                ErrorClass.AGENT,
                "model-repeated-call",
                "the model used the id of a call twice",
                retryable=True,
            )
        spent = cost(reply.model, reply.usage, self._prices) if self._model.kind == "live" else Decimal(0)
        return Turn(
            number=number,
            content=reply.content,
            stop_reason=reply.stop_reason,
            usage=reply.usage,
            model=reply.model,
            model_kind=self._model.kind,
            request_id=reply.request_id,
            cost_usd=spent,
            elapsed=self._since_mark(),
        )

    def _listen(self, event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            self._link.note("text", {"text": event.text})
        elif isinstance(event, CallAnnounced):
            self._link.note("tool", {"name": event.name, "state": "announced"})

    def _tell(self, turn: Turn) -> None:
        for block in turn.content:
            if block["type"] == "text":
                self._link.log("agent", block["text"] + "\n")
        if turn.cost_usd is None:
            self._link.log("system", f"No price is known for {turn.model}: its cost is not limited.\n")
        self._link.note(
            "turn",
            {
                "number": turn.number,
                "model": turn.model,
                "model_kind": turn.model_kind,
                "tokens": turn.usage.total,
                "cost_usd": None if turn.cost_usd is None else str(turn.cost_usd),
            },
        )

    def _carry_out(self, turn: Turn) -> Verdict | None:
        """The turn's calls, in order; a verdict when one of them ends or parks the step."""
        failed = False
        for block in tool_calls(turn.content):
            outcome = self._outcome(turn, block, failed=failed)
            if isinstance(outcome, Done):
                return outcome
            if isinstance(outcome, Ask):
                return NeedsInput(outcome)
            self._dialogue.add_result(block["id"], outcome)
            failed = failed or outcome.is_error
        return None

    def _outcome(self, turn: Turn, block: Block, *, failed: bool) -> Outcome:
        call_id, name, arguments = block["id"], block["name"], block["input"]
        call, tool = self._calls.get(call_id), TOOLS.get(name)
        context = self._context(call_id)
        if call is not None and call.result is not None:
            ended = tool.run(self._workspace, arguments, context) if tool and tool.touches_nothing else None
            return ended if isinstance(ended, Done) and not call.result.is_error else call.result
        self._unless_hard()
        if call is not None and not (tool and tool.touches_nothing):
            return self._finish(call_id, INTERRUPTED)
        self._journal.begin_call(turn.number, call_id, name, arguments)
        self._calls[call_id] = Call(call_id)
        if tool is None:
            known = ", ".join(TOOLS)
            return self._finish(
                call_id, ToolResult(storable(cut(f"no tool {name!r}; there are: {known}")), True)
            )
        return self._run(tool, call_id, arguments, context, failed=failed)

    def _run(
        self,
        tool: Tool[Any],
        call_id: str,
        arguments: Mapping[str, Any],
        context: ToolContext,
        *,
        failed: bool,
    ) -> Outcome:
        noted = {"name": tool.name, "call_id": call_id, "risk": tool.risk.value}
        self._link.note("tool", {**noted, "state": "started", "arguments": arguments})
        outcome = tool.run(self._workspace, arguments, context)
        if isinstance(outcome, Ask):
            if call_id not in self._answers:
                return outcome
            outcome = ToolResult(prompt.answer(self._answers[call_id]))
        if isinstance(outcome, Done) and failed:
            outcome = UNSEEN_FAILURE
        checkpoint = self._workspace.checkpoint(tool.name) if tool.changes_files else None
        result = self._finish(call_id, outcome if isinstance(outcome, ToolResult) else ACCEPTED, checkpoint)
        self._link.note("tool", {**noted, "state": "finished", "is_error": result.is_error})
        return outcome

    def _finish(self, call_id: str, result: ToolResult, checkpoint: str | None = None) -> ToolResult:
        self._journal.finish_call(call_id, result, checkpoint)
        self._moved = True
        self._calls[call_id] = Call(call_id, result, checkpoint)
        return result

    def _context(self, call_id: str) -> ToolContext:
        return ToolContext(
            call_id=call_id,
            stop=self._link.stop,
            on_output=lambda text: self._link.log("stdout", text),
            command_timeout=self._command_timeout,
        )


def _usable(block: Block) -> bool:
    tool = TOOLS.get(block["name"])
    return tool is not None and tool.problem(block["input"]) is None
