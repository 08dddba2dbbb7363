"""An agent's transcripts, kept in Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.core.redaction import Redactor
from orchestrator.db import transcripts
from orchestrator.db.connect import Engine
from orchestrator.db.sql import StepRef
from orchestrator.db.transcripts import Place
from orchestrator.tasks.fenced import fenced


@dataclass(frozen=True, slots=True)
class PostgresTranscripts:
    """One claim's; what is kept is redacted first."""

    engine: Engine
    step: StepRef
    fence: int
    redactor: Redactor

    def append(
        self, project: str, session: str, subpath: str, entries: Sequence[Mapping[str, Any]], /
    ) -> None:
        clean = [self.redactor.value(dict(entry)) for entry in entries]
        with fenced(self.engine) as connection:
            transcripts.append(connection, self.step, self.fence, Place(project, session, subpath), clean)

    def load(self, project: str, session: str, subpath: str, /) -> Sequence[Mapping[str, Any]]:
        with self.engine.connect() as connection:
            return transcripts.load(connection, self.step, Place(project, session, subpath))

    def subpaths(self, project: str, session: str, /) -> Sequence[str]:
        with self.engine.connect() as connection:
            return transcripts.subpaths(connection, self.step, project, session)
