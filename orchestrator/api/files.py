"""`/api/v1/tasks/{id}/diff` and `/artifacts`: what a task changed, and the files that it left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from orchestrator.api.bodies import answer, plain
from orchestrator.api.once import Reply
from orchestrator.api.wiring import Reader, The
from orchestrator.bootstrap import Wiring
from orchestrator.core.errors import Refused, Unknown
from orchestrator.queries.artifacts import (
    ArtifactLine,
    FileChange,
    artifact,
    artifacts,
    changes,
    latest_patch,
)
from orchestrator.queries.reading import snapshot
from orchestrator.queries.task import resolve, task

router: Final = APIRouter(prefix="/api/v1", tags=["files"])

_CHUNK: Final = 1024**2
_LONGEST_SUMMARISED: Final = 16 * 1024**2
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class Diff:
    """What the task's branch changes against the commit that it began from. `too_large`: only as a patch."""

    task_id: str
    base_commit: str | None
    commit: str | None
    branch: str | None
    files: tuple[FileChange, ...]
    additions: int
    deletions: int
    too_large: bool
    artifact_id: str | None


@router.get("/tasks/{task_id}/diff", operation_id="tasks.diff", response_model=Diff)
def diff(request: Request, wiring: The, caller: Reader, task_id: str) -> Response:
    """A summary by file; with `Accept: text/x-diff` the patch."""
    with snapshot(wiring.engine) as connection:
        found = task(connection, caller.tenant_id, resolve(connection, caller.tenant_id, task_id))
        patch = latest_patch(connection, caller.tenant_id, found.id)
    accept = request.headers.get("accept", "")
    if "text/x-diff" in accept or "text/x-patch" in accept:
        if patch is None:
            raise Unknown(
                "diff-unavailable",
                f"Task {found.id} has changed nothing so far.",
                f"Watch it: orchestrator task watch {found.id}",
            )
        return _content(request, wiring, patch, disposition="inline")
    too_large = patch is not None and patch.size > _LONGEST_SUMMARISED
    files: tuple[FileChange, ...] = ()
    if patch is not None and not too_large:
        files = changes(wiring.artifacts.get(patch.key).decode("utf-8", "replace"))
    return answer(
        Diff(
            task_id=found.id,
            base_commit=found.base_commit,
            commit=found.commit,
            branch=found.branch,
            files=files,
            additions=sum(file.additions for file in files),
            deletions=sum(file.deletions for file in files),
            too_large=too_large,
            artifact_id=patch.id if patch else None,
        )
    )


@router.get("/tasks/{task_id}/artifacts", operation_id="tasks.artifacts")
def list_artifacts(wiring: The, caller: Reader, task_id: str) -> Response:
    with snapshot(wiring.engine) as connection:
        found = resolve(connection, caller.tenant_id, task_id)
        lines = artifacts(connection, caller.tenant_id, found)
    return Reply(200, {"data": [_shown(line) for line in lines]}).response()


@router.get("/tasks/{task_id}/artifacts/{artifact_id}", operation_id="tasks.artifact")
def get_artifact(wiring: The, caller: Reader, task_id: str, artifact_id: str) -> Response:
    return Reply(200, _shown(_artifact(wiring, caller.tenant_id, task_id, artifact_id))).response()


@router.get("/tasks/{task_id}/artifacts/{artifact_id}/content", operation_id="tasks.artifact_content")
def content(request: Request, wiring: The, caller: Reader, task_id: str, artifact_id: str) -> Response:
    """The file, for saving: never shown by a browser, and resumable by Range."""
    line = _artifact(wiring, caller.tenant_id, task_id, artifact_id)
    return _content(request, wiring, line, disposition="attachment")


def _artifact(wiring: Wiring, tenant_id: str, task_id: str, artifact_id: str) -> ArtifactLine:
    with snapshot(wiring.engine) as connection:
        return artifact(connection, tenant_id, resolve(connection, tenant_id, task_id), artifact_id)


def _shown(line: ArtifactLine) -> dict[str, object]:
    shown: dict[str, object] = plain(line)
    del shown["key"]  # where it is stored is nobody's business
    return shown | {"content": f"/api/v1/tasks/{line.task_id}/artifacts/{line.id}/content"}


def _content(request: Request, wiring: Wiring, line: ArtifactLine, *, disposition: str) -> Response:
    tag = f'"{line.sha256}"'
    name = line.name.rpartition("/")[2]
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"{disposition}; filename*=UTF-8''{quote(name, safe='')}",
        "Cache-Control": "private, no-cache",
    }
    if tag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    start, stop, status = _range(request, line, tag)
    if status == 206:  # noqa: PLR2004 - a part
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{line.size}"
    headers["Content-Length"] = str(stop - start)
    first = wiring.artifacts.read(line.key, start, min(_CHUNK, stop - start)) if stop > start else b""

    def chunks() -> Iterator[bytes]:
        yield first
        for at in range(start + _CHUNK, stop, _CHUNK):
            yield wiring.artifacts.read(line.key, at, min(_CHUNK, stop - at))

    media_type = line.media_type if disposition == "inline" else "application/octet-stream"
    if line.media_type.startswith(("text/", "application/json")):
        media_type = line.media_type
    return StreamingResponse(chunks(), status, headers, media_type=media_type)


def _range(request: Request, line: ArtifactLine, tag: str) -> tuple[int, int, int]:
    """First byte, byte after the last, status. Raises Refused `range-invalid`."""
    found = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if found is None or request.headers.get("if-range", tag) != tag:
        return 0, line.size, 200
    first, last = found.groups()
    if first:
        start, stop = int(first), min(int(last) + 1 if last else line.size, line.size)
    else:
        start, stop = max(0, line.size - int(last or 0)), line.size
    if start >= stop:
        raise Refused(
            "range-invalid", f"The file has {line.size} bytes.", "Ask for another range, or the whole file."
        )
    return start, stop, 206
