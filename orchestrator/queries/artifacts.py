"""Stored files of a task, and what its patch changes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from orchestrator.core.errors import Unknown
from orchestrator.db.sql import one, rows, statement


@dataclass(frozen=True, slots=True)
class ArtifactLine:
    """A stored file; `key` is where the artifact store has it."""

    id: str
    task_id: str
    workflow_id: str | None
    step_id: str | None
    kind: str
    name: str
    media_type: str
    size: int
    sha256: str
    key: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file of a patch. `status`: added, deleted, renamed, copied or modified."""

    path: str
    old_path: str | None
    status: str
    additions: int
    deletions: int
    binary: bool = False


_COLUMNS: Final = "id, task_id, workflow_id, step_id, kind, name, media_type, size, sha256, key, created_at"
_ALL: Final = statement(
    f"""
    SELECT {_COLUMNS} FROM artifacts WHERE tenant_id = :tenant AND task_id = :task ORDER BY created_at, id
    """
)
_ONE: Final = statement(
    f"SELECT {_COLUMNS} FROM artifacts WHERE tenant_id = :tenant AND task_id = :task AND id = :artifact"
)
_PATCH: Final = statement(
    f"""
    SELECT {_COLUMNS} FROM artifacts WHERE tenant_id = :tenant AND task_id = :task AND kind = 'patch'
    ORDER BY created_at DESC, id DESC LIMIT 1
    """
)


def artifacts(connection: Connection, tenant_id: str, task_id: str) -> tuple[ArtifactLine, ...]:
    return tuple(ArtifactLine(**row) for row in rows(connection, _ALL, tenant=tenant_id, task=task_id))


def artifact(connection: Connection, tenant_id: str, task_id: str, artifact_id: str) -> ArtifactLine:
    """Raises Unknown."""
    row = None
    if artifact_id.isprintable():
        row = one(connection, _ONE, tenant=tenant_id, task=task_id, artifact=artifact_id)
    if row is None:
        raise Unknown(
            "artifact-unknown",
            f"Task {task_id} has no artifact {artifact_id[:80]}.",
            f"See the task: orchestrator task status {task_id}",
        )
    return ArtifactLine(**row)


def latest_patch(connection: Connection, tenant_id: str, task_id: str) -> ArtifactLine | None:
    """What the task changes in all, as a file; None as long as there is nothing."""
    row = one(connection, _PATCH, tenant=tenant_id, task=task_id)
    return None if row is None else ArtifactLine(**row)


_HUNK: Final = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_QUOTED: Final = re.compile(r'"?[ab]/(.*?)"?$')


def changes(patch: str) -> tuple[FileChange, ...]:
    """The files that a `git diff` changes. Lines in hunks are counted by the hunks' own lengths, so that a
    removed line that looks like a header isn't taken for one."""
    found: list[FileChange] = []
    old = new = 0
    for line in patch.split("\n"):
        if old or new:
            added, removed = line.startswith("+"), line.startswith("-")
            old -= not added and not line.startswith("\\")
            new -= not removed and not line.startswith("\\")
            file = found[-1]
            found[-1] = replace(file, additions=file.additions + added, deletions=file.deletions + removed)
        elif line.startswith("diff --git "):
            found.append(FileChange(_named(line.rpartition(" ")[2]), None, "modified", 0, 0))
        elif found and (hunk := _HUNK.match(line)):
            old, new = (int(count) if count is not None else 1 for count in hunk.groups())
        elif found:
            found[-1] = _header(found[-1], line)
    return tuple(found)


def _header(file: FileChange, line: str) -> FileChange:
    for prefix, status in (("new file", "added"), ("deleted file", "deleted")):
        if line.startswith(prefix):
            return replace(file, status=status)
    for kind in ("rename", "copy"):
        if line.startswith(f"{kind} from "):
            return replace(
                file, status="renamed" if kind == "rename" else "copied", old_path=line.split(" ", 2)[2]
            )
        if line.startswith(f"{kind} to "):
            return replace(file, path=line.split(" ", 2)[2])
    if line.startswith(("Binary files ", "GIT binary patch")):
        return replace(file, binary=True)
    if line.startswith("+++ ") and line != "+++ /dev/null":
        return replace(file, path=_named(line[4:].rstrip("\t")))
    return file


def _named(text: str) -> str:
    found = _QUOTED.match(text)
    return found.group(1) if found else text
