"""The calls of a step's turns, carried out once.

A call is begun in the journal before it runs and finished after, with the checkpoint of the files that it
left. One that was begun by a claim that died is not run again: the model is told that its outcome is unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from orchestrator.core.leave import is_granted
from orchestrator.core.states import Status, WaitingOn
from orchestrator.core.subtask import SubtaskEnd, SubtaskRequest
from orchestrator.core.verdict import Ask, Done, NeedsInput, Verdict, Waits
from orchestrator.engine import approval, prompt
from orchestrator.engine.dialogue import Dialogue, tool_calls
from orchestrator.engine.early import Early
from orchestrator.engine.means import Means
from orchestrator.engine.ports import Block, Call, Conversation, Corrected, SubtaskRefused, ToolResult, Turn
from orchestrator.engine.tools.tool import Outcome, Risk, Tool
from orchestrator.engine.untrusted import cut, storable

_SUBTASK: Final = "start_subtask"
_QUESTION: Final = "ask_followup_question"
_CLAIM: Final = "attempt_completion"
INTERRUPTED: Final = ToolResult(
    "interrupted, outcome unknown: the agent was stopped while this call ran, and it was not run again. "
    "Look at the state of things before you go on.",
    is_error=True,
)
UNSEEN_FAILURE: Final = ToolResult(
    "attempt_completion was not accepted: another call of the same reply failed. Read its result first.",
    is_error=True,
)
SUBTASKS_FIRST: Final = ToolResult(
    "attempt_completion was not accepted: subtasks of the same reply had not ended. Look at their results.",
    is_error=True,
)
ANSWER_FIRST: Final = ToolResult(
    "not done: it was decided on in the same reply as a question, before the answer was known. Read the "
    "answer, and call it again if it is still right.",
    is_error=True,
)
ACCEPTED: Final = ToolResult("accepted")


class Calls:
    """What is known of every call so far; `moved` once one was finished by this claim."""

    def __init__(self, means: Means, dialogue: Dialogue, early: Early) -> None:
        self._means = means
        self._dialogue = dialogue
        self._early = early
        self._known: dict[str, Call] = {}
        self._checkpoints: list[tuple[int, str]] = []
        self._conversation = Conversation()
        self.moved = False

    def recall(self, conversation: Conversation) -> None:
        """What earlier claims left."""
        self._conversation = conversation
        self._known = {call.call_id: call for call in conversation.calls}

    def replay(self, turn: Turn) -> dict[str, ToolResult]:
        """A turn that others came after: all of its calls have ended, in one way or the other."""
        for block in tool_calls(turn.content):
            call = self._known.get(block["id"])
            self._dialogue.add_result(block["id"], (call and call.result) or INTERRUPTED)
            if call is not None and call.checkpoint is not None:
                self._checkpoints.append((turn.number, call.checkpoint))
        return self.results(turn)

    def results(self, turn: Turn) -> dict[str, ToolResult]:
        known = ((block["id"], self._known.get(block["id"])) for block in tool_calls(turn.content))
        return {call_id: (call and call.result) or INTERRUPTED for call_id, call in known}

    def repeats(self, ids: Collection[str]) -> bool:
        """Whether any of these ids names a call already."""
        return any(call_id in self._known for call_id in ids)

    def put_back(self, corrected: Corrected) -> None:
        if corrected.checkpoint is not None:
            self._checkpoints.append((corrected.before_turn - 1, corrected.checkpoint))

    def checkpoint_before(self, turn: int) -> str | None:
        """Where the files can be put back to: as they were before that turn, if they have changed since."""
        before = [commit for number, commit in self._checkpoints if number < turn]
        return before[-1] if before and before[-1] != self._checkpoints[-1][1] else None

    def carry_out(self, turn: Turn) -> Verdict | None:
        """The turn's calls, in order, and a claim to be done after all others, wherever it stands: it is
        judged by what they came to. A verdict when one of them ends or parks the step."""
        answered, failed, wanted = False, False, list[SubtaskRequest]()
        for block in sorted(tool_calls(turn.content), key=lambda block: block["name"] == _CLAIM):
            refusal = (
                ANSWER_FIRST if answered else SUBTASKS_FIRST if wanted else UNSEEN_FAILURE if failed else None
            )
            outcome = self._outcome(turn, block, refusal)
            match outcome:
                case Done():
                    return self._done(outcome)
                case Ask():
                    return NeedsInput(outcome)
                case SubtaskRequest():
                    wanted.append(outcome)
                case ToolResult():
                    self._dialogue.add_result(block["id"], outcome)
                    failed = failed or outcome.is_error
                    answered = answered or (block["name"] == _QUESTION and not outcome.is_error)
        return self._delegate(turn, wanted) if wanted else None

    def _done(self, claimed: Done) -> Done:
        done = replace(claimed, evidence=self._dialogue.memory.evidence())
        self._means.link.note(
            "completion", {"summary": done.summary, "result": done.result, "evidence": done.evidence}
        )
        return done

    def _outcome(self, turn: Turn, block: Block, refusal: ToolResult | None) -> Outcome:
        """`refusal`: why the step can't be done yet, whatever the model says."""
        call_id, name, arguments = block["id"], block["name"], block["input"]
        call, tool = self._known.get(call_id), self._means.tools.get(name)
        if call is not None and call.result is not None:
            return self._again(call, call.result, tool, arguments, turn)
        self._means.unless_hard()
        if call is not None and not (tool and _may_run_again(tool)):
            return self._finish(turn, call_id, INTERRUPTED)
        if refusal is ANSWER_FIRST and tool is not None and tool.risk not in (Risk.READ, Risk.TALK):
            self._means.journal.begin_call(turn.number, call_id, name, arguments)
            return self._finish(turn, call_id, ANSWER_FIRST)
        if tool is not None and approval.is_needed(tool, self._means.assignment.approvals):
            arguments = self._means.journal.as_kept(arguments)
            if isinstance(leave := self._leave(call_id, tool, arguments), Ask):
                return leave
        else:
            leave = None
        self._means.journal.begin_call(turn.number, call_id, name, arguments)
        self._known[call_id] = Call(call_id, turn=turn.number)
        if leave is not None:
            return self._finish(turn, call_id, leave)
        if tool is None:
            known = ", ".join(self._means.tools)
            unknown = ToolResult(storable(cut(f"no tool {name!r}; there are: {known}")), is_error=True)
            return self._finish(turn, call_id, unknown)
        return self._run(turn, tool, call_id, arguments, refusal)

    def _again(
        self,
        call: Call,
        result: ToolResult,
        tool: Tool[Any] | None,
        arguments: Mapping[str, Any],
        turn: Turn,
    ) -> Outcome:
        """A call that an earlier claim finished: its result, or what it said, if that ended the step."""
        if call.checkpoint is not None:
            self._checkpoints.append((turn.number, call.checkpoint))
        if tool is None or not tool.touches_nothing or result.is_error:
            return result
        unheard = replace(self._means.context(call.call_id), on_note=lambda _kind, _data: None)
        said = tool.run(self._means.workspace, arguments, unheard)
        return said if isinstance(said, Done) else result

    def _leave(self, call_id: str, tool: Tool[Any], arguments: Mapping[str, Any]) -> Ask | ToolResult | None:
        """None: it may run. A call that can't run anyway isn't asked about."""
        if tool.problem(arguments) is not None:
            return None
        answer = self._conversation.answers.get(call_id)
        if answer is None:
            return approval.request(call_id, tool, arguments)
        if self._conversation.digests.get(call_id) != approval.digest(tool.name, arguments):
            return approval.ANOTHER
        return None if is_granted(answer) else approval.denial(answer)

    def _run(
        self,
        turn: Turn,
        tool: Tool[Any],
        call_id: str,
        arguments: Mapping[str, Any],
        refusal: ToolResult | None,
    ) -> Outcome:
        means = self._means
        noted = {"name": tool.name, "call_id": call_id, "risk": tool.risk.value}
        if not self._was_left_open(call_id):
            means.link.note("tool", {**noted, "state": "started", "arguments": arguments})
        outcome = self._early.take(call_id, arguments)
        if outcome is None:
            outcome = tool.run(means.workspace, arguments, means.context(call_id))
        if isinstance(outcome, SubtaskRequest):
            return outcome
        if isinstance(outcome, Ask):
            if call_id not in self._conversation.answers:
                return outcome
            outcome = ToolResult(prompt.answer(self._conversation.answers[call_id]))
        if isinstance(outcome, Done) and refusal is not None:
            outcome = refusal
        checkpoint = means.workspace.checkpoint(tool.name) if tool.changes_files else None
        given = outcome if isinstance(outcome, ToolResult) else ACCEPTED
        result = self._finish(turn, call_id, given, checkpoint)
        means.link.note("tool", {**noted, "state": "finished", "is_error": result.is_error})
        return outcome

    def _was_left_open(self, call_id: str) -> bool:
        """An earlier claim began it, and left it to a person or to subtasks."""
        told = self._conversation
        return call_id in told.subtasks or (call_id in told.answers and call_id not in told.digests)

    def _finish(
        self, turn: Turn, call_id: str, result: ToolResult, checkpoint: str | None = None
    ) -> ToolResult:
        self._means.journal.finish_call(call_id, result, checkpoint)
        self.moved = True
        if checkpoint is not None:
            self._checkpoints.append((turn.number, checkpoint))
        told = replace(result, output=None) if result.output is not None else result
        self._known[call_id] = Call(call_id, told, checkpoint, turn.number)
        return told

    # --- subtasks -------------------------------------------------------------------------------------------

    def _delegate(self, turn: Turn, wanted: Sequence[SubtaskRequest]) -> Verdict | None:
        """Starts them all at once and waits for them all; a verdict while any of them lives."""
        ends = self._conversation.subtasks
        if any(request.call_id not in ends for request in wanted):
            try:
                latest = self._checkpoints[-1][1] if self._checkpoints else None
                self._means.journal.start_subtasks(wanted, latest)
            except SubtaskRefused as refused:
                for request in wanted:
                    self._told(turn, request, ToolResult(storable(f"not started: {refused}"), is_error=True))
                return None
            return _waiting(wanted)
        ended = [(request, ends[request.call_id]) for request in wanted]
        if any(end is None for _, end in ended):
            return _waiting(wanted)
        for request, end in ended:
            assert end is not None  # noqa: S101 - just looked at
            self._means.unless_hard()
            self._adopt(turn, request, end)
        return None

    def _adopt(self, turn: Turn, request: SubtaskRequest, end: SubtaskEnd) -> None:
        workspace, conflict, checkpoint = self._means.workspace, None, None
        if end.commit is not None:
            conflict = workspace.adopt(end.commit)
            checkpoint = workspace.checkpoint(_SUBTASK) if conflict is None else None
        failed = conflict is not None or end.status is not Status.COMPLETED
        self._told(turn, request, ToolResult(prompt.subtask(end, conflict), is_error=failed), checkpoint)

    def _told(
        self, turn: Turn, request: SubtaskRequest, result: ToolResult, checkpoint: str | None = None
    ) -> None:
        self._finish(turn, request.call_id, result, checkpoint)
        noted = {"name": _SUBTASK, "call_id": request.call_id, "risk": Risk.DELEGATE.value}
        self._means.link.note("tool", {**noted, "state": "finished", "is_error": result.is_error})
        self._dialogue.add_result(request.call_id, result)


def _waiting(wanted: Sequence[SubtaskRequest]) -> Waits:
    return Waits(WaitingOn.SUBTASK, {"calls": [request.call_id for request in wanted]})


def _may_run_again(tool: Tool[Any]) -> bool:
    """To run it again after an interruption is harmless; a subtask is started once, whoever asks."""
    return tool.touches_nothing or tool.risk is Risk.DELEGATE
