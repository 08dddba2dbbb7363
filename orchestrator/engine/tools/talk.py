"""The calls that only speak: the two that hand the step back, the plan, and the wish for a subtask."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from orchestrator.core.subtask import SubtaskRequest
from orchestrator.core.verdict import Ask, Done
from orchestrator.engine.ports import ToolResult, Workspace
from orchestrator.engine.tools.tool import Arguments, Line, Risk, Tool, ToolContext

Answer = Annotated[str, Field(min_length=1, max_length=200)]


class AskFollowupQuestion(Arguments):
    question: Annotated[str, Field(min_length=1, max_length=4000)]
    options: Annotated[
        list[Answer],
        Field(max_length=10, description="Answers to choose from; any other may be given as well."),
    ] = []  # noqa: RUF012 - frozen, and pydantic copies defaults
    default: Annotated[
        Answer | None,
        Field(description="What you would do if nobody answers; used only where the project allows it."),
    ] = None


def _ask(_: Workspace, asked: AskFollowupQuestion, context: ToolContext) -> Ask:
    return Ask(context.call_id, asked.question, tuple(asked.options), default=asked.default)


ASK_FOLLOWUP_QUESTION: Final = Tool(
    name="ask_followup_question",
    description=(
        "Asks a person, when only a person can decide and a wrong guess would be costly. "
        "The work stops until the answer is there."
    ),
    arguments=AskFollowupQuestion,
    risk=Risk.TALK,
    changes_files=False,
    carry_out=_ask,
    touches_nothing=True,
)


class PlanStep(Arguments):
    text: Annotated[str, Field(min_length=1, max_length=500)]
    status: Literal["pending", "in_progress", "done", "dropped"]


class UpdatePlan(Arguments):
    steps: Annotated[list[PlanStep], Field(min_length=1, max_length=50, description="All of them, in order.")]


def _plan(_: Workspace, planned: UpdatePlan, context: ToolContext) -> ToolResult:
    steps = [step.model_dump() for step in planned.steps]
    context.on_note("plan", {"steps": steps})
    done = sum(step["status"] == "done" for step in steps)
    return ToolResult(f"The plan is noted: {done} of {len(steps)} steps done.")


UPDATE_PLAN: Final = Tool(
    name="update_plan",
    description="Writes down the plan of longer work, and how far it is, for the people who watch.",
    arguments=UpdatePlan,
    risk=Risk.TALK,
    changes_files=False,
    carry_out=_plan,
    touches_nothing=True,
)


class StartSubtask(Arguments):
    objective: Annotated[
        str,
        Field(
            min_length=1,
            max_length=10_000,
            description="All that its agent needs to know; it sees the files, not this conversation.",
        ),
    ]
    agent: Annotated[Line | None, Field(max_length=100, description="The type of agent to use.")] = None
    model: Annotated[Line | None, Field(max_length=200)] = None


def _start(_: Workspace, wanted: StartSubtask, context: ToolContext) -> SubtaskRequest:
    return SubtaskRequest(context.call_id, wanted.objective, wanted.agent, wanted.model)


START_SUBTASK: Final = Tool(
    name="start_subtask",
    description=(
        "Gives a separable part of the work to another agent, which starts from the files as they are now. "
        "The work stops until it has ended; then its changes are merged in. Several calls of one reply run "
        "side by side: don't let them change the same files."
    ),
    arguments=StartSubtask,
    risk=Risk.DELEGATE,
    changes_files=False,
    carry_out=_start,
)


class Evidence(Arguments):
    what: Annotated[str, Field(min_length=1, max_length=500, description="What holds now.")]
    how: Annotated[str, Field(min_length=1, max_length=500, description="The command or file that shows it.")]


class AttemptCompletion(Arguments):
    summary: Annotated[
        str,
        Field(
            min_length=1, max_length=4000, description="One paragraph: what was done and how it was checked."
        ),
    ]
    result: Annotated[dict[str, Any], Field(description="Small facts for later steps, as JSON.")] = {}  # noqa: RUF012
    evidence: Annotated[list[Evidence], Field(max_length=20)] = []  # noqa: RUF012


def _complete(_: Workspace, claimed: AttemptCompletion, __: ToolContext) -> Done:
    """The model's own evidence is part of its claim, beside what `Done.evidence` really knows."""
    said = [evidence.model_dump() for evidence in claimed.evidence]
    return Done(claimed.summary, {**claimed.result, "evidence": said} if said else claimed.result)


ATTEMPT_COMPLETION: Final = Tool(
    name="attempt_completion",
    description="Ends the step. Call it once the step is really done and checked, after the last other call.",
    arguments=AttemptCompletion,
    risk=Risk.TALK,
    changes_files=False,
    carry_out=_complete,
    touches_nothing=True,
)
