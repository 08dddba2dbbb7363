"""What an external agent needs to have remembered, as a port that the shells keep on Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from orchestrator.core.states import WaitingOn
from orchestrator.engine.ports import Heard


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person was asked, and for what. `digest` binds leave to exactly what was shown."""

    call_id: str
    kind: WaitingOn
    text: str
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """How far a step's agent has come in its own session; the latest record counts."""

    session_id: str | None = None
    """The agent's own name for it; None: none was begun, or it can't be gone on with."""
    prompts: int = 0
    """How many prompts were carried out to their end."""
    calls: int = 0
    """How many requests to its model were answered."""
    asked: Asked | None = None
    """What the session waits for, or whose answer it has not yet been through with."""
    nudged: bool = False
    """It was told that it had changed nothing."""
    elapsed: timedelta = timedelta(0)
    """Time at work in earlier claims and prompts."""


@dataclass(frozen=True, slots=True)
class Kept:
    """All that is remembered of a step's session."""

    session: Session = Session()
    heard: tuple[Heard, ...] = ()
    """Messages that were taken up, each for the prompt `before_turn`."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """call_id of what asked a person → the answer."""


class Sessions(Protocol):
    """A step's session, remembered under the claim's fence: every method raises `LeaseLost` without it.

    When a method has returned, what it was given survives the process.
    """

    def load(self) -> Kept: ...

    def save(self, session: Session, /) -> None: ...

    def has_messages(self) -> bool:
        """Whether a person has said something that nobody has taken up."""

    def hear(self, before_prompt: int, /) -> Sequence[Heard]:
        """Messages that nobody has taken up, in order: each is taken and remembered in the same transaction,
        so that it is heard once, whoever dies."""

    def keep_checkpoint(self, number: int, commit: str, /) -> None:
        """From this commit the step's next claim goes on; `number` is that of the prompt under way."""


class Transcripts(Protocol):
    """The transcripts of a step's agent: JSON objects in order, by project, session and subpath ("" is the
    main one). Written under the claim's fence; an entry whose `uuid` is there already is not kept twice.
    """

    def append(
        self, project: str, session: str, subpath: str, entries: Sequence[Mapping[str, Any]], /
    ) -> None:
        """Raises `LeaseLost`."""

    def load(self, project: str, session: str, subpath: str, /) -> Sequence[Mapping[str, Any]]: ...

    def subpaths(self, project: str, session: str, /) -> Sequence[str]:
        """Of all but the main one."""
