"""An external agent's session, kept in Postgres beside the engine's conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from orchestrator.agents.ports import Asked, Kept, Session
from orchestrator.core.redaction import Redactor
from orchestrator.core.states import WaitingOn
from orchestrator.db import journal
from orchestrator.db.connect import Engine
from orchestrator.db.journal import Scope
from orchestrator.engine.ports import Heard
from orchestrator.tasks import steering
from orchestrator.tasks.fenced import fenced, fenced_at_once


@dataclass(frozen=True, slots=True)
class PostgresSessions:
    """Each method is a transaction under the claim's fence; what is kept is redacted first."""

    engine: Engine
    scope: Scope
    redactor: Redactor

    def load(self) -> Kept:
        with self.engine.connect() as connection:
            found = journal.session(connection, self.scope)
            stored = journal.load(connection, self.scope)
        heard = tuple(
            Heard(row["number"], row["message"]["text"]) for row in stored.turns if row["kind"] == "heard"
        )
        return Kept(Session() if found is None else _session(found), heard, stored.answers)

    def save(self, session: Session, /) -> None:
        message = self.redactor.value(_message(session))
        with fenced_at_once(self.engine) as direct:
            journal.append(direct, self.scope, "session", session.prompts, message)

    def has_messages(self) -> bool:
        return steering.has_messages(self.engine, self.scope)

    def hear(self, before_prompt: int, /) -> Sequence[Heard]:
        return steering.hear(self.engine, self.scope, self.redactor, before_prompt)

    def keep_checkpoint(self, number: int, commit: str, /) -> None:
        """As a call that ours made, so that it is found where the engine's checkpoints are."""
        call_id = f"checkpoint-{self.scope.fence}-{commit[:16]}"
        with fenced(self.engine) as connection:
            journal.begin_call(connection, self.scope, number, call_id, "checkpoint", {})
            journal.finish_call(connection, self.scope, call_id, "", is_error=False, checkpoint=commit)


def _message(session: Session) -> dict[str, Any]:
    asked = session.asked
    return {
        "session_id": session.session_id,
        "prompts": session.prompts,
        "calls": session.calls,
        "asked": None
        if asked is None
        else {"call_id": asked.call_id, "kind": str(asked.kind), "text": asked.text, "digest": asked.digest},
        "nudged": session.nudged,
        "elapsed_seconds": session.elapsed.total_seconds(),
    }


def _session(message: Mapping[str, Any]) -> Session:
    asked = message["asked"]
    return Session(
        session_id=message["session_id"],
        prompts=message["prompts"],
        calls=message["calls"],
        asked=None
        if asked is None
        else Asked(asked["call_id"], WaitingOn(asked["kind"]), asked["text"], asked["digest"]),
        nudged=message["nudged"],
        elapsed=timedelta(seconds=message["elapsed_seconds"]),
    )
