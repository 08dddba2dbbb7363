"""ask_followup_question and attempt_completion: the two calls that hand the step back."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from orchestrator.core.verdict import Ask, Done
from orchestrator.engine.ports import Workspace
from orchestrator.engine.tools.tool import Arguments, Risk, Tool, ToolContext


class AskFollowupQuestion(Arguments):
    question: Annotated[str, Field(min_length=1, max_length=4000)]
    options: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]],
        Field(max_length=10, description="Answers to choose from; any other may be given as well."),
    ] = []  # noqa: RUF012 - frozen, and pydantic copies defaults


def _ask(_: Workspace, asked: AskFollowupQuestion, context: ToolContext) -> Ask:
    return Ask(context.call_id, asked.question, tuple(asked.options))


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


class AttemptCompletion(Arguments):
    summary: Annotated[
        str,
        Field(
            min_length=1, max_length=4000, description="One paragraph: what was done and how it was checked."
        ),
    ]
    result: Annotated[dict[str, Any], Field(description="Small facts for later steps, as JSON.")] = {}  # noqa: RUF012


def _complete(_: Workspace, claimed: AttemptCompletion, __: ToolContext) -> Done:
    return Done(claimed.summary, claimed.result)


ATTEMPT_COMPLETION: Final = Tool(
    name="attempt_completion",
    description="Ends the step. Call it once the step is really done and checked, after the last other call.",
    arguments=AttemptCompletion,
    risk=Risk.TALK,
    changes_files=False,
    carry_out=_complete,
    touches_nothing=True,
)
