"""What agents with sessions of their own have written down, entry by entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.db.claims import holds
from orchestrator.db.journal import FenceLost
from orchestrator.db.sql import StepRef, dumps, rows, statement


@dataclass(frozen=True, slots=True)
class Place:
    """Which transcript of a step; `subpath` is empty for a session's main one."""

    project: str
    session: str
    subpath: str = ""


_APPEND: Final = statement(
    """
    INSERT INTO transcripts (tenant_id, step_id, project, session, subpath, uuid, fence, entry)
    SELECT :tenant, :step, :project, :session, :subpath, v.entry ->> 'uuid', :fence, v.entry
    FROM jsonb_array_elements(CAST(:entries AS jsonb)) WITH ORDINALITY AS v(entry, i) ORDER BY v.i
    ON CONFLICT (tenant_id, step_id, project, session, subpath, uuid) WHERE uuid IS NOT NULL DO NOTHING
    """
)
_LOAD: Final = statement(
    """
    SELECT entry FROM transcripts WHERE tenant_id = :tenant AND step_id = :step AND project = :project
      AND session = :session AND subpath = :subpath ORDER BY id
    """
)
_SUBPATHS: Final = statement(
    """
    SELECT DISTINCT subpath FROM transcripts WHERE tenant_id = :tenant AND step_id = :step
      AND project = :project AND session = :session AND subpath <> '' ORDER BY subpath
    """
)


def append(
    connection: Connection, step: StepRef, fence: int, place: Place, entries: Sequence[Mapping[str, Any]]
) -> None:
    """An entry whose uuid is there is not kept twice. Raises FenceLost."""
    if not holds(connection, step, fence):
        raise FenceLost
    connection.execute(_APPEND, {**_keys(step, place), "fence": fence, "entries": dumps(list(entries))})


def load(connection: Connection, step: StepRef, place: Place) -> list[dict[str, Any]]:
    """In the order in which they came."""
    return [row["entry"] for row in rows(connection, _LOAD, **_keys(step, place))]


def subpaths(connection: Connection, step: StepRef, project: str, session: str) -> list[str]:
    """Of all but the main one."""
    keys = _keys(step, Place(project, session))
    del keys["subpath"]
    return [row["subpath"] for row in rows(connection, _SUBPATHS, **keys)]


def _keys(step: StepRef, place: Place) -> dict[str, Any]:
    return {
        "tenant": step.tenant_id,
        "step": step.step_id,
        "project": place.project,
        "session": place.session,
        "subpath": place.subpath,
    }
