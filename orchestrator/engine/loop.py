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
from orchestrator.core.verdict import TURN_ABOUT, Broke, NeedsInput, StopReason, Verdict, Yielded
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.engine import limits, prompt, stuck
from orchestrator.engine.calls import Calls
from orchestrator.engine.context import Context, Room
from orchestrator.engine.dialogue import Dialogue, tool_calls
from orchestrator.engine.early import Early
from orchestrator.engine.means import Means
from orchestrator.engine.ports import (
    CallAnnounced,
    CallCompleted,
    CallFacts,
    Compacted,
    Conversation,
    Corrected,
    Heard,
    Journal,
    LeaseLost,
    Model,
    ModelError,
    ModelRequest,
    ModelSwitched,
    Purpose,
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
from orchestrator.engine.tools.tool import Tool

COMMAND_TIMEOUT: Final = timedelta(minutes=10)


def work(
    assignment: Assignment,
    link: Link,
    *,
    model: Model,
    journal: Journal,
    workspace: Workspace,
    tools: Mapping[str, Tool[Any]] = TOOLS,
    prices: Mapping[str, Price] = PRICES,
    command_timeout: timedelta = COMMAND_TIMEOUT,
    room: Room = Room(),  # noqa: B008 - frozen
) -> Verdict:
    """Carries out the step from wherever its journal left it. Every ordinary failure is a verdict."""
    means = Means(assignment, link, model, journal, workspace, tools, prices, command_timeout)
    early = Early(means)
    try:
        return _Work(means, early, room).carry_on()
    except Stopped:
        return Yielded(link.stop.reason or StopReason.DRAIN)
    except LeaseLost:
        return Yielded(StopReason.LEASE_LOST)
    except WorkspaceFault as fault:
        return Broke(fault.code, fault.message, fault.error)
    except OSError as error:
        return Broke("workspace-io", f"the workspace failed: {error.strerror or error}", of_os_error(error))
    finally:
        early.close()


class _Work:
    """One claim's share of the conversation."""

    def __init__(self, means: Means, early: Early, room: Room) -> None:
        self._means = means
        self._early = early
        self._link = means.link
        self._model = means.model
        self._journal = means.journal
        self._metered = bool(getattr(means.model, "metered", False))
        self._dialogue = Dialogue(prompt.first_message(means.assignment), means.tools)
        self._calls = Calls(means, self._dialogue, early)
        self._context = Context(
            means.model, self._dialogue, self._request, self._ask_aside, self._cost_of, room
        )
        self._watch = stuck.Watch()
        self._talk = frozenset(name for name, tool in means.tools.items() if tool.touches_nothing)
        self._schemas = tuple(tool.schema() for tool in means.tools.values())
        self._answers: Mapping[str, str] = {}
        self._mark = time.monotonic()
        self._moved = False

    def carry_on(self) -> Verdict:
        turn = self._pick_up()
        try:
            while True:
                if turn is not None:
                    if (verdict := self._calls.carry_out(turn)) is not None:
                        return verdict
                    self._see(turn, self._calls.results(turn))
                self._boundary()
                if (verdict := self._exceeded() or self._correct()) is not None:
                    return verdict
                self._make_room()
                turn = self._take_turn()
        except ModelError as error:
            return limits.refused(error, self._means.assignment.budget, self._spent(), self._answers)

    # --- picking up -----------------------------------------------------------------------------------------

    def _pick_up(self) -> Turn | None:
        """Rebuilds the dialogue from the journal and the files from its checkpoint; the last turn, if its
        calls may not all have ended."""
        conversation = self._journal.load()
        if conversation.checkpoint is not None:
            self._means.workspace.restore(conversation.checkpoint)
        self._calls.recall(conversation)
        self._answers = conversation.answers
        return self._replay(conversation)

    def _replay(self, conversation: Conversation) -> Turn | None:
        last: Turn | None = None
        for entry in conversation.entries:
            if last is not None:
                self._see(last, self._calls.replay(last))
                last = None
            match entry:
                case Turn():
                    self._dialogue.add_turn(entry)
                    last = entry
                case Heard():
                    self._dialogue.hear(entry.text)
                case Compacted():
                    self._dialogue.compact(entry)
                case Corrected():
                    self._heed(entry)
        return last

    # --- between two turns ----------------------------------------------------------------------------------

    def _boundary(self) -> None:
        """The end of a turn, or the beginning of a claim. A claim that gave its slot back before it had moved
        would do so for ever, where what it has to open takes longer than a slice."""
        stop = self._link.stop
        moved = self._moved or self._calls.moved
        if stop.is_set() and (moved or stop.reason not in TURN_ABOUT):
            raise Stopped

    def _exceeded(self) -> Verdict | None:
        """Asked anew before each turn: steps that run beside this one spend of the same budget. Where the
        gateway meters the calls it alone keeps the budget, and refuses one."""
        assignment = self._means.assignment
        if broke := limits.exceeded(assignment.limits, self._dialogue, self._since_mark()):
            return broke
        if self._metered or not assignment.budget.binds:
            return None
        found = limits.exhausted(assignment.budget, spent := self._spent())
        return None if found is None else limits.ask_for_budget(*found, spent, self._answers)

    def _spent(self) -> Spending:
        return limits.taken(self._dialogue, self._journal.spent_elsewhere())

    def _see(self, turn: Turn, results: Mapping[str, ToolResult]) -> None:
        self._watch.feed(stuck.seen(turn, results, self._talk))

    def _correct(self) -> Verdict | None:
        """Does something about an agent that goes in circles; a verdict when a person must look, or when
        nothing helps."""
        found = self._watch.look()
        if found is None:
            return None
        circle, rung = found
        number = self._dialogue.turns + 1
        checkpoint = self._calls.checkpoint_before(circle.began) if rung == stuck.ROLLED_BACK else None
        text = prompt.stuck(circle.what, rung, put_back=checkpoint is not None)
        if rung == stuck.ASKED:
            answer = self._answers.get(f"stuck-{number}")
            if answer is None:
                return NeedsInput(stuck.ask(f"stuck-{number}", circle))
            if stuck.is_stop(answer):
                rung = stuck.GIVEN_UP
            text = prompt.answer(answer)
        if rung >= stuck.GIVEN_UP:
            message = f"the agent goes in circles: {circle.what}"
            return Broke("agent-stuck", message, ErrorClass.LIMIT, retryable=False)
        corrected = Corrected(number, rung, text, checkpoint, circle.began)
        self._journal.append(corrected)
        if checkpoint is not None:
            self._means.workspace.restore(checkpoint)
        self._heed(corrected)
        self._link.note("stuck", {"what": circle.what, "rung": rung, "checkpoint": checkpoint})
        return None

    def _heed(self, corrected: Corrected) -> None:
        self._dialogue.tell(corrected.text)
        self._calls.put_back(corrected)
        self._watch.corrected(corrected)

    def _make_room(self) -> None:
        """A claim that died between the two halves of it left the second to the next."""
        if self._context.is_full():
            if (shorter := self._context.shorter()) is not None:
                self._compact(shorter)
        elif not self._dialogue.is_half_compacted:
            return
        if self._context.is_tight() and (summary := self._context.summary()) is not None:
            self._compact(summary)

    def _compact(self, compacted: Compacted) -> None:
        before = self._dialogue.estimate
        self._journal.append(compacted)
        self._dialogue.compact(compacted)
        tokens = {"tokens_before": before, "tokens_after": self._dialogue.estimate}
        self._link.note("compacted", {**tokens, "summary": compacted.summary})

    def _since_mark(self) -> timedelta:
        return timedelta(seconds=time.monotonic() - self._mark)

    # --- one turn -------------------------------------------------------------------------------------------

    def _take_turn(self) -> Turn:
        """One request, one reply, appended. A reply that a hard stop cut short leaves no trace."""
        number = self._dialogue.turns + 1
        for heard in self._journal.hear(number):
            self._dialogue.hear(heard.text)
        turn = self._as_turn(number, self._ask())
        self._journal.append_turn(turn)
        self._moved = True
        self._mark = time.monotonic()
        self._dialogue.add_turn(turn)
        self._tell(turn)
        return turn

    def _request(self, purpose: Purpose = "turn") -> ModelRequest:
        asked = self._means.assignment
        facts = CallFacts(asked.task_id, asked.step_id, asked.fence, self._dialogue.turns + 1, purpose)
        return ModelRequest(prompt.SYSTEM, self._schemas, self._dialogue.messages(), facts)

    def _ask(self) -> Reply:
        """A request that was refused because it is too long is made as short as it can be, once."""
        self._early.begin_reply()
        try:
            return self._model.reply(self._request(), self._listen, self._link.stop)
        except ModelError as error:
            shorter = self._context.without_summary()
            if error.error is not ErrorClass.CONTEXT_TOO_LONG or shorter is None:
                raise
        self._compact(shorter)
        self._early.begin_reply()
        return self._model.reply(self._request("shorter"), self._listen, self._link.stop)

    def _ask_aside(self, request: ModelRequest) -> Reply:
        """For something that is no turn."""
        return self._model.reply(request, lambda _: None, self._link.stop)

    def _as_turn(self, number: int, reply: Reply) -> Turn:
        ids = [block["id"] for block in tool_calls(reply.content)]
        if len(set(ids)) < len(ids) or self._calls.repeats(ids):
            raise ModelError(
                ErrorClass.AGENT,
                "model-repeated-call",
                "the model used the id of a call twice",
                retryable=True,
            )
        return Turn(
            number=number,
            content=reply.content,
            stop_reason=reply.stop_reason,
            usage=reply.usage,
            model=reply.model,
            model_kind=self._model.kind,
            request_id=reply.request_id,
            cost_usd=self._cost_of(reply),
            elapsed=self._since_mark(),
            reason=reply.reason,
            metered=self._metered,
        )

    def _cost_of(self, reply: Reply) -> Decimal | None:
        live = self._model.kind == "live"
        return cost(reply.model, reply.usage, self._means.prices) if live else Decimal(0)

    def _listen(self, event: StreamEvent) -> None:
        match event:
            case TextDelta(text):
                self._link.note("text", {"text": text})
            case CallAnnounced(name):
                self._link.note("tool", {"name": name, "state": "announced"})
            case CallCompleted():
                self._early.hear(event)
            case ModelSwitched(model, reason):
                self._early.begin_reply()
                self._link.note("model", {"model": model, "reason": reason})

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
                **({} if turn.reason is None else {"reason": turn.reason}),
            },
        )
