"""A coding agent that is a program of its own: opened, prompted, watched over, judged by what it left.

What an adapter knows is how to start its program, open or resume a session, and carry out one prompt. All
else is the same for each of them and stands here: what it is told, what becomes of a stop, a message, a
question, a refusal, and when the step counts as done. Parking ends the program; the step's next claim resumes
its session.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final, Protocol

from orchestrator.agents import prompts, refusals
from orchestrator.agents.door import Answered
from orchestrator.agents.launch import Enclosure, enclosed
from orchestrator.agents.oversight import Cut, Overseer
from orchestrator.agents.ports import Asked, Kept, Session, Sessions
from orchestrator.core.assignment import Assignment, Link, ModelAccess
from orchestrator.core.leave import is_granted
from orchestrator.core.recovery import ErrorClass, of_os_error
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Ask, Broke, Done, NeedsInput, StopReason, Verdict, Yielded
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.engine.ports import LeaseLost
from orchestrator.engine.untrusted import cut, storable
from orchestrator.workspaces.homes import Homes
from orchestrator.workspaces.workspace import Workspace

SUMMARY: Final = 4000
"""Characters of the agent's last words that are kept as the step's summary."""

MESSAGE: Final = 2000
"""And of what is told of its failure."""


ASKED: Final = 30_000
"""And of what a person is asked, whichever agent asks; leave is bound to the whole, however long that is."""


class AgentBroke(Exception):
    """The agent can't be started, or not gone on with."""

    def __init__(self, verdict: Broke) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


def multiplied(name: str) -> Broke:
    text = f"{name} started more processes than the sandbox allows."
    return Broke("limit-processes", text, ErrorClass.LIMIT, retryable=False)


def flooded(name: str, how: object) -> Broke:
    """`how` follows its name."""
    return Broke("agent-flooded", f"{name} {how}", ErrorClass.AGENT)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the agent asks of a person; `digest` for leave that is bound to exactly what was shown."""

    kind: WaitingOn
    text: str
    options: tuple[str, ...] = ()
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How one prompt ended, in the words of no agent in particular."""

    text: str = ""
    """The agent's last message, whole."""
    cut: Cut | None = None
    """We ended it, for that reason."""
    wish: Wish | None = None
    """It can't go on without a person."""
    problem: Broke | None = None
    denials: int = 0
    """Tool calls that were refused to it without a person having been asked."""


@dataclass(frozen=True, slots=True)
class Leave:
    """What a person said to the call with this digest: it counts for that one alone, and once."""

    digest: str
    is_granted: bool
    answer: str = ""
    """What was said, to a question."""


class Talk(Protocol):
    """A running agent with an open session."""

    @property
    def session_id(self) -> str: ...

    @property
    def is_resumed(self) -> bool:
        """Whether it is the session that was asked for: the agent remembers what came before."""

    def prompt(self, text: str, /) -> TurnEnd:
        """Carries it out to its end. Asks the overseer all the while whether to go on; else it cancels by
        protocol, in at most three seconds. Raises `AgentBroke`."""


class Adapter(Protocol):
    """How one kind of agent is driven."""

    @property
    def name(self) -> str: ...

    def open(
        self,
        assignment: Assignment,
        enclosure: Enclosure,
        overseer: Overseer,
        session_id: str | None,
        leave: Leave | None,
        /,
    ) -> AbstractContextManager[Talk]:
        """Starts the program; a session that it can't resume is begun anew. On leaving, the program and all
        that it started has ended. Raises `AgentBroke`."""


@dataclass(frozen=True, slots=True)
class ExternalAgent:
    """An agent by way of its adapter. The rest opens, for one claim, what it needs."""

    adapter: Adapter
    open_access: Callable[[Assignment], ModelAccess]
    open_sessions: Callable[[Assignment], Sessions]
    open_workspace: Callable[[Assignment], AbstractContextManager[Workspace]]
    homes: Callable[[], Homes]
    model: Callable[[Assignment], str] | None = None
    """The model that the agent is to work with; None: the assignment's, or the adapter's own."""

    def work(self, assignment: Assignment, link: Link) -> Verdict:
        verdict = self._worked(assignment, link)
        if isinstance(verdict, Broke):  # in words that may be the agent's own
            return replace(verdict, message=cut(storable(verdict.message), MESSAGE))
        return verdict

    def _worked(self, assignment: Assignment, link: Link) -> Verdict:
        if self.model is not None:
            assignment = replace(assignment, model=self.model(assignment))
        try:
            access, sessions = self.open_access(assignment), self.open_sessions(assignment)
            with (
                self.open_workspace(assignment) as workspace,
                enclosed(workspace, self.homes(), assignment, access, link) as enclosure,
            ):
                return _Work(self.adapter, assignment, link, sessions, workspace, enclosure).carry_on()
        except LeaseLost:
            return Yielded(StopReason.LEASE_LOST)
        except AgentBroke as broken:
            return broken.verdict
        except WorkspaceFault as fault:
            if link.stop.is_hard() and link.stop.reason is not None:
                return Yielded(link.stop.reason)
            return Broke(fault.code, fault.message, fault.error)
        except OSError as error:
            text = f"the agent's program failed: {error.strerror or error}"
            return Broke("workspace-io", text, of_os_error(error))


class _Work:
    """One claim's share of the session."""

    def __init__(
        self,
        adapter: Adapter,
        assignment: Assignment,
        link: Link,
        sessions: Sessions,
        workspace: Workspace,
        enclosure: Enclosure,
    ) -> None:
        self._adapter = adapter
        self._assignment = assignment
        self._link = link
        self._sessions = sessions
        self._workspace = workspace
        self._enclosure = enclosure
        self._kept = sessions.load()
        self._session = self._kept.session
        self._overseer = Overseer(assignment, link, sessions, workspace, enclosure, self._session)

    def carry_on(self) -> Verdict:
        session_id, leave = self._session.session_id, _leave(self._kept)
        opened = self._adapter.open(self._assignment, self._enclosure, self._overseer, session_id, leave)
        with opened as talk:
            text = self._opening(talk)
            self._save(replace(self._session, session_id=talk.session_id))
            verdict = None
            while verdict is None:
                number = self._session.prompts + 1
                self._overseer.begin_prompt(number)
                verdict, text = self._judge(self._carried_out(talk, text))
        return self._closed(verdict)

    def _carried_out(self, talk: Talk, text: str) -> TurnEnd:
        """A program that broke off has often said why before: to its model, or to whoever stopped it."""
        try:
            return talk.prompt(text)
        except AgentBroke as broken:
            return TurnEnd(problem=broken.verdict)
        finally:
            self._overseer.end_prompt()

    def _closed(self, verdict: Verdict) -> Verdict:
        """The program has ended: what it left is exactly what the next claim finds."""
        if self._link.stop.is_hard():
            return verdict
        self._overseer.checkpoint()
        asked = None
        if isinstance(verdict, NeedsInput):
            ask = verdict.ask
            asked = Asked(ask.call_id, ask.kind, ask.text, ask.subject_digest)
        self._save(replace(self._session, prompts=self._session.prompts + 1, asked=asked))
        return verdict

    def _save(self, session: Session) -> None:
        self._session = replace(session, elapsed=self._overseer.elapsed, calls=self._overseer.calls)
        self._sessions.save(self._session)

    # --- what it is told ------------------------------------------------------------------------------------

    def _opening(self, talk: Talk) -> str:
        session = self._session
        waiting = [heard.text for heard in self._kept.heard if heard.before_turn > session.prompts]
        heard = [*waiting, *self._hear()]
        asked = session.asked
        answer = self._kept.answers.get(asked.call_id) if asked is not None else None
        if not talk.is_resumed:
            begun = prompts.first(self._assignment, heard, again=session.session_id is not None)
            return (
                begun if asked is None or answer is None else f"{begun}\n\n{prompts.answered(asked, answer)}"
            )
        if asked is not None and answer is not None:
            return prompts.answered(asked, answer, heard)
        return prompts.resumed(heard)

    def _hear(self) -> list[str]:
        return [heard.text for heard in self._sessions.hear(self._session.prompts + 1)]

    # --- what becomes of a prompt ---------------------------------------------------------------------------

    def _judge(self, end: TurnEnd) -> tuple[Verdict | None, str]:
        """A verdict, or what it is told next."""
        self._overseer.look()  # what has happened in the last moment
        if (verdict := self._ended(end)) is not None:
            return verdict, ""
        self._overseer.checkpoint()
        self._save(replace(self._session, prompts=self._session.prompts + 1, asked=None))
        if (heard := self._hear()) or end.cut is not None:
            if (reason := self._link.stop.reason) is not None:
                return Yielded(reason), ""
            return None, prompts.steered(heard) if heard else prompts.GO_ON
        return self._finished(end)

    def _ended(self, end: TurnEnd) -> Verdict | None:
        """Why it can't just go on, the weightiest reason first."""
        stop = self._link.stop
        if stop.reason is not None and (stop.is_hard() or end.cut is Cut.STOP):
            return Yielded(stop.reason)
        if self._overseer.limit is not None:
            return self._overseer.limit
        refusal = self._refusal()
        if refusal is not None and not _does_without(refusal, end):
            return refusals.verdict(refusal, fence=self._assignment.fence)
        if (wish := end.wish or _asked_in_words(end)) is not None:
            return NeedsInput(self._ask(wish))
        if end.problem is not None:
            return end.problem
        if end.denials:
            text = f"the agent was refused {end.denials} tool calls, and says that it is done."
            return Broke("agent-denied", text, ErrorClass.AGENT)
        return None

    def _refusal(self) -> Answered | None:
        """If the last request of the prompt to its model was refused."""
        return self._enclosure.door.refusal_since(self._overseer.calls_before)

    def _ask(self, wish: Wish) -> Ask:
        return Ask(
            f"ask-{self._assignment.fence}",
            storable(cut(wish.text, ASKED)),
            tuple(map(storable, wish.options)),
            wish.kind,
            wish.digest,
        )

    def _finished(self, end: TurnEnd) -> tuple[Verdict | None, str]:
        """It says that it is done. That is believed if its files have changed, or if it says outright that
        they need not; it is told once that they have not."""
        if not self._workspace.is_changed and not prompts.says_no_change(end.text):
            if (refusal := self._refusal()) is not None:
                return refusals.verdict(refusal, fence=self._assignment.fence), ""
            if self._session.nudged:
                text = "the agent says that it is done, but it changed no file."
                return Broke("agent-changed-nothing", text, ErrorClass.AGENT), ""
            self._save(replace(self._session, nudged=True))
            return None, prompts.UNCHANGED
        summary = cut(storable(end.text.strip()), SUMMARY) or f"Done by {self._adapter.name}."
        return Done(summary, {"agent": self._adapter.name}), ""


def _does_without(refusal: Answered, end: TurnEnd) -> bool:
    """It was told something in the meantime, or came to its end although one model is closed to it."""
    if end.cut is Cut.MESSAGE:
        return True
    came_to_its_end = end.problem is None and end.cut is not Cut.REFUSED
    return came_to_its_end and refusal.code in refusals.OF_ONE_MODEL


def _asked_in_words(end: TurnEnd) -> Wish | None:
    """Any agent can ask so, whatever its protocol has for it."""
    if end.cut is not None or end.problem is not None:
        return None
    found = prompts.question(end.text)
    return None if found is None else Wish(WaitingOn.QUESTION, *found)


def _leave(kept: Kept) -> Leave | None:
    asked = kept.session.asked
    if asked is None or asked.digest is None or asked.call_id not in kept.answers:
        return None
    answer = kept.answers[asked.call_id]
    return Leave(asked.digest, is_granted(answer), answer)
